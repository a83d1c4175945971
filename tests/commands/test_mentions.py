"""Whatever text names a command of `flawline` names one that exists, with options that it has."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.commands.cli import app
from tests.project import REPOSITORY

PLACES = ("components", "flows", "infra", "benchmarks", "docs", "README.md", "Makefile", "params.yaml", "prefect.yaml")
ENDINGS = {".py", ".md", ".yaml", ".sh", ""}
MENTION = re.compile(r"(?<![\w./$-])flawline ([a-z][a-z-]*)((?: [^`\n#;<]*)?)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def texts() -> Iterator[tuple[str, str]]:
    for place in PLACES:
        path = REPOSITORY / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in ENDINGS and "__pycache__" not in file.parts:
                yield file.relative_to(REPOSITORY).as_posix(), file.read_text(encoding="utf-8")


def unknown(text: str) -> list[str]:
    """The mentions in a text that are no command, or have an option that it has not."""
    return [found.group(0) for found in MENTION.finditer(text) if not is_known(found.group(1), found.group(2))]


def is_known(name: str, rest: str) -> bool:
    command: Any = typer.main.get_command(app)
    found = command.commands.get(name)
    if hasattr(found, "commands"):
        word = re.match(r" ([a-z][a-z-]*)(?![\w/.])", rest)  # else the sentence goes on, or the line ends here
        if word and (word.group(1) in found.commands or not found.invoke_without_command):
            found = found.commands.get(word.group(1))
    if found is None:
        return False
    if found.context_settings.get("ignore_unknown_options"):
        return True
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return known | {"--help"} >= set(OPTION.findall(rest))


@pytest.mark.slow
def test_all_that_are_named_exist() -> None:
    found = {name: wrong for name, text in texts() if (wrong := unknown(text))}
    assert found == {}
    assert sum(len(MENTION.findall(text)) for _, text in texts()) > 50  # they are looked for where they are


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`flawline run bottle --preset cpu`", []),
        ("try `flawline retrain` now", ["flawline retrain"]),
        ("`flawline data add` of the folder", []),
        ("`flawline data sned`", ["flawline data sned"]),
        ("`flawline review accept NAME`, `flawline review`", []),
        ("`flawline promote bottle 2 --becuase X`", ["flawline promote bottle 2 --becuase X"]),
        ("rm -rf .flawline artifacts; cd /x/flawline things", []),
        ("flawline worker --limit 2", []),
    ],
)
def test_what_counts_as_a_mention(text: str, wrong: list[str]) -> None:
    assert unknown(text) == wrong


def test_readme_and_documents_are_looked_at() -> None:
    assert {"README.md", "docs/models.md", "flows/commands/models.py"} <= {name for name, _ in texts()}
    assert Path(REPOSITORY / "docs").is_dir()

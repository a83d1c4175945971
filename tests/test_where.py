"""docs/where.md leads to what is there: to files that define the names; and the manual's links lead somewhere."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROWS = [line for line in (PROJECT / "docs/where.md").read_text().splitlines() if re.match(r"\| (?!I want)\S", line)]
PLACES = [place for line in ROWS for place in re.findall(r"`([\w./-]+\.(?:py|yaml)(?::[\w.]+)?)` \|$", line)]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (PROJECT / "docs").glob("*.md"))]


def defined(body: list[ast.stmt], before: str = "") -> Iterator[str]:
    """Names of functions, classes, methods ("Class.method") and constants of a module."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield before + node.name
        elif isinstance(node, ast.ClassDef):
            yield before + node.name
            yield from defined(node.body, f"{before}{node.name}.")
        elif isinstance(node, ast.Assign):
            yield from (before + target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield before + node.target.id


def test_there_are_thirty_rows_and_each_names_a_place() -> None:
    assert len(PLACES) == len(ROWS) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_file_is_there_and_defines_the_name(place: str) -> None:
    path, _, name = place.partition(":")
    assert (PROJECT / path).is_file()
    if name:
        assert name in set(defined(ast.parse((PROJECT / path).read_text()).body)), (
            f"correct it in docs/where.md: {place}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_in_the_manual_lead_somewhere(page: str) -> None:
    text = (PROJECT / page).read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (PROJECT / page).parent.joinpath(link).exists()]
    paths = re.findall(r"`((?:components|flows|benchmarks|infra|tests|docs)/[\w./-]+)`", text)
    assert not [path for path in paths if not (PROJECT / path).exists()]


def test_the_readme_is_short_and_the_glossary_too() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 120
    coined = re.findall(r"^\| \*\*(\w+)\*\* \|", (PROJECT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert sorted(coined) == ["capsule", "category", "composition", "exam", "gate", "mark"]

"""DVC's lock file: each content is parsed once in a process, and only the entries of stages that have run are written.

DVC parses the whole of `dvc.lock` in Python whenever it looks at a stage, and parses and writes all of it again, more
slowly still, when one has run: seconds a stage where there are fifteen categories. What is read here, and the bytes
that are written, are the same.
"""

import json
from contextlib import suppress
from functools import cache
from typing import Any

from yaml import YAMLError

from flows.data.lock_entries import as_text, parse_entries, split_entries

_parsed: dict[str, str] = {}  # the latest text -> what it says, as JSON


def let_dvc_be_quick() -> None:
    """From now on, whatever DVC reads and writes of a lock file in this process is read and written so."""
    from dvc import dvcfile

    dvcfile.Lockfile = quick_lockfile()


@cache
def quick_lockfile() -> type[Any]:
    """DVC's class for a lock file, but for how it parses and writes."""
    from dvc.dvcfile import Lockfile
    from dvc.stage.serialize import to_lockfile

    class QuickLockfile(Lockfile):
        def _load_yaml(self, **kwargs: Any) -> tuple[Any, str]:
            if not kwargs:
                with suppress(UnicodeDecodeError):  # which DVC says in its own way
                    text = self._read()
                    if text in _parsed:
                        return json.loads(_parsed[text]), text
            data, text = super()._load_yaml(**kwargs)
            if not kwargs:
                _remember(text, data)
            return data, text

        def dump_stages(self, stages: Any, **kwargs: Any) -> None:
            data, text = self._load()
            entries = _entries_of(data, text)
            if entries is None:
                super().dump_stages(stages, **kwargs)
                return
            made = {name: entry for stage in stages for name, entry in to_lockfile(stage, **kwargs).items()}
            texts = {name: _entry_text(name, entry) for name, entry in made.items()}
            new = as_text(entries | texts)
            with self.repo.fs.open(self.path, "w+", encoding="utf-8") as file:
                file.write(new)
            if any(entries.get(name) != lines for name, lines in texts.items()):
                self.repo.scm_context.track_file(self.relpath)
            _remember(new, data | {"stages": data["stages"] | parse_entries(texts)})

        def _read(self) -> str:
            with self.repo.fs.open(self.path, encoding="utf-8") as file:
                return str(file.read())

    return QuickLockfile


def _entries_of(data: dict[str, Any], text: str) -> dict[str, str] | None:
    """The lines of each stage; None where the text is not as DVC writes it, so that DVC is to write it anew."""
    try:
        entries = split_entries(text)
    except YAMLError:
        return None
    is_usual = as_text(entries) == text and data.keys() == {"schema", "stages"}
    return entries if is_usual and data["stages"].keys() == entries.keys() else None


def _entry_text(name: str, entry: Any) -> str:
    """The lines of one stage, as DVC writes them."""
    from dvc.utils.serialize import dumps_yaml

    return str(dumps_yaml({"stages": {name: entry}})).removeprefix("stages:\n")


def _remember(text: str, data: Any) -> None:
    """Remember what a text says, if it is what JSON can hold."""
    _parsed.clear()
    with suppress(TypeError, ValueError):
        as_json = json.dumps(data)
        if json.loads(as_json) == data:
            _parsed[text] = as_json

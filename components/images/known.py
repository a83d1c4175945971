"""What was found out about image files before: by the digest of their bytes, what was asked, and by which code."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from components.foundation.byte_cache import ByteCache
from components.foundation.files import digest_of
from components.foundation.libraries import library_versions

Facts = dict[str, Any]


class Known:
    """Values about image files, kept from run to run; those of a file are forgotten by its digest.

    asked: what they depend on besides the file's bytes, the code of this room and the libraries, as JSON has it.
    """

    def __init__(self, store: ByteCache, *asked: Any) -> None:
        self.store = store
        self._origin = digest_of([_room(), library_versions(), list(asked)])

    def facts(self, digests: Sequence[str]) -> dict[str, Facts]:
        """The facts that are known, by digest."""
        return {digest: json.loads(value) for digest, value in self._read(digests).items()}

    def keep_facts(self, facts: Mapping[str, Facts]) -> None:
        """Keep facts by digest; they must be the same after a way through JSON."""
        self._write({digest: json.dumps(own).encode() for digest, own in facts.items()})

    def pixels(self, digests: Sequence[str], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The pixels that are known, each uint8 of this shape, by digest."""
        return {k: np.frombuffer(value, np.uint8).reshape(shape) for k, value in self._read(digests).items()}

    def keep_pixels(self, pixels: Mapping[str, np.ndarray]) -> None:
        """Keep pixels (uint8) by digest."""
        self._write({digest: np.ascontiguousarray(own).tobytes() for digest, own in pixels.items()})

    def _read(self, digests: Sequence[str]) -> dict[str, bytes]:
        keys = {self._key(digest): digest for digest in digests}
        return {keys[key]: value for key, value in self.store.read(list(keys)).items()}

    def _write(self, values: Mapping[str, bytes]) -> None:
        self.store.write({self._key(digest): (digest, value) for digest, value in values.items()})

    def _key(self, digest: str) -> str:
        return f"{self._origin} {digest}"


@cache
def _room() -> str:
    """One digest of the code by which images are read and measured."""
    folder = Path(__file__).parent
    return digest_of({path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))})

"""Re-hash stored objects against the digests under which they are kept, in two stores, and mend one from the other."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO, Literal, Protocol

CHUNK = 1 << 20
DIGEST_SIZE = 32  # hex digits of an MD5: what follows in an object's name (".dir") is no part of it

State = Literal["whole", "missing", "corrupt"]
Report = Callable[[str, int, int], None]  # (store, done, total)


class Store(Protocol):
    """A place that keeps objects under the MD5 of their content (with ".dir" behind it for a list of files)."""

    name: str

    def open(self, oid: str) -> BinaryIO:
        """A stream of the object's bytes; FileNotFoundError where it is not there."""

    def put(self, oid: str, source: Path) -> None:
        """Store the content of a file as this object, whole or not at all, in place of what is there."""


@dataclass(frozen=True)
class Finding:
    """An object that a store should hold and does not hold whole."""

    oid: str
    store: str
    state: State
    is_repaired: bool = False


def check_objects(
    store: Store, oids: Iterable[str], threads: int, report: Report = lambda *_: None
) -> dict[str, State]:
    """Read every object through and compare its MD5 with its name; memory is bounded by a chunk per thread."""
    wanted = sorted(set(oids))
    states: dict[str, State] = {}
    with ThreadPoolExecutor(threads) as pool:
        for oid, state in zip(wanted, pool.map(lambda oid: check_object(store, oid), wanted), strict=True):
            states[oid] = state
            report(store.name, len(states), len(wanted))
    return states


def check_object(store: Store, oid: str) -> State:
    """Whether the store holds this object, with the bytes that its name promises."""
    try:
        with store.open(oid) as stream:
            return "whole" if _copy(stream, None) == oid[:DIGEST_SIZE] else "corrupt"
    except FileNotFoundError:
        return "missing"


def transfer(source: Store, target: Store, oid: str) -> bool:
    """Copy an object from one store to the other; False, and nothing is written, where its bytes are not right."""
    with tempfile.NamedTemporaryFile() as buffer:
        try:
            with source.open(oid) as stream:
                digest = _copy(stream, buffer)
        except FileNotFoundError:
            return False
        if digest != oid[:DIGEST_SIZE]:
            return False
        buffer.flush()
        target.put(oid, Path(buffer.name))
        return True


def compare_stores(states: Mapping[str, Mapping[str, State]]) -> list[Finding]:
    """What is not whole, by object and store; `states`: per store's name, per object."""
    return [
        Finding(oid, store, state)
        for store, objects in sorted(states.items())
        for oid, state in sorted(objects.items())
        if state != "whole"
    ]


def repair(findings: Iterable[Finding], stores: Mapping[str, Store], threads: int) -> list[Finding]:
    """Mend each finding from the other stores; the findings again, with whether they are mended now."""

    def mend(finding: Finding) -> Finding:
        others = [store for name, store in stores.items() if name != finding.store]
        mended = any(transfer(other, stores[finding.store], finding.oid) for other in others)
        return replace(finding, is_repaired=mended)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(mend, findings))


def _copy(stream: BinaryIO, target: IO[bytes] | None) -> str:
    """Read a stream to its end, into `target` if there is one; MD5 of what was read."""
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()

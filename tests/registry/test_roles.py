"""What two versions held out is said in their comparison, with the images that have another role, and why."""

import hashlib
from pathlib import Path

import numpy as np

from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.card import read_roles
from components.images.identity import EXAMINE, Roles
from components.registry.comparison import role_rows
from components.registry.roles import roles_of
from tests.conftest import MakeCapsule


def roles(count: int, twins: list[list[str]] | None = None, seed: int = 0) -> Roles:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    return Roles.of(digests, twins or [], seed, 0.3)


def test_a_delivery_changes_no_role_and_is_told_by_numbers() -> None:
    old, new = roles(100), roles(130)
    held = [len(one.of_role(EXAMINE)) for one in (old, new)]
    assert list(role_rows(old, new)) == [("held-out images", str(held[0]), f"{held[1]}, {held[0]} of them the same")]
    assert list(role_rows(old, roles(100))) == []


def test_a_change_of_role_is_told_with_its_reason() -> None:
    old = roles(100)
    learned, held = old.of_role("learn")[0], old.of_role(EXAMINE)[0]
    rows = list(role_rows(old, roles(100, [[learned, held]])))
    assert rows[-1] == ("changed role", "learn", f"examine: 1 image, as its group merged with that of {held[:10]}")
    assert roles_of(old, [learned, held, "0" * 64]) == {"learn", EXAMINE}


def test_a_capsule_keeps_its_roles(make_capsule: MakeCapsule, tmp_path: Path) -> None:
    plain = load_capsule(make_capsule(tmp_path / "plain"))
    assert plain.roles is None
    known = roles(20)
    made = Capsule(
        plain.category,
        plain.method,
        plain.detector,
        plain.threshold,
        plain.calibration,
        plain.selection,
        plain.provenance,
        roles=known,
    )
    digest = save_capsule(made, np.zeros((1, 32, 32, 3), np.uint8), tmp_path / "with")
    assert digest != plain.digest
    assert load_capsule(tmp_path / "with").roles == read_roles(tmp_path / "with") == known

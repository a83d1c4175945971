"""An image is its bytes: what it is for, its fold and its random draws follow from its digest, never from row or name.

So a delivery changes nothing about the images that are known: one that is held out stays held out in every version,
and what is made from it stays the same. Every image has a number in [0, 1), a hash of the seed and its digest
(`components.foundation.draws`); below the share that is held out it is held out. Near-duplicates are one group with
one role: the smallest number of its members decides, so that a group that is held out stays so when it grows. A group
of n is therefore held out with probability 1 − (1 − share)ⁿ. What can change a known image's role is that its group
grows or merges, or that the set is small (`Roles.of`); `changes` says which images and why.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.foundation.draws import uniform
from components.foundation.errors import UserError
from components.images.perceptual_hash import HashIndex

LEARN, EXAMINE, CALIBRATE = "learn", "examine", "calibrate"
HELD_OUT = (EXAMINE, CALIBRATE)
FEWEST = 3  # images: one is held out, two are left to learn from
ENOUGH = (
    12  # held-out images, about as few as say anything of a threshold: small sets have at least their share of them
)

Groups = Sequence[Sequence[str]]


def keys_of(digests: Sequence[str]) -> NDArray[np.int64]:
    """The first 64 bits of hexadecimal digests as int64 (N,): as what an image takes part in random draws."""
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64).view(np.int64)


def near_duplicates(
    hashes: Mapping[str, NDArray[np.uint8]], grey: Callable[[str], NDArray[np.uint8]], distance: float
) -> list[list[str]]:
    """Groups of images that look alike, directly or by way of others; images that are like no other are in none.

    hashes: by digest, the image's own hash (288,) uint8. grey: gives an image's `perceptual_hash.small_grey`; called
    for the few that may have a near-duplicate. distance: share of a hash that differs at most, in [0, 1]. Groups and
    their members are sorted; neither order nor names of files matter.
    """
    digests, index = sorted(hashes), HashIndex()
    for digest in digests:
        index.add(digest, hashes[digest])
    labels = np.arange(len(digests))  # (N,) of the groups so far
    for place, digest in enumerate(digests):
        others = labels != labels[place]  # only these: of thousands that are all alike, few pairs need a look
        for near in index.within(distance, hashes[digest], partial(grey, digest), others):
            labels[labels == labels[near]] = labels[place]
    groups: dict[int, list[str]] = {}
    for digest, label in zip(digests, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(digest)
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True)
class Roles:
    """What each of a category's good images is for.

    Attributes:
        digests: (N,) SHA-256 of the files' bytes, ascending, each once: the canonical order of a category's images.
        roles: (N,) LEARN, EXAMINE or CALIBRATE; the latter two are held out.
        groups: (N,) the smallest digest of the image's group of near-duplicates; its own where it has none.
        seed: of the run.
        held_out, calibrate: shares of the images that are wished held out, and thereof to calibrate, of all.
    """

    digests: tuple[str, ...]
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    seed: int = 0
    held_out: float = 0.2
    calibrate: float = 0.0

    @classmethod
    def of(cls, digests: Sequence[str], twins: Groups, seed: int, held_out: float, calibrate: float = 0.0) -> "Roles":
        """Give each image its role; twins: groups of near-duplicates; digests that are not among these are ignored.

        A group whose number is below `calibrate` calibrates, below `held_out` it examines, else it is learned. Chance
        leaves small sets with too few: at least the share `held_out` of all images, rounded, or ENOUGH if that is less,
        and one in any case, are held out, and two are learned. So the groups with the next larger numbers examine too,
        or those held out with the largest numbers are learned; one of those held out examines. Where all images are
        near-duplicates of each other, or no group can be held out without leaving fewer than two, each image is a group
        of its own. Raises UserError for fewer than FEWEST different images.
        """
        known = sorted(set(digests))
        if len(known) < FEWEST:
            images = "1 good image is" if len(known) == 1 else f"{len(known)} different good images are"
            raise UserError(f"{images} too few to learn from and to hold one out: at least {FEWEST} are needed.")
        groups = _groups_of(known, twins)
        roles = _roles(known, groups, seed, held_out, calibrate) or _roles(known, known, seed, held_out, calibrate)
        assert roles is not None
        return cls(tuple(known), tuple(roles[digest] for digest in known), tuple(groups), seed, held_out, calibrate)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """(N,) as what each image takes part in random draws."""
        return keys_of(self.digests)

    @cached_property
    def is_held_out(self) -> NDArray[np.bool_]:
        """(N,) which images are never learned from."""
        return np.array([role in HELD_OUT for role in self.roles])

    def of_role(self, *roles: str) -> list[str]:
        """The digests of the images with one of these roles, ascending."""
        return [digest for digest, role in zip(self.digests, self.roles, strict=True) if role in roles]

    def to_json(self) -> dict[str, Any]:
        """For JSON: the digests by role, and the groups of more than one image."""
        members: dict[str, list[str]] = {}
        for digest, group in zip(self.digests, self.groups, strict=True):
            members.setdefault(group, []).append(digest)
        return {
            "seed": self.seed,
            "shares": {"held_out": self.held_out, CALIBRATE: self.calibrate},
            **{role: self.of_role(role) for role in (LEARN, EXAMINE, CALIBRATE)},
            "near_duplicates": [group for group in members.values() if len(group) > 1],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Roles":
        """The inverse of `to_json`."""
        roles = {digest: role for role in (LEARN, EXAMINE, CALIBRATE) for digest in content[role]}
        digests, shares = sorted(roles), content["shares"]
        groups = _groups_of(digests, content["near_duplicates"])
        in_order = tuple(roles[digest] for digest in digests)
        return cls(tuple(digests), in_order, tuple(groups), content["seed"], shares["held_out"], shares[CALIBRATE])


@dataclass(frozen=True)
class Change:
    """An image that two versions both know and use otherwise: its digest, its roles in them, and why they differ."""

    digest: str
    before: str
    after: str
    reason: str


def changes(before: Roles, after: Roles) -> list[Change]:
    """The images of both whose roles differ; new and removed images are no change."""
    then, now = _by_digest(before), _by_digest(after)
    return [
        Change(digest, then[digest], now[digest], _reason(digest, before, after))
        for digest in before.digests
        if digest in now and now[digest] != then[digest]
    ]


def both_held_out(one: Roles, other: Roles) -> list[str]:
    """The digests of the images that neither version has learned and both know, ascending: to compare them on."""
    return sorted(set(one.of_role(*HELD_OUT)) & set(other.of_role(*HELD_OUT)))


def fold_numbers(digests: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (N,) of each image, 0 … k − 1, where k is `folds`, or the number of groups if that is smaller.

    A group's fold is ⌊k · number⌋, with a number in [0, 1) of its own. Where that leaves a fold empty, it gets the
    group with the smallest number of the fold which has most groups, the first of those; no other image moves. Of one
    group alone, the images count as groups.
    """
    names, members = np.unique(np.array(groups), return_inverse=True)
    if len(names) == 1:
        names, members = np.array(digests), np.arange(len(digests))
    count = min(folds, len(names))
    draws = uniform(seed, ("fold",), 0, keys_of(names.tolist()), 1)[:, 0]  # (G,)
    numbers = np.floor(draws * count).astype(np.int64)
    for fold in range(count):
        if not (numbers == fold).any():
            giver = np.bincount(numbers, minlength=count).argmax()
            numbers[np.flatnonzero(numbers == giver)[draws[numbers == giver].argmin()]] = fold
    return numbers[members]


def _roles(
    digests: Sequence[str], groups: Sequence[str], seed: int, held_out: float, calibrate: float
) -> dict[str, str] | None:
    """The role of each digest; None where no group can be held out so that two images are left."""
    draws = dict(zip(digests, uniform(seed, ("role",), 0, keys_of(digests), 1)[:, 0].tolist(), strict=True))
    members: dict[str, list[str]] = {}
    for digest, group in zip(digests, groups, strict=True):
        members.setdefault(group, []).append(digest)
    number = {group: min(draws[digest] for digest in own) for group, own in members.items()}
    order = sorted(members, key=lambda group: (number[group], group))

    def left(held: Sequence[str]) -> int:
        return len(digests) - sum(len(members[group]) for group in held)

    least = len(digests) - max(1, min(ENOUGH, round(held_out * len(digests))))
    held = [group for group in order if number[group] < held_out]
    while left(held) > least:
        held.append(order[len(held)])
    while held and left(held) < FEWEST - 1:
        held.pop()
    held = held or next(([group] for group in order if left([group]) >= FEWEST - 1), [])
    if not held:
        return None
    used = {group: CALIBRATE if number[group] < calibrate else EXAMINE for group in held}
    if EXAMINE not in used.values():
        used[held[-1]] = EXAMINE
    return {digest: used.get(group, LEARN) for group, own in members.items() for digest in own}


def _groups_of(digests: Sequence[str], twins: Groups) -> list[str]:
    """The smallest digest of each image's group, among these images."""
    known = set(digests)
    found: dict[str, str] = {}
    for group in twins:
        own = sorted(known.intersection(group))
        found |= dict.fromkeys(own, own[0] if own else "")
    return [found.get(digest, digest) for digest in digests]


def _by_digest(roles: Roles) -> dict[str, str]:
    return dict(zip(roles.digests, roles.roles, strict=True))


def _reason(digest: str, before: Roles, after: Roles) -> str:
    if (before.seed, before.held_out, before.calibrate) != (after.seed, after.held_out, after.calibrate):
        return "the seed or the shares differ"
    then, now = _members(digest, before), _members(digest, after)
    if joined := (now - then) & set(before.digests):
        return f"its group merged with that of {min(joined)[:10]}"
    if now - then:
        return f"its group of near-duplicates grew by {len(now - then)}"
    if then - now:
        return f"its group of near-duplicates lost {len(then - now)}"
    return "a small set keeps enough held out, and enough to learn from"


def _members(digest: str, roles: Roles) -> set[str]:
    return set(_same_group(roles.groups[roles.digests.index(digest)], roles))


def _same_group(group: str, roles: Roles) -> Iterator[str]:
    return (digest for digest, own in zip(roles.digests, roles.groups, strict=True) if own == group)

"""An image is its bytes: roles, folds and draws follow from digests, whatever else there is and it is called."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from components.foundation.draws import SampleKeys, random_order
from components.foundation.errors import UserError
from components.images.identity import (
    CALIBRATE,
    EXAMINE,
    LEARN,
    Roles,
    both_held_out,
    changes,
    fold_numbers,
    keys_of,
    near_duplicates,
)
from components.images.perceptual_hash import own_hash, small_grey


def digests_of(count: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(start, start + count)]


def roles_by_digest(roles: Roles) -> dict[str, str]:
    return dict(zip(roles.digests, roles.roles, strict=True))


# Roles --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(150, 250), st.randoms())
def test_what_comes_and_goes_leaves_every_other_image_its_role(seed: int, count: int, random: object) -> None:
    digests = digests_of(count)
    before = roles_by_digest(Roles.of(digests, [], seed, 0.3, calibrate=0.1))
    shuffled = digests[3:] + digests_of(30, 1000)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    after = roles_by_digest(Roles.of(shuffled, [], seed, 0.3, calibrate=0.1))
    assert {digest: after[digest] for digest in digests[3:]} == {digest: before[digest] for digest in digests[3:]}


def test_shares_are_thresholds_that_are_met_on_the_average() -> None:
    roles = Roles.of(digests_of(20_000), [], seed=3, held_out=0.3, calibrate=0.1)
    shares = [roles.roles.count(role) / 20_000 for role in (LEARN, EXAMINE, CALIBRATE)]
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.01)  # three standard deviations
    other = Roles.of(digests_of(20_000), [], seed=4, held_out=0.3)
    assert np.mean(roles.is_held_out & other.is_held_out) == pytest.approx(0.09, abs=0.01)  # another seed, others
    less = Roles.of(digests_of(20_000), [], seed=3, held_out=0.2)
    assert (roles.is_held_out | ~less.is_held_out).all()  # a larger share holds out the same ones and more


@given(st.integers(3, 9), st.floats(0.001, 0.89), st.integers(0, 100))
def test_of_few_images_one_is_held_out_and_two_are_left(count: int, share: float, seed: int) -> None:
    roles = Roles.of(digests_of(count), [], seed, share, calibrate=share / 2)
    assert EXAMINE in roles.roles
    assert roles.roles.count(LEARN) >= 2


@given(st.integers(3, 300), st.integers(0, 50))
def test_small_sets_have_at_least_their_share_held_out(count: int, seed: int) -> None:
    """Of 64 images, 13 are wished; by chance alone it might be 6. The smallest numbers come first."""
    few, more = (Roles.of(digests_of(count), [], seed, share) for share in (0.2, 0.3))
    assert few.is_held_out.sum() >= max(1, min(12, round(0.2 * count)))
    assert (more.is_held_out | ~few.is_held_out).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_refused(count: int) -> None:
    with pytest.raises(UserError, match="too few"):
        Roles.of(digests_of(count) * 3, [], 0, 0.2)


@given(st.integers(0, 200), st.integers(2, 6))
def test_near_duplicates_share_a_role_and_a_group_that_is_held_out_stays_so_when_it_grows(seed: int, size: int) -> None:
    digests = digests_of(200)
    group = digests[:size]
    small, large = (Roles.of(digests, [own], seed, 0.2) for own in (group[:-1], group))
    held = {digest: role != LEARN for digest, role in roles_by_digest(large).items()}
    assert len({held[digest] for digest in group}) == 1
    assert all(roles_by_digest(small)[digest] == LEARN for digest in group[:-1]) or held[group[0]]
    assert {large.groups[large.digests.index(digest)] for digest in group} == {min(group)}
    others = [digest for digest in digests if digest not in group]
    assert all(roles_by_digest(small)[digest] == roles_by_digest(large)[digest] for digest in others)


def test_a_change_of_role_is_named_with_its_reason() -> None:
    digests = digests_of(200)
    alone = Roles.of(digests, [], 0, 0.3)
    held, learned = alone.of_role(EXAMINE)[0], alone.of_role(LEARN)[0]
    assert changes(alone, Roles.of([*digests, *digests_of(9, 500)], [], 0, 0.3)) == []
    (merged,) = changes(alone, Roles.of(digests, [[held, learned]], 0, 0.3))
    assert (merged.digest, merged.before, merged.after) == (learned, LEARN, EXAMINE)
    assert held[:10] in merged.reason
    without = Roles.of([digest for digest in digests if digest != held], [], 0, 0.3)
    (grown,) = changes(without, Roles.of(digests, [[held, learned]], 0, 0.3))
    assert "grew by 1" in grown.reason
    assert {change.reason for change in changes(alone, Roles.of(digests, [], 1, 0.3))} == {
        "the seed or the shares differ"
    }


def test_all_near_duplicates_of_each_other_are_told_apart_all_the_same() -> None:
    digests = digests_of(8)
    roles = Roles.of(digests, [digests], 0, 0.2)
    assert 1 <= roles.is_held_out.sum() <= 6


def test_roles_come_back_from_json() -> None:
    digests = digests_of(30)
    roles = Roles.of(digests, [digests[3:6], digests[8:10]], 7, 0.4, calibrate=0.2)
    assert Roles.from_json(json.loads(json.dumps(roles.to_json()))) == roles


def test_versions_are_compared_on_what_both_held_out() -> None:
    one = Roles.of(digests_of(300), [], 0, 0.3)
    other = Roles.of(digests_of(300, 100), [], 0, 0.4, calibrate=0.2)
    common = both_held_out(one, other)
    assert set(common) == set(digests_of(200, 100)) & set(one.of_role(EXAMINE))
    assert common == sorted(common)


# Folds --------------------------------------------------------------------------------------------------------------


def test_folds_of_known_images_stay_and_are_of_like_size() -> None:
    digests = digests_of(400)
    before = fold_numbers(digests, digests, 4, seed=0)
    np.testing.assert_array_equal(fold_numbers(digests[100:], digests[100:], 4, seed=0), before[100:])
    assert np.bincount(before).min() > 70
    assert (fold_numbers(digests, digests, 4, seed=1) != before).any()


@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 50))
def test_no_fold_is_empty_and_near_duplicates_share_one(count: int, folds: int, seed: int) -> None:
    digests = digests_of(3 * count)
    groups = [digests[place % count] for place in range(3 * count)]
    numbers = fold_numbers(digests, groups, folds, seed)
    expected = min(folds, count) if count > 1 else min(folds, 3)
    assert sorted(set(numbers.tolist())) == list(range(expected))
    if count > 1:
        assert all(len(set(numbers[place::count].tolist())) == 1 for place in range(count))


# Near-duplicates ----------------------------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(128, 128, 3)), (2, 2, 0))
    return (120 + 35 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def test_moved_and_brightened_shots_of_one_part_are_one_group_whatever_their_order() -> None:
    first = picture(0)
    moved = np.roll(first, 1, axis=0)
    brighter = np.clip(moved * 1.05, 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(picture(1)).resize((120, 120)))
    pictures = [first, picture(1), moved, picture(2), brighter, smaller]
    by_digest = dict(zip(digests_of(len(pictures)), pictures, strict=True))
    expected = sorted(sorted(digests_of(6)[i] for i in group) for group in ((0, 2, 4), (1, 5)))
    for order in (list(by_digest), list(by_digest)[::-1]):
        hashes = {digest: own_hash(small_grey(by_digest[digest])) for digest in order}
        found = near_duplicates(hashes, lambda digest: small_grey(by_digest[digest]), 0.2)
        assert sorted(found) == expected


def test_thousands_that_are_all_alike_need_few_looks() -> None:
    grey, looks = small_grey(picture(0)), []

    def look(digest: str) -> np.ndarray:
        looks.append(digest)
        return grey

    digests = digests_of(2000)
    assert near_duplicates(dict.fromkeys(digests, own_hash(grey)), look, 0.05) == [sorted(digests)]
    assert len(looks) == 1


# Draws --------------------------------------------------------------------------------------------------------------


def test_a_source_is_another_image_and_stays_when_others_come_and_go() -> None:
    own = keys_of(digests_of(400))
    keys = SampleKeys.of(0, "bolt", 1, own)
    choose = partial(keys.choose, "source")
    before = own[choose(own)]
    assert (before != own).all()
    more = np.append(own, keys_of(digests_of(40, 1000)))
    after = more[choose(more)]
    assert set(after[after != before].tolist()) <= set(more[400:].tolist())  # changed to a new one, or not at all
    assert (after != before).mean() == pytest.approx(40 / 439, abs=0.06)
    fewer = own[40:]
    left = fewer[choose(fewer)]
    gone = np.isin(before, own[:40])
    np.testing.assert_array_equal(left[~gone], before[~gone])
    assert keys[:1].choose("source", own[:1]).tolist() == [0]  # where there is no other


def test_sources_are_spread_evenly() -> None:
    own = keys_of(digests_of(10))
    keys = SampleKeys(0, "bolt", np.arange(9000), np.full(9000, own[0]))
    counts = np.bincount(keys.choose("source", own), minlength=10)
    assert counts[0] == 0
    assert abs(counts[1:] - 1000).max() < 120  # four standard deviations


def test_a_new_image_goes_in_between_in_a_random_order() -> None:
    own = keys_of(digests_of(50))
    more = np.append(keys_of(digests_of(5, 100)), own)
    order = more[random_order(0, ("order",), 3, more)]
    assert order[np.isin(order, own)].tolist() == own[random_order(0, ("order",), 3, own)].tolist()
    assert order.tolist() != more[random_order(0, ("order",), 4, more)].tolist()

"""Stage synthesize: bring the good images to the network's size, hold some out, and write the synthetic exam."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluation.sheets import contact_sheet
from components.foundation.byte_cache import ByteCache
from components.foundation.draws import SampleKeys, uniform
from components.foundation.errors import UserError
from components.foundation.files import new_directory, read_json, sha256_file, write_json
from components.foundation.making import REMEDY, write_making
from components.foundation.params import Params
from components.foundation.places import KNOWN, Places
from components.images.dataset import list_category
from components.images.decode import read_square
from components.images.identity import EXAMINE, LEARN, Roles, keys_of
from components.images.known import Known
from components.stages.command import run_stage
from components.synthesis.exam_kinds import strengths_of
from components.synthesis.exam_samples import (
    EXAM_EPOCH,
    EXAM_KINDS,
    ExamImages,
    exam_keys,
    exam_makers,
    exam_others,
    exam_settings,
)
from components.synthesis.kept_samples import KeptSamples
from components.synthesis.nsa import NoPatchError, nsa_batch, prepare
from components.synthesis.nsa_derive import sample_statistics, sample_warnings
from components.synthesis.nsa_params import NsaParams
from components.synthesis.nsa_settings import FILE, MOST_IMAGES, nsa_params_of
from components.synthesis.pool import fill_pool
from components.synthesis.prepared import new_array, write_index

READS = ("image", "limits", "nsa", "seed", "synthesis")
MAKING = ("image", "nsa", "seed", "synthesis")  # limits change no byte of what passes them
SHEET_EPOCH = EXAM_EPOCH + 1  # nor are these
SHEET_SAMPLES, SHEET_TILE = 64, 96
SHEET_SOURCES = 8
AT_ONCE = 64  # images
DEAR = 1 << 25  # pixels, as many as 512 samples of 256 × 256: from here on worker processes are worth their start


def main(category: str, params: Params) -> None:
    """Write the prepared category: images, roles, the exam's samples with their masks, and a contact sheet."""
    places = Places(category)
    learned = read_json(places.validation / "learned.json")
    paths = good_images(category, params, learned)
    share = params.synthesis.held_out
    shares = share, share * params.synthesis.calibrate
    roles = Roles.of(list(paths), learned["near_duplicates"], params.seed, *shares)
    source = choose_exam(roles, params.synthesis.exam_images)
    with new_directory(places.prepared) as folder:
        images = write_images(folder, paths, params, learned["bits"])
        nsa = write_nsa(folder, images, roles, category, params)
        others = write_exam(folder, images, source, roles, category, params, nsa)
        draw_sheet(folder, images, source)
        write_index(
            folder,
            category=category,
            seed=params.seed,
            data_digest=learned["data_digest"],
            roles=roles,
            exam_source=source,
            exam_kinds=list(EXAM_KINDS),
            exam_others=others.tolist(),
            exam_strengths=strengths_of(exam_keys(roles.keys[source], category, params)).tolist(),
            bits=learned["bits"],
        )
        write_making(folder, params, MAKING, learned["data_digest"])


def good_images(category: str, params: Params, learned: Mapping[str, Any]) -> dict[str, Path]:
    """The files of the good images by digest, ascending; of files with the same bytes the first.

    learned: what validation wrote of them; UserError where these are others.
    """
    records = list_category(Path(params.data.root) / category).train
    paths: dict[str, Path] = {}
    for record in records:
        paths.setdefault(sha256_file(record.path), record.path)
    if paths.keys() != set(learned["images"].values()):
        raise UserError(f"The training images of {category} are not those that were validated last: {REMEDY}.")
    return {digest: paths[digest] for digest in sorted(paths)}


def choose_exam(roles: Roles, limit: int) -> np.ndarray:
    """Indices (M,), ascending, of at most `limit` images for the exam; where there are more, a third is held out.

    Near-duplicates come one after the other in the random order by which they are chosen.
    """
    draws = uniform(roles.seed, ("exam",), 0, keys_of(roles.groups), 1)[:, 0]
    order = np.lexsort((roles.keys, draws))
    role = np.array(roles.roles)[order]
    unseen, seen = order[role == EXAMINE], order[role == LEARN]
    if len(order) > limit:
        unseen = unseen[: max(1, limit // 3)]
        seen = seen[: limit - len(unseen)]
    return np.sort(np.concatenate([unseen, seen]))


def write_images(folder: Path, paths: Mapping[str, Path], params: Params, bits: int = 16) -> np.ndarray:
    """Write images.npy, uint8 (N, S, S, 3), a few images in memory at a time; returns it, mapped.

    paths: by the digest of each file. What is known of them is not read and resampled again.
    """
    size, limits = params.image.side, params.limits.image_limits().at_depth(bits)
    known = Known(ByteCache(KNOWN, params.cache.max_bytes), "pixels", size, asdict(limits))
    images = new_array(folder / "images.npy", (len(paths), size, size, 3), "uint8")
    digests = list(paths)
    for start in range(0, len(digests), AT_ONCE):
        some = digests[start : start + AT_ONCE]
        found = known.pixels(some, (size, size, 3))
        made = {one: read_square(paths[one], size, limits) for one in some if one not in found}
        known.keep_pixels(made)
        for row, digest in enumerate(some, start):
            images[row] = made[digest] if digest in made else found[digest]
    return images


def write_nsa(folder: Path, images: np.ndarray, roles: Roles, category: str, params: Params) -> NsaParams | None:
    """Settle how the category's natural synthetic anomalies are made, from images to learn from, and show 64 of them.

    Writes nsa.json (the settings, where each came from, what the samples measure, warnings) and nsa_sheet.png. Where no
    patch fits in the images, says so, writes no sheet and returns None; UserError where the paper has no such category.
    """
    rows = np.flatnonzero(~roles.is_held_out)[:MOST_IMAGES]  # the first by digest: as good as random, and they stay
    good = [np.ascontiguousarray(images[row]) for row in rows]
    try:
        chosen, report = nsa_params_of(params.nsa, good, category, params.seed)
        pictures = [prepare(image, chosen) for image in good]
    except NoPatchError as error:
        print(f"{category}: {error}", file=sys.stderr)
        write_json(folder / FILE, {"params": None, "warnings": [str(error)]})
        return None
    keys = SampleKeys.cycled(params.seed, category, SHEET_EPOCH, roles.keys[rows], SHEET_SAMPLES)
    samples = nsa_batch(pictures, roles.keys[rows], keys, chosen)
    warnings = sample_warnings(pictures, samples, category)
    for warning in warnings:
        print(warning, file=sys.stderr)
    contact_sheet(
        [sample.image for sample in samples],
        [f"{sample.mask.mean():.1%} changed" if sample.changed else "unchanged" for sample in samples],
        folder / "nsa_sheet.png",
        title=f"{category}: natural synthetic anomalies",
        masks=[sample.mask for sample in samples],
        tile=SHEET_TILE,
    )
    content = {**report, "params": asdict(chosen), "samples": sample_statistics(samples), "warnings": warnings}
    write_json(folder / FILE, content)
    return chosen


def write_exam(
    folder: Path,
    images: np.ndarray,
    source: np.ndarray,
    roles: Roles,
    category: str,
    params: Params,
    nsa: NsaParams | None,
) -> np.ndarray:
    """Write exam_images.npy, uint8 (K, M, S, S, 3), and exam_masks.npy, bool (K, M, S, S); what is known is not made.

    Returns (K, M): with which of the exam's images each sample was made.
    """
    good, own = np.ascontiguousarray(images[source]), roles.keys[source]  # M is bounded by synthesis.exam_images
    sitting, keys = ExamImages.of(good, own, nsa), exam_keys(own, category, params)
    samples = new_array(folder / "exam_images.npy", (len(EXAM_KINDS), *good.shape), "uint8")
    masks = new_array(folder / "exam_masks.npy", (len(EXAM_KINDS), *good.shape[:3]), "bool")
    workers = params.threads if good[..., 0].size >= DEAR else 0
    others, makers = exam_others(keys, own), exam_makers(sitting, category, params)
    store, digests = ByteCache(KNOWN, params.cache.max_bytes), [roles.digests[row] for row in source]
    kept = KeptSamples(store, good, digests, keys, exam_settings(sitting, params))
    for row, kind in enumerate(EXAM_KINDS):
        missing = kept.fill(kind, others[row], samples[row], masks[row])
        fill_pool((samples[row], masks[row]), makers[kind], missing, workers=workers)
        kept.keep(kind, others[row], missing, samples[row], masks[row])
    return others


def draw_sheet(folder: Path, images: np.ndarray, source: np.ndarray) -> None:
    """Draw contact_sheet.png: a row of good images, then a row of each kind of sample made from them."""
    samples = np.load(folder / "exam_images.npy", mmap_mode="r", allow_pickle=False)
    count = min(SHEET_SOURCES, len(source))
    tiles = [np.asarray(images[row]) for row in source[:count]]
    captions = ["good"] * count
    for kind, name in enumerate(EXAM_KINDS):
        tiles += [np.asarray(sample) for sample in samples[kind, :count]]
        captions += [name] * count
    contact_sheet(tiles, captions, folder / "contact_sheet.png", columns=count)


if __name__ == "__main__":
    run_stage(main, READS)

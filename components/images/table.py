"""One row per image: what validation, drift checks and people want to know about a category's files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.foundation.blas import one_blas_thread
from components.foundation.byte_cache import ByteCache
from components.foundation.dvc_digests import digest_of_images, md5_file
from components.foundation.errors import UserError, printable
from components.foundation.files import digest_of, sha256_file
from components.foundation.limits import ImageLimits
from components.images.dataset import Category, ImageRecord
from components.images.decode import read_image, read_mask_with_header, read_with_header
from components.images.identity import near_duplicates
from components.images.known import Known
from components.images.layout import image_files
from components.images.mask_pairs import mask_roots
from components.images.measures import MEASURES, grey_levels, hash_of, image_facts, size_words
from components.images.perceptual_hash import HashIndex, small_grey

_AT_ONCE = 1000  # rows that exist as dicts: these take ten times the room of the table's
_TEXT = (
    *("name", "split", "kind", "sha256", "md5", "error", "size", "mode", "format", "pixels"),
    *("mask_folder", "mask", "mask_error", "mask_size"),
)
_NUMBERS = (
    *("bytes", "decodes", "width", "height", "short_side", "frames", "orientation", "levels", "highest", *MEASURES),
    *("mask_count", "mask_levels", "mask_area", "mask_percent", "mask_inverted", "mask_frames", "mask_orientation"),
)
_DTYPES = dict.fromkeys(_TEXT, "str") | dict.fromkeys([*MEASURES, "highest"], "float64")
LARGE_MASK = 50  # percent of the image: a mask that marks more may be inverted
_FRAME_SHARE = 0.9  # of the pixels along the border, which an inverted mask marks


def image_table(
    category: Category,
    limits: ImageLimits,
    threads: int = 1,
    near_distance: float = 0.05,
    store: ByteCache | None = None,
) -> pd.DataFrame:
    """Describe every image of a category, one row each, in the category's order.

    Columns (missing where the image or its masks cannot be decoded, or there are none):
        name, split, kind: as in ImageRecord, through `printable`.
        bytes, sha256, md5: size and digests of the file. decodes: whether it can be read within `limits`; error: why
            not.
        width, height, short_side (pixels), size ("W×H"): as the eye sees it, after EXIF rotation.
        mode, format: Pillow's names. pixels: digest of the decoded RGB pixels. frames: images in the file, of which
            the first counts. orientation: EXIF's. levels: how many grey levels the image has.
            highest: the highest value stored in a deep grey image.
        brightness, contrast, sharpness, red_share, blue_share: see `measures.image_measures`.
        duplicate_of: for an image, the first image of its split with the same pixels, if it is another one.
        leaked_from: for a test image, the first training image with the same pixels.
        near_leak: for any other test image, the training image that it looks like: of whose perceptual hash at most
            the share `near_distance` differs.
        group: for a training image that has near-duplicates among them, the smallest digest of these and its own.
            near_duplicate_of: the first of them, if it is another one and does not show the same pixels.
        labelled_as: for a test image, the kind of another test image with the same pixels that has another kind.
        mask_folder: where this defect kind's masks are, if it has any. mask: name of this image's first one.
        mask_count: how many it has.
        mask_error: why a mask cannot be decoded. mask_levels: most distinct values in one mask.
        mask_size: "W×H" of the masks, of one that differs from the image if any does. mask_area: defective pixels.
        mask_percent: of the image that is marked. mask_inverted: 1 if it looks inverted (more than half of the image is
            marked, and nearly all of its border), else 0. mask_frames, mask_orientation: as of images.

    Images are read one at a time per thread: memory does not grow with their number beyond the table. store: where what
    an image file is like is kept from run to run, if it is.
    """
    known = Known(store or ByteCache(Path(), 0), "facts", asdict(limits))
    folders, pieces = _mask_folders(category), []
    hashes: list[np.ndarray | None] = []  # not in the table, where in hex they would take as much room as all the rest
    # Each image has a thread already: threads of the linear algebra beside these would only wait for each other.
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        for at in range(0, len(category.records), _AT_ONCE):
            records = category.records[at : at + _AT_ONCE]
            digests = list(pool.map(lambda record: sha256_file(record.path), records))
            facts = known.facts(digests)
            facts_of = partial(_facts_of, facts=facts, limits=limits)
            found = list(pool.map(facts_of, records, digests))
            pairs = zip(digests, found, strict=True)
            known.keep_facts({digest: own for digest, own in pairs if digest not in facts and own["decodes"]})
            described = partial(_row, root=category.root, limits=limits, mask_folders=folders)
            rows = list(pool.map(described, records, digests, found))
            hashes += [hash_of(row["hash"]) if row["decodes"] else None for row in rows]
            pieces.append(pd.DataFrame(rows, columns=[*_TEXT, *_NUMBERS]).astype(_DTYPES))
    table = _with_duplicates(pd.concat(pieces, ignore_index=True))
    table["near_leak"] = _near_leaks(table, hashes, category, limits, near_distance)
    return _with_groups(table, hashes, category, limits, near_distance)


def data_digest(category: Category, table: pd.DataFrame) -> str:
    """SHA-256 of the sorted list of (name, SHA-256) of all files of the category that are used, masks included."""
    masks = {mask for record in category.records for mask in record.masks}
    files = [[_name(mask, category.root), sha256_file(mask)] for mask in masks]
    return digest_of(sorted([*files, *table[["name", "sha256"]].values.tolist()]))


def learned_images(table: pd.DataFrame) -> dict[str, Any]:
    """What is learned from: `images`, the SHA-256 of each training image by name, and what does not depend on names.

    That is `data_digest`, of the images that are there, by which `flawline data versions` names them too, and
    `near_duplicates`, the digests of images that look alike.
    """
    learned = table[table["split"] == "train"]
    images = dict(learned[["name", "sha256"]].values.tolist())
    alike = [sorted(set(own)) for _, own in learned.dropna(subset="group").groupby("group")["sha256"]]
    return {"images": images, "data_digest": digest_of_images(learned["md5"]), "near_duplicates": alike}


def good_values(table: pd.DataFrame, measure: str, split: str) -> np.ndarray:
    """A measure of the good images of one split ("train" or "test") that can be decoded: (N,) float64."""
    return table.loc[(table["split"] == split) & (table["kind"] == "good"), measure].dropna().to_numpy()


def _mask_folders(category: Category) -> dict[str, str]:
    """The folder with the masks of each defect kind for which there are any: then each image needs one."""
    found: dict[str, Path] = {}
    roots = mask_roots(category.root)
    for record in category.records:
        if record.masks:
            found.setdefault(record.kind, _folder_of(record.masks[0], roots))
    for kind in {record.kind for record in category.records if not record.is_good} - found.keys():
        folder = next((root / kind for root in roots if image_files(root / kind)), None)
        if folder is not None:
            found[kind] = folder
    return {kind: _name(folder, category.root) for kind, folder in found.items()}


def _folder_of(mask: Path, roots: list[Path]) -> Path:
    """The folder in which the masks of a mask's kind are: in ground_truth, itself, or beside the images."""
    own = next((root for root in roots if mask.is_relative_to(root)), None)
    return own / mask.relative_to(own).parts[0] if own and mask.parent != own else mask.parent


def _row(
    record: ImageRecord,
    digest: str,
    facts: dict[str, Any],
    root: Path,
    limits: ImageLimits,
    mask_folders: dict[str, str],
) -> dict[str, Any]:
    """A row; digest: SHA-256 of the file. facts: `_image_facts` of it."""
    row: dict[str, Any] = {"name": _name(record.path, root), "split": record.split, "kind": printable(record.kind)}
    row |= {"bytes": record.path.stat().st_size, "sha256": digest}
    row |= {"md5": md5_file(record.path)}
    row |= {"mask_folder": mask_folders.get(record.kind)}
    row |= facts
    return row | _mask_facts(record.masks, root, limits, row.get("size"))


def _facts_of(record: ImageRecord, digest: str, facts: dict[str, Any], limits: ImageLimits) -> dict[str, Any]:
    return facts.get(digest) or _image_facts(record, limits)


def _image_facts(record: ImageRecord, limits: ImageLimits) -> dict[str, Any]:
    """What the file's bytes alone decide."""
    try:
        decoded = read_with_header(record.path, limits)
    except UserError as error:
        return {"decodes": False, "error": _problem(error, record.path)}
    height, width = decoded.pixels.shape[:2]
    row = {"decodes": True, "format": decoded.format, "width": width, "height": height}
    row |= {"frames": decoded.frames, "orientation": decoded.orientation, "levels": grey_levels(decoded.pixels)}
    row |= {"highest": decoded.highest}
    return row | image_facts(decoded.pixels, decoded.mode)


def _mask_facts(masks: tuple[Path, ...], root: Path, limits: ImageLimits, size: str | None) -> dict[str, Any]:
    facts = [_one_mask(path, root, limits) for path in masks]
    decoded = [fact for fact in facts if "mask_error" not in fact]
    broken = [fact["mask_error"] for fact in facts if "mask_error" in fact]
    row: dict[str, Any] = {"mask_count": len(facts), "mask": next((_name(path, root) for path in masks), None)}
    if broken:
        row["mask_error"] = broken[0]
    if decoded:
        sizes = [fact["mask_size"] for fact in decoded]
        row["mask_size"] = next((other for other in sizes if other != size), sizes[0])
        row["mask_area"] = sum(fact["mask_area"] for fact in decoded)
        for name in ("mask_levels", "mask_percent", "mask_inverted", "mask_frames", "mask_orientation"):
            row[name] = max(fact[name] for fact in decoded)
    return row


def _one_mask(path: Path, root: Path, limits: ImageLimits) -> dict[str, Any]:
    try:
        mask = read_mask_with_header(path, limits)
    except UserError as error:
        return {"mask_error": f"{_name(path, root)} {_problem(error, path)}"}
    marked = mask.marked  # (H, W)
    facts = {"mask_size": size_words(marked), "mask_levels": mask.levels, "mask_area": int(marked.sum())}
    facts |= {"mask_percent": 100 * float(marked.mean()), "mask_inverted": float(_looks_inverted(marked))}
    return facts | {"mask_frames": mask.frames, "mask_orientation": mask.orientation}


def _looks_inverted(marked: np.ndarray) -> bool:
    """Whether a mask (H, W) marks more than half of its image and nearly all of its border."""
    border = np.concatenate([marked[0], marked[-1], marked[:, 0], marked[:, -1]])
    return float(marked.mean()) > LARGE_MASK / 100 and float(border.mean()) > _FRAME_SHARE


def _problem(error: UserError, path: Path) -> str:
    """The error without the file's place on this machine and without the advice: "cannot be decoded (…)"."""
    return printable(str(error).rpartition(": ")[0].removeprefix(f"{path} ").replace(str(path), path.name))


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _with_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Fill `duplicate_of`, `leaked_from` and `labelled_as` from the digests of the pixels."""
    is_train = table["split"] == "train"
    learned, tested = (_twins(table[of_split & table["pixels"].notna()], table) for of_split in (is_train, ~is_train))
    own = learned["name"].where(is_train, tested["name"])
    table["duplicate_of"] = own.where(own != table["name"], None)
    table["leaked_from"] = learned["name"].where(~is_train, None)
    kind = tested["kind"]
    table["labelled_as"] = kind.where(~is_train & kind.notna() & (kind != table["kind"]), None)
    return table


def _twins(among: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """For each row of the table, name and kind of the first of some images with the same pixels."""
    first = among.drop_duplicates("pixels").set_index("pixels")
    return pd.DataFrame({column: table["pixels"].map(first[column]).astype(object) for column in ("name", "kind")})


def _near_leaks(
    table: pd.DataFrame, hashes: Sequence[np.ndarray | None], category: Category, limits: ImageLimits, distance: float
) -> pd.Series:
    """The column `near_leak`; few images are read again, as few are near by their own hash alone."""
    found = pd.Series(None, table.index, dtype=object)
    known, is_train = table["pixels"].notna(), table["split"] == "train"
    tested = table.index[known & ~is_train & table["leaked_from"].isna()]
    index = HashIndex()
    for place, name in table.loc[known & is_train, "name"].items() if len(tested) else ():
        index.add(name, hashes[place])
    for place in tested:
        grey = partial(_small_grey, category.records[place].path, limits)
        nearest = index.nearest(hashes[place], grey)
        found[place] = nearest[0] if nearest and nearest[1] <= distance else None
    return found


def _with_groups(
    table: pd.DataFrame, hashes: Sequence[np.ndarray | None], category: Category, limits: ImageLimits, distance: float
) -> pd.DataFrame:
    """Fill `group` and `near_duplicate_of`; few images are read again, as few are near by their own hash alone."""
    learned = table[(table["split"] == "train") & table["pixels"].notna()].drop_duplicates("sha256")
    places = dict(zip(learned["sha256"], learned.index.tolist(), strict=True))
    own = {digest: found for digest, place in places.items() if (found := hashes[place]) is not None}
    groups = near_duplicates(own, lambda digest: _small_grey(category.records[places[digest]].path, limits), distance)
    group = {digest: alike[0] for alike in groups for digest in alike}
    is_train = table["split"] == "train"
    table["group"] = table["sha256"].map(group).astype(object).where(is_train, None)
    first = table.loc[table["group"].notna(), ["group", "name"]].drop_duplicates("group").set_index("group")["name"]
    named = table["group"].map(first).astype(object)
    table["near_duplicate_of"] = named.where((named != table["name"]) & table["duplicate_of"].isna(), None)
    return table


def _small_grey(path: Path, limits: ImageLimits) -> np.ndarray:
    return small_grey(read_image(path, limits))

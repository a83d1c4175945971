"""List a category on disk: MVTec AD's layout and its relatives (LOCO's structural part, VisA's 1-class, BTAD)."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from components.errors import UserError
from components.images import EXTENSIONS

GOOD_NAMES = ("good", "ok")
LOGICAL = "logical_anomalies"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class ImageRecord:
    """One image of a category.

    Attributes:
        path: the file.
        name: its path inside the category, with forward slashes.
        split: "train" or "test".
        kind: "good", or the name of the defect kind (the folder's name).
        masks: ground-truth masks; several where a defect has several regions (LOCO), none where unknown.
    """

    path: Path
    name: str
    split: str
    kind: str
    masks: tuple[Path, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the image shows no defect."""
        return self.kind == "good"


@dataclass(frozen=True)
class Category:
    """A product on a line, as a folder of images."""

    name: str
    root: Path
    records: tuple[ImageRecord, ...]

    @property
    def train(self) -> list[ImageRecord]:
        """The good images to learn from, in a fixed order (by name)."""
        return [record for record in self.records if record.split == "train"]

    @property
    def test(self) -> list[ImageRecord]:
        """The images to evaluate on, good ones first, in a fixed order."""
        return [record for record in self.records if record.split == "test"]

    def counts(self) -> dict[str, int]:
        """Number of images per "split/kind"."""
        return dict(Counter(f"{record.split}/{record.kind}" for record in self.records))


def list_category(root: Path) -> Category:
    """List the images of the category in folder `root` (train/good, test/KIND, ground_truth/KIND, masks optional).

    BTAD's "ok", VisA's mask names (NAME.png) and LOCO's folders of masks are understood; LOCO's validation images
    count as training images and its logical anomalies, which no local method can see, are left out.
    Raises UserError where the folder is missing, its name is unfit, or it has no good training image.
    """
    check_category_name(root.name)
    if not root.is_dir():
        raise UserError(f"There is no category folder at {root}: check data.root and data.categories in params.yaml.")
    records = list_records(root)
    if not any(record.split == "train" for record in records):
        raise UserError(f"{root} has no image in train/good: put the good images there (MVTec AD layout).")
    return Category(root.name, root, records)


def list_records(root: Path) -> tuple[ImageRecord, ...]:
    """The images of a folder in that layout, training images first; none where the folder is not laid out so."""
    return (*_train_records(root), *_test_records(root))


def find_categories(root: Path) -> list[str]:
    """Names of the folders in `root` which hold a train/good (or train/ok) folder, sorted."""
    if not root.is_dir():
        raise UserError(f"There is no data folder at {root}: check the path.")
    found = sorted(path.name for path in root.iterdir() if any((path / "train" / name).is_dir() for name in GOOD_NAMES))
    if not found:
        raise UserError(f"{root} holds no category: each needs a folder NAME/train/good with good images.")
    return found


def check_category_name(name: str) -> None:
    """Raise UserError unless `name` can name a category: ASCII letters, digits, hyphen, underscore."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a category: use letters, digits, '-' and '_', beginning with a letter or digit."
        )


def _train_records(root: Path) -> list[ImageRecord]:
    folders = [root / split / name for split in ("train", "validation") for name in GOOD_NAMES]
    return [_record(root, path, "train", "good") for folder in folders for path in image_files(folder)]


def _test_records(root: Path) -> list[ImageRecord]:
    test = root / "test"
    folders = sorted(path for path in test.iterdir() if path.is_dir()) if test.is_dir() else []
    good = [folder for folder in folders if folder.name in GOOD_NAMES]
    bad = [folder for folder in folders if folder.name not in (*GOOD_NAMES, LOGICAL)]
    records = [_record(root, path, "test", "good") for folder in good for path in image_files(folder)]
    for folder in bad:
        masks = _masks_by_stem(root / "ground_truth" / folder.name)
        records += [_record(root, path, "test", folder.name, masks.get(path.stem, ())) for path in image_files(folder)]
    return records


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by their extension, sorted by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())


def _masks_by_stem(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Masks of one defect kind by the stem of the image they belong to."""
    masks: dict[str, tuple[Path, ...]] = {path.stem.removesuffix("_mask"): (path,) for path in image_files(folder)}
    if folder.is_dir():
        masks |= {path.name: tuple(image_files(path)) for path in folder.iterdir() if path.is_dir()}
    return masks


def _record(root: Path, path: Path, split: str, kind: str, masks: tuple[Path, ...] = ()) -> ImageRecord:
    return ImageRecord(path, path.relative_to(root).as_posix(), split, kind, masks)

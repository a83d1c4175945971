"""List a category on disk: MVTec AD's layout and its relatives (LOCO's structural part, VisA's 1-class, BTAD)."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from components.foundation.errors import UserError, printable
from components.foundation.names import check_category_name, check_category_names
from components.images.layout import LOGICAL, folders_in, image_files, is_good_name, name_key
from components.images.mask_pairs import MaskPairs, is_test_mask_root, masks_beside, pair_masks


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

    BTAD's "ok", VisA's mask names (NAME.png) and LOCO's folders of masks are understood, good and ok in any case, and
    masks in other usual places (`components.images.mask_pairs`). LOCO's validation images count as training images and
    its logical anomalies, which no local method can see, are left out. `components.images.left_out` names what is not
    listed. Raises UserError where the folder is missing, its name is unfit, or it has no good training image.
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
    """Names of the folders in `root` which hold a train/good (or train/ok) folder, sorted; hidden ones are none.

    Raises UserError where there is none, or one has a name that no category can have.
    """
    if not root.is_dir():
        raise UserError(f"There is no data folder at {root}: check the path.")
    found = category_names(root)
    if not found:
        raise UserError(f"{root} holds no category: each needs a folder NAME/train/good with good images.")
    try:
        check_category_names(found)
    except UserError as error:
        raise UserError(f"A folder in {printable(str(root))}: {error}") from error
    return found


def category_names(root: Path) -> list[str]:
    """`find_categories`, but none where there is none."""
    return [path.name for path in folders_in(root) if good_folders(path / "train")]


def good_folders(split: Path) -> list[Path]:
    """The folders of good images in train, validation or test, sorted."""
    return [path for path in folders_in(split) if is_good_name(path.name)]


def defect_folders(root: Path) -> list[Path]:
    """The folders of the kinds of defects in a category's test folder, sorted."""
    kinds = [path for path in folders_in(root / "test") if not is_good_name(path.name)]
    return [path for path in kinds if name_key(path.name) != LOGICAL and not is_test_mask_root(path)]


def find_masks(root: Path) -> MaskPairs:
    """The masks of a category's defective images, and what is not clear about them."""
    return pair_masks(root, {folder.name: _images(folder) for folder in defect_folders(root)})


def _train_records(root: Path) -> list[ImageRecord]:
    folders = [folder for split in ("train", "validation") for folder in good_folders(root / split)]
    return [_record(root, path, "train", "good") for folder in folders for path in _images(folder)]


def _test_records(root: Path) -> list[ImageRecord]:
    good = good_folders(root / "test")
    records = [_record(root, path, "test", "good") for folder in good for path in _images(folder)]
    masks = find_masks(root).masks
    for folder in defect_folders(root):
        records += [_record(root, path, "test", folder.name, masks.get(path, ())) for path in _images(folder)]
    return records


def _images(folder: Path) -> list[Path]:
    """The images of one kind, without the masks that may lie beside them."""
    masks = set(masks_beside(folder))
    return [path for path in image_files(folder) if path not in masks]


def _record(root: Path, path: Path, split: str, kind: str, masks: tuple[Path, ...] = ()) -> ImageRecord:
    return ImageRecord(path, path.relative_to(root).as_posix(), split, kind, masks)

"""Images on which a person has overruled a model: missed defects and false alarms, kept as evidence for all that come.

`evidence/CATEGORY/` holds of each image its bytes, named by their digest, a mask where there is one, and a record
(JSON) with the person's verdict, and the champion's at that time. The folder is under DVC and outside of the data:
nothing in it is learned from. What judges models (the gate, `flawline compare`, `flawline status`) asks
`list_evidence` for the images and their truth; `Evidence.record` is the image in the form that the test images have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.foundation.errors import UserError
from components.foundation.files import copy_file, is_digest, read_json, sha256_file, write_json
from components.foundation.limits import ImageLimits
from components.foundation.names import check_category_name
from components.images.dataset import ImageRecord
from components.images.decode import read_image, read_mask

if TYPE_CHECKING:
    from components.registry.versions import Version

FOLDER = Path("evidence")
GOOD, DEFECT = "good", "defect"
_RECORD, _MASK = ".json", ".mask.png"


@dataclass(frozen=True)
class Evidence:
    """One image that a person has judged.

    Attributes:
        digest: SHA-256 of the file, 64 hex digits, by which it is known whether a model has learned it.
        file: its name in the category's folder of evidence.
        kind: "good" for a false alarm; else the kind of defect, "defect" where none was named.
        name: what the file was called when it came.
        who, when, note: who judged it, when (ISO 8601, UTC), and the person's own words.
        mask: name of the mask's file; empty for none.
        verdict: the champion's at that time: version, capsule_digest, score, threshold, verdict; empty without one.
        category: whose evidence it is.
    """

    category: str
    digest: str
    file: str
    kind: str
    name: str
    who: str
    when: str
    note: str = ""
    mask: str = ""
    verdict: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether the image shows no defect: an alarm on it is a false one."""
        return self.kind == GOOD

    @property
    def path(self) -> Path:
        """The image, from the project's folder."""
        return folder_of(self.category) / self.file

    @property
    def record(self) -> ImageRecord:
        """The image as a test image of the category, with its mask; its name begins with "evidence/"."""
        masks = (folder_of(self.category) / self.mask,) if self.mask else ()
        return ImageRecord(self.path, f"{FOLDER}/{self.file}", "test", self.kind, masks)


@dataclass(frozen=True)
class Standing:
    """How many of the kept images a version still gets wrong.

    Attributes:
        defects, good: numbers of images that are kept. missed, alarms: those of them on which the version is wrong.
    """

    defects: int
    missed: int
    good: int
    alarms: int

    @property
    def words(self) -> str:
        """All of it in a clause."""
        found = []
        if self.defects:
            found.append(f"misses {self.missed} of {self.defects} defects")
        if self.good:
            found.append(f"calls {self.alarms} of {self.good} good images defective")
        return " and ".join(found)


def folder_of(category: str) -> Path:
    """Where a category's evidence is, from the project's folder."""
    check_category_name(category)
    return FOLDER / category


def dvc_file_of(category: str) -> Path:
    """DVC's file on a category's evidence."""
    return folder_of(category).with_name(f"{category}.dvc")


def list_evidence(category: str) -> list[Evidence]:
    """All evidence of a category, the oldest first; none where there is none.

    Raises UserError for a damaged record, and where the folder is not as its .dvc file says, as in a fresh clone.
    """
    folder = folder_of(category)
    if not folder.is_dir() and dvc_file_of(category).is_file():
        raise UserError(f"The evidence of {category} is not here: fetch it with `flawline data pull {category}`.")
    return sorted((_read(path) for path in folder.glob(f"*{_RECORD}")), key=lambda one: (one.when, one.digest))


def keep_evidence(evidence: Evidence, image: Path, mask: Path | None) -> None:
    """Copy an image and its mask to the evidence, with the record last; the same again replaces mask and record.

    Nothing is known of an image whose record is not there: what a killed process left is replaced by the next call.
    """
    folder = folder_of(evidence.category)
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((image, evidence.file), (mask, evidence.mask)):
        if source is not None and not _is_same(source, folder / name):
            beside = folder / f".{name}.part"
            copy_file(source, beside)
            beside.replace(folder / name)
    content = {name: value for name, value in asdict(evidence).items() if name != "category"}
    write_json(folder / f"{evidence.digest}{_RECORD}", content)
    if not evidence.mask:
        (folder / f"{evidence.digest}{_MASK}").unlink(missing_ok=True)


def make_evidence(
    category: str,
    image: Path,
    mask: Path | None,
    limits: ImageLimits,
    *,
    kind: str,
    note: str,
    who: str,
    when: str,
    verdict: Mapping[str, Any],
) -> Evidence:
    """What is to be kept of an image; UserError where image or mask cannot be read, or do not go together."""
    if kind == GOOD and mask is not None:
        raise UserError(f"A good image has no defect, and so no mask ({mask}): leave --mask out, or say --is defect.")
    pixels = read_image(image, limits)
    if mask is not None and (size := read_mask(mask, limits).shape) != pixels.shape[:2]:
        sizes = f"{size[1]} × {size[0]} pixels, its image {pixels.shape[1]} × {pixels.shape[0]}"
        raise UserError(f"The mask {mask} is {sizes}: give the mask of this image.")
    digest = sha256_file(image)
    file, mask_file = f"{digest}{image.suffix.lower()}", f"{digest}{_MASK}" if mask else ""
    return Evidence(category, digest, file, kind, image.name, who, when, note, mask_file, verdict)


def check_not_learned(category: str, records: Sequence[ImageRecord]) -> None:
    """Raise UserError where an image that is offered for training is kept as evidence: it would prove nothing then."""
    known = {one.digest: one for one in list_evidence(category)}
    training = [record for record in records if record.split == "train"] if known else []
    for record in training:
        if one := known.get(sha256_file(record.path)):
            raise UserError(
                f"{record.path} is kept as evidence ({one.path}, {one.kind}), and a model that has learned it cannot "
                "be judged by it: take it out of what is added, or remove it from the evidence first."
            )


def standing(version: "Version", evidence: Sequence[Evidence], limits: ImageLimits) -> Standing:
    """How a version judges the evidence; what it has scored before is not scored again."""
    from components.registry.kept_scores import scores_of  # torch takes seconds to import, and much here needs none
    from components.registry.versions import download_capsule

    capsule = download_capsule(version.category, version.number)
    scores = scores_of(capsule, version.digest, [one.path for one in evidence], limits)
    judged = [(one.is_good, score > version.threshold) for one, score in zip(evidence, scores, strict=True)]
    good = [alarm for is_good, alarm in judged if is_good]
    defects = [alarm for is_good, alarm in judged if not is_good]
    return Standing(len(defects), defects.count(False), len(good), good.count(True))


def _read(path: Path) -> Evidence:
    digest = path.name.removesuffix(_RECORD)
    try:
        found = Evidence(category=path.parent.name, **read_json(path))
    except (ValueError, TypeError) as error:
        raise UserError(f"The record {path} is damaged: restore it with `dvc checkout {path.parent}.dvc`.") from error
    if not is_digest(digest) or found.digest != digest or not found.path.is_file():
        raise UserError(f"The image of {path} is not beside it: restore it with `dvc checkout {path.parent}.dvc`.")
    return found


def _is_same(source: Path, target: Path) -> bool:
    return target.is_file() and sha256_file(source) == sha256_file(target)

"""What an update keeps of the version that it begins with: encoders and compositions, but no density, no threshold.

The stage train copies it into its output instead of training, and the stage fit takes it from there instead of holding
an exam. All else is the ordinary code, so an update is a fit of the same compositions to the images that there are now.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from components.detection.capsule import checked_card
from components.detection.card import read_roles
from components.detection.detector import Composition
from components.foundation.errors import UserError
from components.foundation.files import read_json, write_json
from components.foundation.params import Params
from components.foundation.pin import Pin
from components.learning.backbone import Encoder, load_encoder
from components.learning.head import FILE as HEAD_FILE
from components.learning.head import load_head
from components.synthesis.methods import PRETRAINED

ENCODERS, INDEX = "kept", "kept.json"
UPDATED = "updated"  # in a capsule's provenance


@dataclass(frozen=True)
class Kept:
    """What is kept of a version.

    Attributes:
        pin: which version.
        image, map: its compositions for the image score and for the anomaly map.
        encoders, heads: by name.
        selection: what its capsule says of its own exam.
        learned: digests of the good images that it knew.
        full_images: how many there were when encoder and compositions were chosen, in a version before any update.
    """

    pin: Pin
    image: tuple[Composition, ...]
    map: tuple[Composition, ...]
    encoders: Mapping[str, Encoder]
    heads: Mapping[str, nn.Sequential]
    selection: Mapping[str, Any]
    learned: tuple[str, ...]
    full_images: int

    @property
    def all(self) -> list[Composition]:
        """Every composition once."""
        return list(dict.fromkeys([*self.image, *self.map]))

    @property
    def encoder(self) -> str:
        """The representation that was chosen."""
        return str(self.selection["encoder"])

    @property
    def is_taught(self) -> bool:
        """Whether an encoder that was trained on the category serves."""
        return any(composition.encoder != PRETRAINED for composition in self.all)

    def provenance(self, digests: Sequence[str]) -> dict[str, Any]:
        """What a capsule says of its origin, that knows the good images with these digests."""
        added = sorted(set(digests) - set(self.learned))
        removed = sorted(set(self.learned) - set(digests))
        words = f"updated from version {self.pin.version} with {len(added)} images"
        return {
            "of_version": self.pin.version,
            "of_capsule": self.pin.capsule,
            "added": added,
            "removed": removed,
            "full_images": self.full_images,
            "in_words": f"{words}, without {len(removed)} that it knew" if removed else words,
        }


def check_updatable(card: Mapping[str, Any], params: Params) -> None:
    """Raise UserError where a version cannot be updated: it was made otherwise, or has no density to fit again."""
    made = card["provenance"]["params"]
    wanted = {"method": params.method, "image.side": params.image.side, "backbone.name": params.backbone.name}
    then = {"method": card["method"], "image.side": card["size"], "backbone.name": made["backbone"]["name"]}
    if other := [f"{name}: {then[name]} then, {now} now" for name, now in wanted.items() if then[name] != now]:
        raise UserError(f"it was made with other parameters ({', '.join(other)})")
    if card["networks"] or not card["parts"]:
        raise UserError("the network that draws its map was trained on its images, and no update trains it")


def keep(pin: Pin, category: str, params: Params, folder: Path) -> None:
    """Write what is kept of the version's capsule into `folder`; UserError where that is lacking, damaged or unfit."""
    if not pin.folder.is_dir():
        raise UserError(
            f"{category} is to be updated from version {pin.version}, whose capsule {pin.capsule[:12]} is not here: "
            f"fetch it with `python -m flows.retraining.bases {category}`, or run `flawline run {category}`."
        )
    card = checked_card(pin.folder)
    if card["digest"] != pin.capsule:
        raise UserError(f"The capsule at {pin.folder} is another one: delete it, and run again.")
    try:
        check_updatable(card, params)
    except UserError as error:
        raise UserError(
            f"Version {pin.version} cannot be updated, as {error}: run `flawline run {category}`."
        ) from error
    for name in card["encoders"]:
        shutil.copytree(pin.folder / "encoders" / name, folder / ENCODERS / name)
    roles = read_roles(pin.folder)
    learned = list(roles.digests) if roles else []
    before = card["provenance"].get(UPDATED, {})
    index = {
        "version": pin.version,
        "capsule": pin.capsule,
        "parts": [{k: part[k] for k in ("composition", "for_image", "for_map")} for part in card["parts"]],
        "encoders": card["encoders"],
        "selection": card["selection"],
        "learned": learned,
        "full_images": before.get("full_images", len(learned)),
    }
    write_json(folder / INDEX, index)


def load_kept(folder: Path) -> Kept | None:
    """What the stage train kept; None where it trained."""
    if not (folder / INDEX).is_file():
        return None
    index = read_json(folder / INDEX)
    places = {name: folder / ENCODERS / name for name in index["encoders"]}
    image, maps = (
        tuple(Composition.from_json(part["composition"]) for part in index["parts"] if part[use])
        for use in ("for_image", "for_map")
    )
    return Kept(
        pin=Pin(index["version"], index["capsule"]),
        image=image,
        map=maps,
        encoders={name: load_encoder(place) for name, place in places.items()},
        heads={name: load_head(place) for name, place in places.items() if (place / HEAD_FILE).is_file()},
        selection=index["selection"],
        learned=tuple(index["learned"]),
        full_images=index["full_images"],
    )

"""The capsule: the folder that is registered, served, exported, rebuilt and compared.

`roles.json` names by their digests the good images that it has learned and held out (`components.images.identity`).
`capsule.json` says what it is (category, method, geometry, threshold, provenance) and lists the SHA-256 of every other
file; `encoders/NAME/`, `networks/INDEX/` and `density.safetensors` are its weights and statistics; `golden/` holds
reference inputs with the scores and maps that they must get. Its identity is the digest of its content. Nothing in it
is a pickle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from components.detection import conformal
from components.detection.card import FORMAT, ROLES, read_card, read_roles
from components.detection.detector import Composition, Detector, Part
from components.detection.network_part import NetworkPart
from components.detection.promise import Promise
from components.detection.scale import Scale
from components.foundation.errors import UserError
from components.foundation.files import digest_of, new_directory, sha256_file, write_bytes, write_json
from components.images.identity import Roles
from components.learning.backbone import load_encoder, save_encoder
from components.learning.decoder import load_network, save_network
from components.learning.head import FILE as HEAD_FILE
from components.learning.head import load_head, save_head

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Capsule:
    """A detector with what is needed to use and to trust it.

    Attributes:
        category, method: what it inspects, and how it was made.
        detector: scores images.
        threshold: image scores above it are alarms.
        calibration: (n,) float32 scores of good images by what had not learned them, ascending; of near-duplicates the
            highest.
        selection: what the exam said, and which compositions were kept.
        provenance: data digest, parameters, library versions; the version's git commit says which code.
        map_range: (low, high) of the colour scale of its maps; None in a capsule that was made before there was one.
        digest: identity of the content; empty until it is written.
        bits: how deep grey images become 8 bits, as those did that were learned (`components.images.depth`).
        roles: what each good image was for; None in a capsule that was made before they were kept.
    """

    category: str
    method: str
    detector: Detector
    threshold: float
    calibration: np.ndarray
    selection: Mapping[str, Any]
    provenance: Mapping[str, Any]
    map_range: tuple[float, float] | None = None
    digest: str = ""
    bits: int = 16
    roles: Roles | None = None

    def score(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """`Detector.score`: image scores (N,) float32 and anomaly maps (N, size, size) float32."""
        return self.detector.score(images)

    @property
    def promise(self) -> Promise:
        """What the threshold promises; UserError in a capsule that was made before this was kept, or of another one."""
        try:
            promise = Promise.from_json(self.selection["promise"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"The capsule of {self.category} does not say what its threshold promises: make it anew with "
                "`flawline run`."
            ) from error
        if promise.value != self.threshold:
            raise UserError(f"The capsule of {self.category} has a promise of another threshold: make it anew.")
        return promise

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """Conformal p-values (N,) in (0, 1]: how often a good image scores at least that high."""
        return conformal.p_values(self.calibration, scores)


def save_capsule(capsule: Capsule, golden: np.ndarray, folder: Path) -> str:
    """Write the capsule to `folder`, whole or not at all, and return its digest.

    golden: uint8 (G, S, S, 3) reference inputs, whose scores and maps are computed here and kept.
    """
    with new_directory(folder) as beside:
        for name, encoder in capsule.detector.encoders.items():
            (beside / "encoders" / name).mkdir(parents=True)
            save_encoder(encoder, beside / "encoders" / name)
            if name in capsule.detector.heads:
                save_head(capsule.detector.heads[name], beside / "encoders" / name)
        for index, part in enumerate(capsule.detector.networks):
            save_network(part.network, beside / "networks" / str(index))
        write_bytes(beside / "density.safetensors", save(_density_arrays(capsule)))
        if capsule.roles:
            write_json(beside / ROLES, capsule.roles.to_json())
        (beside / "golden").mkdir()
        scores, maps = capsule.score(golden)
        reference = {"images": golden, "scores": scores, "maps": maps}
        write_bytes(beside / "golden" / "golden.safetensors", save(reference))
        card = _card(capsule, beside)
        write_json(beside / "capsule.json", card)
    return str(card["digest"])


def load_capsule(folder: Path) -> Capsule:
    """Read a capsule, check the digest of every file, and score the golden inputs again.

    Raises UserError where anything is missing, changed, of another format, or scores otherwise than when it was made.
    """
    card = checked_card(folder)
    arrays = load_file(folder / "density.safetensors")
    encoders = {name: load_encoder(folder / "encoders" / name) for name in card["encoders"]}
    heads = {n: load_head(folder / "encoders" / n) for n in encoders if f"encoders/{n}/{HEAD_FILE}" in card["files"]}
    parts = [_part(meta, arrays, index) for index, meta in enumerate(card["parts"])]
    networks = [
        NetworkPart.of_meta(load_network(folder / "networks" / str(index)), meta)
        for index, meta in enumerate(card["networks"])
    ]
    capsule = Capsule(
        category=card["category"],
        method=card["method"],
        detector=Detector(encoders, parts, card["size"], card["sigma"], heads, networks),
        threshold=card["threshold"],
        calibration=arrays["calibration"],
        selection=card["selection"],
        provenance=card["provenance"],
        map_range=tuple(card["map_range"]) if card.get("map_range") else None,
        digest=card["digest"],
        bits=card.get("bits", 16),
        roles=read_roles(folder),
    )
    _check_golden(capsule, folder)
    return capsule


def _card(capsule: Capsule, folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    card = {
        "format": FORMAT,
        "category": capsule.category,
        "method": capsule.method,
        "size": capsule.detector.size,
        "bits": capsule.bits,
        "sigma": capsule.detector.sigma,
        "threshold": capsule.threshold,
        "map_range": capsule.map_range,
        "encoders": sorted(capsule.detector.encoders),
        "parts": [part.meta() for part in capsule.detector.parts],
        "networks": [part.meta() for part in capsule.detector.networks],
        "selection": capsule.selection,
        "provenance": capsule.provenance,
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }
    return {**card, "digest": digest_of(card)}


def _density_arrays(capsule: Capsule) -> dict[str, np.ndarray]:
    arrays = {"calibration": np.sort(capsule.calibration).astype(np.float32)}
    for index, part in enumerate(capsule.detector.parts):
        arrays |= {f"{index}.{name}": np.ascontiguousarray(value) for name, value in part.scorer.arrays().items()}
    return arrays


def _part(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], index: int) -> Part:
    composition = Composition.from_json(meta["composition"])
    prefix = f"{index}."
    own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return Part(
        composition,
        composition.stored_scorer(own),
        Scale(**meta["image_scale"]),
        Scale(**meta["map_scale"]),
        meta["for_image"],
        meta["for_map"],
    )


def checked_card(folder: Path) -> dict[str, Any]:
    """`read_card` of a capsule whose every file is as it was made; raises UserError where one is not."""
    card = read_card(folder)
    content = {name: value for name, value in card.items() if name != "digest"}
    if not _has_digest(content, card.get("digest")):
        raise UserError(f"The capsule at {folder} was changed after it was made (capsule.json): restore or remake it.")
    for name, digest in card["files"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(f"The capsule at {folder} is damaged ({name} is missing or changed): restore or remake it.")
    return card


def _has_digest(content: Mapping[str, Any], digest: Any) -> bool:
    try:
        return digest_of(content) == digest
    except ValueError:  # NaN, which no capsule is written with
        return False


def _check_golden(capsule: Capsule, folder: Path) -> None:
    try:
        golden = load_file(folder / "golden" / "golden.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"The golden inputs of the capsule at {folder} cannot be read: remake it.") from error
    scores, maps = capsule.score(golden["images"])
    worst = float(np.max([_difference(scores, golden["scores"]), _difference(maps, golden["maps"])]))
    if not worst <= TOLERANCE:  # so that NaN is refused too
        raise UserError(
            f"The capsule at {folder} scores its golden inputs differently here (by {worst:.1e}, allowed {TOLERANCE}): "
            "this machine's libraries compute otherwise than the ones it was made with, so it is not served."
        )


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the expected magnitude, which counts as at least one standard deviation."""
    return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1.0)))

"""Score image files with a registered model, for the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components import registry
from components.capsule import Capsule, load_capsule
from components.errors import UserError
from components.figures import map_gallery
from components.images import read_image, resize_image
from components.params import load_params
from components.runtime import use_threads


def category_of(paths: Sequence[Path]) -> str:
    """The one registered category whose name is a folder on every path, or the only one there is.

    Raises UserError where that is not clear.
    """
    known = list(dict.fromkeys(row.category for row in registry.list_status()))
    fitting = [name for name in known if all(name in path.parts for path in paths)]
    if len(fitting) == 1:
        return fitting[0]
    if len(known) == 1:
        return known[0]
    if not known:
        raise UserError("No category has a model yet: run `flawline demo` or `flawline run` first.")
    raise UserError(f"Which product do these images show? Give --category, one of {', '.join(known)}.")


def score_images(paths: Sequence[Path], category: str, version: str, maps: Path | None) -> list[dict[str, Any]]:
    """Score each image; one row each with image, category, version, score, threshold, verdict, p_value and map.

    version: alias or number. maps: folder for one picture (image and anomaly map side by side) of each image.
    """
    params = load_params()
    use_threads(params.threads)
    limits = params.limits.image_limits()
    capsule = load_capsule(registry.download_capsule(category, int(version) if version.isdecimal() else version))
    images = [read_image(path, limits.at_depth(capsule.bits)) for path in paths]
    scores, anomaly_maps = capsule.score(images)
    rows = []
    for row, (path, score) in enumerate(zip(paths, scores.tolist(), strict=True)):
        picture = _draw(capsule, images[row], anomaly_maps[row], score, path, maps) if maps else None
        rows.append(
            {
                "image": str(path),
                "category": category,
                "version": version,
                "score": score,
                "threshold": capsule.threshold,
                "verdict": "defect" if score > capsule.threshold else "good",
                "p_value": float(capsule.p_values(scores[row : row + 1])[0]),
                "map": str(picture) if picture else None,
            }
        )
    return rows


def _draw(capsule: Capsule, image: Any, anomaly_map: Any, score: float, path: Path, folder: Path) -> Path:
    verdict = "defect" if score > capsule.threshold else "good"
    picture = folder / f"{path.parent.name}-{path.stem}.png"
    shown = resize_image(image, capsule.detector.size)
    title = f"{capsule.category}: {path.name}"
    map_gallery(
        [shown], [anomaly_map], None, [score], [verdict], picture, capsule.map_range, capsule.threshold, title=title
    )
    return picture

"""How well the perceptual hash tells copies of an image from other images of the same product.

python -m benchmarks.near_duplicates FOLDER…   (categories in MVTec layout); prints one line per category.
"""

import argparse
import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from components.foundation.limits import ImageLimits
from components.images.decode import read_image
from components.images.perceptual_hash import HashIndex, distance, image_hashes, own_hash, small_grey

COPIED = 40  # images of which changed copies are made


def main() -> None:
    """Print for each category the largest distance of a changed copy, and the smallest ones of different images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        images = [read_image(path, ImageLimits()) for path in sorted(folder.glob("t*/*/*.png"))]
        copies = {name: max(values) for name, values in copy_distances(images[:COPIED]).items()}
        nearest = ", ".join(f"{value:.3f}" for value in nearest_distances(images)[:5])
        words = ", ".join(f"{name} {value:.3f}" for name, value in copies.items())
        print(f"{folder.name}: {len(images)} images; copies at most: {words}; different images: {nearest}, …")


def copy_distances(images: list[np.ndarray]) -> dict[str, list[float]]:
    """Distances of changed copies of (H, W, 3) uint8 images to the images, by the change."""
    found: dict[str, list[float]] = {}
    for image in images:
        own = image_hashes(image)[0]
        for name, copy in changed_copies(image).items():
            found.setdefault(name, []).append(distance(image_hashes(copy), own))
    return found


def changed_copies(image: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of a (H, W, 3) uint8 image as careless handling makes them."""
    moved = np.pad(image, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1]
    brighter = np.clip(1.05 * moved, 0, 255).astype(np.uint8)
    return {"jpeg 70": _jpeg(image, 70), "jpeg 50": _jpeg(image, 50), "moved": moved, "all three": _jpeg(brighter, 70)}


def nearest_distances(images: list[np.ndarray]) -> list[float]:
    """For each image the distance to the nearest of those before it, ascending; images without a near one left out."""
    index, found = HashIndex(), []
    for number, image in enumerate(images):
        grey = small_grey(image)
        if nearest := index.nearest(own_hash(grey), partial(np.asarray, grey)):
            found.append(nearest[1])
        index.add(str(number), own_hash(grey))
    return sorted(found)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


if __name__ == "__main__":
    main()

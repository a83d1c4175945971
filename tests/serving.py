"""Images as clients send them to a served model."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def sizes(count: int) -> list[np.ndarray]:
    """Images (H, W, 3) uint8 of as many sizes, each darker than the one before."""
    generator = np.random.default_rng(1)
    sides = [(24 + 7 * number, 40 + 5 * (number % 4)) for number in range(count)]
    return [generator.integers(0, 255 - 8 * i, (*side, 3), dtype=np.uint8) for i, side in enumerate(sides)]


def png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file of (H, W, 3) uint8."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def text(image: np.ndarray) -> str:
    """The same in base64."""
    return base64.b64encode(png(image)).decode()


def frame(values: list[Any], column: str = "image") -> Any:
    """A table with one column."""
    import pandas as pd

    return pd.DataFrame({column: values})

"""The model as MLflow loads and serves it: this file is stored beside the capsule and run (models from code).

`mlflow models serve` and `mlflow.pyfunc.load_model` get it from there; nothing is unpickled. Images come as the bytes
of an image file or as their base64 text, one a row in the column `image`.
"""

import base64
import binascii
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

from components.detection.capsule import Capsule, load_capsule
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.images.decode import decode_image, resize_image

COLUMN = "image"
LIMITS = ImageLimits(max_pixels=50_000_000, max_bytes=50_000_000)


class RefusalError(MlflowException):
    """A sentence for the client, which stays as it is: MLflow's server would put the data it was sent before it."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The sentence."""
        return self._sentence

    @message.setter
    def message(self, _text: str) -> None:
        pass


class FlawlinePyfunc(PythonModel):
    """A capsule behind MLflow's `predict`."""

    capsule: Capsule

    def load_context(self, context: PythonModelContext) -> None:
        """Load the capsule, which checks its digests and scores its golden inputs again."""
        self.capsule = load_capsule(Path(context.artifacts["capsule"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score the images in the column `image`, one row each.

        Columns of the result: `category` and `capsule_digest` (registered versions have it as a tag of that name, by
        which MLflow finds them), `image_score` (higher is more anomalous), `threshold`, `is_anomalous` (the score is
        above it), `p_value` (how often a good image scores at least that high). With params={"return_map": True} also
        `anomaly_map`, a base64 PNG of 16-bit grey in which 0 stands for `map_low` and 65535 for `map_high`.
        Raises RefusalError, which a server answers with status 400, where an image cannot be used.
        """
        images = decode_rows(model_input, self.capsule.detector.size, LIMITS.at_depth(self.capsule.bits))
        scores, maps = self.capsule.score(images)
        table = pd.DataFrame(
            {
                "category": self.capsule.category,
                "capsule_digest": self.capsule.digest,
                "image_score": scores.astype(float),
                "is_anomalous": scores > self.capsule.threshold,
                "threshold": self.capsule.threshold,
                "p_value": self.capsule.p_values(scores),
            }
        )
        return table.join(map_columns(maps)) if (params or {}).get("return_map") else table


def decode_rows(table: pd.DataFrame, size: int, limits: ImageLimits = LIMITS) -> list[np.ndarray]:
    """The images of the column `image`, each (size, size, 3) uint8; RefusalError names the row that is unfit."""
    if COLUMN not in table:
        raise RefusalError(
            f"The input has no column {COLUMN!r}: send image files as base64 text in a column of that name."
        )
    if table.empty:
        raise RefusalError("The input holds no image: send at least one row.")
    # Resampled one by one, so that a batch of large images never lies decoded in memory.
    return [resize_image(_decode(value, row, limits), size) for row, value in enumerate(table[COLUMN])]


def map_columns(maps: np.ndarray) -> pd.DataFrame:
    """Anomaly maps (N, H, W) as columns `anomaly_map` (base64 PNG, 16-bit grey), `map_low` and `map_high`."""
    low, high = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))  # (N,)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    levels = np.rint((maps - low[:, None, None]) / span[:, None, None] * 65535).astype(np.uint16)  # (N, H, W)
    return pd.DataFrame(
        {"anomaly_map": [_png(level) for level in levels], "map_low": low.astype(float), "map_high": high.astype(float)}
    )


def _decode(value: Any, row: int, limits: ImageLimits) -> np.ndarray:
    name = f"The image in row {row}"
    try:
        return decode_image(_file_bytes(value, name), name, limits)
    except UserError as error:
        raise RefusalError(str(error)) from error


def _file_bytes(value: Any, name: str) -> bytes:
    """The bytes of an image file from bytes or base64 text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise UserError(f"{name} is neither bytes nor text: send the image file as base64 text.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name} is not base64 text ({error}): send the image file as base64 text.") from error


def _png(level: np.ndarray) -> str:
    """(H, W) uint16 as the base64 text of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(level).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


set_model(FlawlinePyfunc())

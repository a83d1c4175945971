"""A capsule as an MLflow model: its files, the code that serves it, what comes in and goes out."""

import base64
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from components.tracking.connection import (
    prepare_environment,
)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

_CODE = Path(__file__).parents[1]
_SERVING_PACKAGES = (
    "mlflow", "torch", "torchvision", "timm", "safetensors", "numpy", "scipy", "pandas", "scikit-learn", "pillow",
    "pydantic", "ruamel.yaml", "filelock", "requests",
)  # fmt: skip


def save_model(capsule_dir: Path, folder: Path) -> None:
    """Write the MLflow model of a capsule: the capsule, the code that serves it, its packages' versions."""
    prepare_environment()
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as scratch:
        capsule = Path(scratch) / "capsule"  # the name that the artifact's folder gets
        shutil.copytree(capsule_dir, capsule)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(_CODE / "registry" / "served_model.py"),
            artifacts={"capsule": str(capsule)},
            code_paths=[str(_CODE)],
            signature=_signature(),
            input_example=_example(),
            pip_requirements=_requirements(),
        )
    for compiled in list(folder.rglob("__pycache__")):
        shutil.rmtree(compiled)


def _signature() -> "ModelSignature":
    """Images as bytes (base64 in JSON) in; a row of figures out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "category"),
        ColSpec(DataType.string, "capsule_digest"),
        ColSpec(DataType.double, "image_score"),
        ColSpec(DataType.boolean, "is_anomalous"),
        ColSpec(DataType.double, "threshold"),
        ColSpec(DataType.double, "p_value"),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image", required=False)]),  # bytes, or base64 text
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("return_map", DataType.boolean, False)]),
    )


def _example() -> "pd.DataFrame":
    """One small grey image, as a client sends it."""
    import pandas as pd
    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, format="PNG")
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]})


def _requirements() -> list[str]:
    """What serving needs, in the versions that are installed, which are those of the lock."""
    pinned = []
    for name in _SERVING_PACKAGES:
        try:
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned

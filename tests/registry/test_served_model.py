"""The capsule behind MLflow's `predict`: images in as bytes or base64, the same figures out as the capsule's own."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.images.decode import resize_image
from tests.conftest import MakeCapsule
from tests.serving import frame, png, text


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, make_capsule: MakeCapsule) -> tuple[Path, Path]:
    """The folders of a capsule and of the MLflow model made of it."""
    from components.registry.packaging import save_model

    folder = tmp_path_factory.mktemp("model")
    capsule = make_capsule(folder / "any name", threshold=10.0)
    save_model(capsule, folder / "model")
    return capsule, folder / "model"


@pytest.fixture(scope="module")
def model(saved: tuple[Path, Path]) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(saved[1]))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Two images like those it was fitted to, of other sizes, and one that is not."""
    generator = np.random.default_rng(1)
    good = [generator.integers(90, 110, (side, side + 8, 3), dtype=np.uint8) for side in (32, 50)]
    return [*good, generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)]


@pytest.mark.parametrize("encode", [png, text], ids=["bytes", "base64"])
def test_predict_gives_what_the_capsule_gives(
    saved: tuple[Path, Path], model: Any, images: list[np.ndarray], encode: Any
) -> None:
    from components.detection.capsule import load_capsule

    capsule = load_capsule(saved[0])
    scores, _ = capsule.score([resize_image(image, 32) for image in images])
    found = model.predict(frame([encode(image) for image in images]))
    assert list(found) == ["category", "capsule_digest", "image_score", "is_anomalous", "threshold", "p_value"]
    assert found["category"].tolist() == ["bottle"] * 3
    assert found["capsule_digest"].tolist() == [capsule.digest] * 3
    assert model.metadata.get_output_schema().input_names() == list(found)
    np.testing.assert_allclose(found["image_score"], scores, rtol=1e-5)
    assert found["is_anomalous"].tolist() == (scores > 10.0).tolist() == [False, False, True]
    assert found["threshold"].tolist() == [10.0] * 3
    assert found["p_value"].iloc[2] == pytest.approx(1 / 9)  # above all 8 good scores


def test_the_map_comes_on_demand_and_can_be_restored(
    saved: tuple[Path, Path], model: Any, images: list[np.ndarray]
) -> None:
    from components.detection.capsule import load_capsule

    _, maps = load_capsule(saved[0]).score([resize_image(images[2], 32)])
    found = model.predict(frame([png(images[2])]), params={"return_map": True}).iloc[0]
    level = np.array(Image.open(BytesIO(base64.b64decode(found["anomaly_map"]))), dtype=float)
    restored = found["map_low"] + level / 65535 * (found["map_high"] - found["map_low"])
    np.testing.assert_allclose(restored, maps[0], atol=float(np.ptp(maps)) / 65535 + 1e-4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("not base64!", "row 1 is not base64"),
        (base64.b64encode(b"plain text").decode(), "row 1 is not a PNG, JPEG, BMP or TIFF image"),
        (png(np.zeros((64, 64, 3), np.uint8))[:60], "row 1 cannot be decoded"),
        (3, "row 1 is neither bytes nor text"),
        (None, "row 1 is neither bytes nor text"),
    ],
)
def test_an_unfit_image_is_named_by_its_row(value: Any, words: str) -> None:
    from mlflow.exceptions import MlflowException

    from components.registry.served_model import decode_rows

    with pytest.raises(MlflowException, match=words) as caught:
        decode_rows(frame([text(np.zeros((8, 8, 3), np.uint8)), value]), 32)
    assert caught.value.get_http_status_code() == 400


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    from mlflow.exceptions import MlflowException

    from components.registry.served_model import decode_rows

    buffer = BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
    with pytest.raises(MlflowException, match=r"row 0 holds more pixels than the limit of 50,000,000"):
        decode_rows(frame([buffer.getvalue()]), 32)


@pytest.mark.parametrize("table", [frame([]), frame(["x"], column="picture")], ids=["empty", "other column"])
def test_an_input_without_images_is_refused(model: Any, table: Any) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=r"no image|no column 'image'"):
        model.predict(table)


def test_a_damaged_capsule_is_not_loaded(saved: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    import mlflow.pyfunc

    from components.foundation.errors import UserError

    copy = shutil.copytree(saved[1], tmp_path / "model")
    weights = copy / "artifacts/capsule/density.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"damaged \(density.safetensors"):
        mlflow.pyfunc.load_model(str(copy))


def test_the_model_is_code_and_capsule_and_holds_no_pickle(saved: tuple[Path, Path]) -> None:
    files = [path for path in saved[1].rglob("*") if path.parent.name != "__pycache__"]  # made by loading, elsewhere
    names = [path.name for path in files]
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pyc", ".pth", ".pt"))]
    assert "served_model.py" in names
    requirements = (saved[1] / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert "mlflow==3.17.2" in requirements

"""What many threads ask of one detector at once is what each gets alone, bit for bit."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.detector import Composition, Detector, Part, arrange
from components.detection.network_part import NetworkPart
from components.detection.scale import Scale
from components.foundation.params import BackboneParams
from components.images.tensors import as_tensor
from components.learning.backbone import HEAD, build_encoder
from components.learning.decoder import MapNetwork, build_decoder
from components.learning.head import projection_head
from tests.serving import frame, png, sizes

SIZE = 64
CLIENTS, ROUNDS = 8, 4
DENSE = Composition("pretrained", ("b1", "b3"), "shared", grid=8)
WHOLE = Composition("pretrained", ("b2", HEAD), "image", map="gradcam", cam_level="b1")
KINDS: dict[str, list[Composition]] = {
    "dense": [DENSE, replace(DENSE, levels=("b2",), layout="location", covariance="low-rank", rank=4)],
    "gradcam": [WHOLE],
    "gradcam-logit": [replace(WHOLE, map="gradcam-logit", cam_level="b3")],
    "kernel": [replace(WHOLE, estimator="kernel")],
    "levelwise": [replace(DENSE, widths=(8, 16))],
    "network": [],
    "all": [DENSE, WHOLE, replace(WHOLE, estimator="kernel", cam_level="b2")],
}


def built(kind: str) -> Detector:
    """A detector of random networks, fitted to a few images."""
    encoder = build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)
    good = np.random.default_rng(0).integers(90, 110, (12, SIZE, SIZE, 3), dtype=np.uint8)
    parts = []
    for composition in KINDS[kind]:
        features = encoder.features(as_tensor(good), composition.levels)
        if composition.widths:
            composition = replace(composition, widths=tuple(encoder.widths[name] for name in composition.levels))
        scorer = composition.scorer_of(arrange(features, composition))
        parts.append(Part(composition, scorer, Scale(0, 1), Scale(0, 1)))
    heads = {"pretrained": projection_head(encoder.width, (16,), 3, seed=0).eval()}
    networks = [NetworkPart(MapNetwork(encoder, build_decoder(encoder, (16, 4), (32,), (16, 8), 0)).eval(), 0.1, 0)]
    encoders = {"pretrained": encoder} if parts else {}
    return Detector(encoders, parts, SIZE, 1.0, heads, networks if kind in ("network", "all") else [])


def written(kind: str, folder: Path) -> Path:
    """A capsule of one kind, in `folder`."""
    detector = built(kind)
    calibration = np.sort(detector.score(np.zeros((3, SIZE, SIZE, 3), np.uint8))[0])
    made = Capsule("bolt", "pretrained", detector, 1.0, calibration, {}, {})
    save_capsule(made, np.zeros((1, SIZE, SIZE, 3), np.uint8), folder)
    return folder


def answers(ask: Callable[[Any], bytes], questions: Sequence[Any]) -> None:
    """Ask each question alone, then all of them, several times, from as many threads as there are clients."""
    alone = [ask(question) for question in questions]
    assert len(set(alone)) == len(questions)  # so that another's answer would be noticed
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(ask, list(questions) * ROUNDS))
    assert [answer == expected for answer, expected in zip(found, alone * ROUNDS, strict=True)] == [True] * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_capsule_answers_many_threads_as_one(kind: str, tmp_path: Path, one_thread: None) -> None:
    capsule = load_capsule(written(kind, tmp_path / "capsule"))
    images = sizes(CLIENTS + 4)
    questions = [images[number : number + 1 + number % 3] for number in range(CLIENTS)]  # one to three images each

    def ask(some: list[np.ndarray]) -> bytes:
        scores, maps = capsule.score(some)
        return scores.tobytes() + maps.tobytes()

    answers(ask, questions)


@pytest.mark.slow
def test_the_model_that_mlflow_loads_answers_many_threads_as_one(tmp_path: Path, one_thread: None) -> None:
    import mlflow.pyfunc

    from components.registry.packaging import save_model

    save_model(written("all", tmp_path / "capsule"), tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))

    def ask(image: np.ndarray) -> bytes:
        return bytes(model.predict(frame([png(image)]), params={"return_map": True}).to_json(), "utf-8")

    answers(ask, sizes(CLIENTS))

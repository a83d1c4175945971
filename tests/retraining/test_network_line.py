"""The methods with a network go through the stages of the line, from images to a served and measured capsule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.detection.capsule import load_capsule
from components.foundation.errors import UserError
from components.foundation.files import digest_tree, read_json
from components.foundation.params import Params, parse_params
from components.foundation.places import Places
from components.stages import evaluate, fit, synthesize, train, validate
from tests.project import TINY, write_category

NETWORK: dict[str, Any] = {
    **{"strides": [8, 4], "reduction": [16], "widths": [16, 8], "steps": 12, "batch": 4, "rate": 0.01},
    **{"exam_steps": 6, "keep": "always"},
}


def run(method: str, upto: str = "evaluate", **network: Any) -> Params:
    """Run the stages on the category widget in the current folder."""
    content = TINY | {
        "method": method,
        "data": {"root": "data", "categories": ["widget"]},
        "training": TINY["training"] | {"head_steps": 0, "steps": 4, "exam_steps": 4},
        "network": NETWORK | network,
    }
    params = parse_params(content, "test")
    if not Path("data").exists():
        write_category(Path("data/widget"), seed=0, defects=3)
    for stage in (validate, synthesize, train, fit, evaluate):
        stage.main("widget", params)
        if stage.__name__.endswith(upto):
            break
    return params


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nsa-logistic", pytest.param("fpi", marks=pytest.mark.slow)])
def test_a_networks_map_is_the_detector(workspace: Path, method: str) -> None:
    run(method)
    capsule = load_capsule(Places("widget").capsule)
    assert (len(capsule.detector.parts), len(capsule.detector.networks)) == (0, 1)
    metrics = read_json(Places("widget").figures)
    assert metrics["encoder"] == "network"
    assert metrics["exam_mark"] == capsule.selection["held_out_marks"]["network"]
    assert {"pretrained", "network"} == set(capsule.selection["held_out_marks"])
    assert 0 <= metrics["pixel_auroc"] <= 1
    history = (Places("widget").encoder / "history.csv").read_text().splitlines()
    assert history[0] == "step,loss,accuracy,rate"
    assert len(history) == 1 + 12


@pytest.mark.slow
def test_the_same_parameters_give_the_same_bytes(workspace: Path) -> None:
    params = run("nsa-logistic", upto="train")
    places = Places("widget")
    before = digest_tree(places.encoder)
    train.main("widget", params)
    assert digest_tree(places.encoder) == before


@pytest.mark.slow
def test_the_hybrid_holds_densities_and_network_in_one_capsule(workspace: Path) -> None:
    run("nsa-cutpaste")
    capsule = load_capsule(Places("widget").capsule)
    assert capsule.detector.parts
    assert len(capsule.detector.networks) == 1
    metrics = read_json(Places("widget").figures)
    assert metrics["encoder"] in ("pretrained + network", "trained + network")
    scores, maps = capsule.score(np.zeros((2, 40, 50, 3), np.uint8))
    assert np.isfinite(scores).all()
    assert np.isfinite(maps).all()
    steps = [
        len((Places("widget").encoder / name).read_text().splitlines())
        for name in ("history.csv", "network/history.csv")
    ]
    assert steps == [1 + 4, 1 + 12]


@pytest.mark.slow
def test_densities_of_the_networks_encoder(workspace: Path) -> None:
    """nsa-gde: the exam marks densities of the encoder, and chooses between it and the one before training."""
    run("nsa-gde")
    training = read_json(Places("widget").encoder / "training.json")
    assert [mark["step"] for mark in training["marks"]] == ([0, 6, 12] if training["kept_step"] else [0, 6])
    capsule = load_capsule(Places("widget").capsule)
    assert capsule.detector.parts
    assert not capsule.detector.networks
    assert ("trained" in capsule.selection["held_out_marks"]) == (training["kept_step"] > 0)


@pytest.mark.slow
def test_where_nothing_can_be_blended_nsa_gde_keeps_the_backbone_and_a_network_is_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_category(Path("data/widget"), seed=0, defects=3)
    for number, path in enumerate(sorted(Path("data/widget/train/good").iterdir())):
        Image.new("RGB", (50 + number, 40), (128, 128, 128)).save(path)  # files of their own bytes, all of one grey
    run("nsa-gde")
    assert "a change of more than one grey level" in (said := capsys.readouterr().err)
    assert "The representation before training is kept." in said
    assert read_json(Places("widget").figures)["encoder"] == "pretrained"
    with pytest.raises(UserError, match="a change of more than one grey level"):
        run("nsa-logistic", upto="train")


@pytest.mark.slow
def test_a_network_without_steps_is_refused(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"nsa-binary trains a network, but network\.steps and network\.epochs are 0"):
        run("nsa-binary", upto="train", steps=0)


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

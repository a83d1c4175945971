"""A checkpoint gives back what was saved, and is replaced whole or not at all."""

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from components.learning.checkpoint import (
    drop_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def groups(value: float = 1.5) -> dict[str, dict[str, Tensor]]:
    weight = torch.full((4, 3, 2, 2), value).to(memory_format=torch.channels_last)
    return {"encoder": {"a.weight": weight, "steps": torch.tensor(7)}, "optimizer": {}}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    facts = {"step": 3, "history": [{"loss": 0.1 + 0.2}], "kept_step": 0}
    save_checkpoint(tmp_path / "c", groups(), facts)
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    assert found[1] == facts
    assert found[0].keys() == groups().keys()
    assert torch.equal(found[0]["encoder"]["a.weight"], groups()["encoder"]["a.weight"])
    assert found[0]["encoder"]["steps"].dtype == torch.int64


def test_none_is_found_where_none_is(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "c") is None
    (tmp_path / "c").mkdir()
    assert load_checkpoint(tmp_path / "c") is None


def test_the_last_one_counts_until_it_is_dropped(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "c", groups(step), {"step": step})
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    assert found[1]["step"] == 2
    assert float(found[0]["encoder"]["a.weight"].max()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    drop_checkpoint(tmp_path / "c")
    drop_checkpoint(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", groups(), {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            save_checkpoint(tmp_path / "c", {"encoder": {"w": torch.zeros(10_000)}}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    assert found[1]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("kind", ["sgd", "plain sgd", "adam"])
def test_a_restored_optimizer_takes_the_same_steps(tmp_path: Path, kind: str) -> None:
    """Two steps, then two more by the same optimizer and by one restored through a file."""

    def made(model: nn.Module) -> torch.optim.Optimizer:
        if kind == "adam":
            return torch.optim.Adam(model.parameters(), 0.1)
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9 if kind == "sgd" else 0.0)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = made(model)
    for _ in range(2):
        step(model, optimizer)
    other.load_state_dict(model.state_dict())
    save_checkpoint(tmp_path / "c", {"optimizer": optimizer_tensors(optimizer)}, {})
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    restored = made(other)
    restore_optimizer(restored, found[0]["optimizer"])
    for _ in range(2):
        step(model, optimizer)
        step(other, restored)
    assert torch.equal(model.weight, other.weight)

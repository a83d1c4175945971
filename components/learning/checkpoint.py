"""Training checkpoints as safetensors and JSON: a killed training goes on from its last one, to the same bytes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from components.foundation.files import new_directory, read_json, write_bytes, write_json


def save_checkpoint(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder`, whole or not at all, by named groups of tensors and JSON-able facts."""
    with new_directory(folder) as beside:
        for group, values in tensors.items():
            data = save({name: value.detach().cpu().contiguous() for name, value in values.items()})
            write_bytes(beside / group, data)
        write_json(beside / "facts.json", {**facts, "groups": sorted(tensors)})


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """What `save_checkpoint` wrote last, or None where there is none."""
    if not (folder / "facts.json").is_file():
        return None
    facts = read_json(folder / "facts.json")
    return {group: load_file(folder / group) for group in facts.pop("groups")}, facts


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that is no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state (momentum and the like) as flat names "PARAMETER.KEY" to tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value
        for index, entry in state.items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

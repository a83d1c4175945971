"""The projection head that an encoder is trained with, and whose logits say how synthetic an image looks."""

import itertools
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from components.foundation.errors import UserError
from components.foundation.files import write_bytes

FILE = "head.safetensors"


def projection_head(width: int, hidden: tuple[int, ...], classes: int, seed: int) -> nn.Sequential:
    """The MLP projection head (section 3.2): linear, batch norm and ReLU for each hidden size, then the classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (width, *hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def defect_logit(logits: Tensor) -> Tensor:
    """Log-odds (N,) of all defect classes together against the normal class, which is the first of logits (N, classes).

    log Σ_defects exp(logit) − logit of normal = log p(defect) / p(normal) of the softmax.
    """
    return torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]


def save_head(head: nn.Sequential, folder: Path) -> None:
    """Write `head.safetensors` into `folder`."""
    write_bytes(folder / FILE, save({name: value.contiguous().cpu() for name, value in head.state_dict().items()}))


def load_head(folder: Path) -> nn.Sequential:
    """Read what `save_head` wrote, in evaluation mode; raises UserError where it is missing or damaged."""
    try:
        weights = load_file(folder / FILE)
        names = sorted((name for name in weights if re.fullmatch(r"\d+\.weight", name)), key=lambda n: int(n[:-7]))
        shapes = [weights[name].shape for name in names if weights[name].ndim == 2]
        hidden = tuple(rows for rows, _ in shapes[:-1])
        head = projection_head(shapes[0][1], hidden, shapes[-1][0], seed=0)
        head.load_state_dict(weights)
    except (OSError, SafetensorError, IndexError, RuntimeError) as error:
        raise UserError(f"There is no readable {FILE} in {folder}: train the category anew.") from error
    return head.eval()

"""What the composed methods are made of: the generator that trains a network of its own, and what else they need."""

from components.synthesis.nsa_params import Label
from components.synthesis.nsa_params import Method as Generator

PRETRAINED, TRAINED = "pretrained", "trained"  # the representation before training and after it
MEAN = "pretrained + trained"  # both, their scores averaged
NETWORK = "network"  # the folder of the network, and its name beside those of the representations
ENSEMBLE, HYBRID, NSA_GDE = "cutpaste-ensemble", "nsa-cutpaste", "nsa-gde"
PATCH = "cutpaste-patch"  # what its crops are told apart by is `patch.task`
GENERATORS: dict[str, tuple[Generator, Label]] = {
    "nsa-binary": ("nsa", "binary"),
    "nsa-continuous": ("nsa", "continuous"),
    "nsa-logistic": ("nsa", "logistic"),
    "fpi": ("fpi", "factor"),
    "pii": ("pii", "factor"),
    HYBRID: ("nsa", "logistic"),
    NSA_GDE: ("nsa", "logistic"),
}
"""Generator and label that a method's network is trained with; methods that are not here have no network.

nsa-cutpaste: the mean of the network's map and of densities of a representation trained with CutPaste.
nsa-gde: densities of the network's encoder; the decoder only helps to train it.
"""

# What the exam asks that methods here are taught, and what is much like it. The exam of all methods goes without the
# former, so that its marks are comparable; of those that learn from pasted pieces without `part` too, and so on.
TAUGHT = ("cutpaste", "scar", "nsa", "cutout")
LIKE_TAUGHT = {"cutout": ("hole",), "confetti": ("specks",), "rotation": (), PRETRAINED: ()}


def not_asked(method: str) -> frozenset[str]:
    """The kinds of the exam that count nothing in the marks of what is chosen for this method."""
    return frozenset((*TAUGHT, *LIKE_TAUGHT.get(method, ("part",))))


def trains_network(method: str) -> bool:
    """Whether the stage train trains a network for this method."""
    return method in GENERATORS


def serves_network(method: str) -> bool:
    """Whether the detector may have the network's map in it."""
    return method in GENERATORS and method != NSA_GDE


def encoder_method(method: str) -> str:
    """The method by which the representation under the densities is trained, or "pretrained"."""
    if method in (ENSEMBLE, HYBRID):
        return "cutpaste-3way"
    return PRETRAINED if method in GENERATORS else method


def sections_used(method: str) -> set[str]:
    """The sections of params.yaml by which a model of this method is made."""
    used = {"image", "validation", "synthesis", "fit", "threshold", "evaluation"}
    used |= {"patch"} if method == PATCH else {"backbone"}
    used |= {"training"} if method != PRETRAINED else set()
    return used | ({"nsa", "network"} if trains_network(method) else set())

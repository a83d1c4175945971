"""Where the outputs of a category's stages lie, relative to the project's folder; `dvc.yaml` names the same paths."""

from dataclasses import dataclass
from pathlib import Path

CACHE = Path(".flawline/cache")  # of what can be computed again; it may be deleted at any time
KNOWN = CACHE / "known.db"
CAPSULES = Path(".flawline/capsules")  # that were fetched, by their digests
DEMO = Path("data/demo")  # made anew by each `flawline demo`: no place for a user's images


@dataclass(frozen=True)
class Places:
    """The folders of one category."""

    category: str

    @property
    def root(self) -> Path:
        """All outputs of the category."""
        return Path("artifacts") / self.category

    @property
    def validation(self) -> Path:
        """Report of the data checks."""
        return self.root / "validation"

    @property
    def prepared(self) -> Path:
        """Good images at the network's size, and the synthetic exam."""
        return self.root / "prepared"

    @property
    def encoder(self) -> Path:
        """The trained representation."""
        return self.root / "encoder"

    @property
    def capsule(self) -> Path:
        """The fitted detector."""
        return self.root / "capsule"

    @property
    def evaluation(self) -> Path:
        """Curves, scores and pictures of the evaluation."""
        return self.root / "evaluation"

    @property
    def figures(self) -> Path:
        """All figures of the evaluation, also those in words and of each kind of defect."""
        return self.evaluation / "figures.json"

    @property
    def plots(self) -> Path:
        """Curves that `dvc plots` draws."""
        return self.root / "plots"

    @property
    def metrics(self) -> Path:
        """The few figures that `dvc metrics` compares, kept in git."""
        return Path("metrics") / f"{self.category}.json"

    @property
    def base(self) -> Path:
        """Which version an update keeps encoder and compositions of, kept in git."""
        return Path("bases") / f"{self.category}.json"

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished training stands; no output of any stage."""
        return Path(".flawline") / "checkpoints" / self.category

"""The scale on which the scores of several compositions become comparable."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """Centre and spread of a composition's scores on held-out good images, by which compositions become comparable."""

    centre: float
    spread: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Scale":
        """Mean and standard deviation of `values`, of any shape; a spread of at least 1e-6."""
        return cls(float(values.mean()), max(float(values.std()), 1e-6))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(values − centre) / spread."""
        return (values - self.centre) / self.spread

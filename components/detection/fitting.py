"""Densities of compositions, fitted to the images to learn from."""

from collections.abc import Mapping, Sequence

import numpy as np

from components.density.gaussian import Scorer
from components.detection.detector import BATCH, Composition, arrange
from components.detection.feature_bank import FeatureBank
from components.synthesis.prepared import batches

Banks = Mapping[str, FeatureBank]


def fit_scorers(compositions: Sequence[Composition], banks: Banks) -> dict[Composition, Scorer]:
    """Fit each composition's density to the images to learn from, the quicker way where they are few."""
    if not all(banks[c.encoder].keeps for c in compositions):
        return fit_densities(compositions, banks)
    scorers = {}
    for c in compositions:
        bank = banks[c.encoder]
        features = learned(c, bank, bank.prepared.fit_rows)
        scorers[c] = c.scorer_of(features.reshape(-1, *features.shape[2:]))
    return scorers


def learned(composition: Composition, bank: FeatureBank, rows: np.ndarray) -> np.ndarray:
    """Arranged features (1 + copies, n, …) of good images `rows`, and of their copies where it learns from copies."""
    own = arrange(bank.of(rows), composition)
    if not composition.copies:
        return own[None]
    made = np.empty((1 + composition.copies, *own.shape), np.float32)
    made[0] = own
    for batch in batches(np.arange(len(rows)), BATCH):  # copies are many: all of them are there once
        copies = arrange(bank.of_copies(rows[batch], composition.copies, composition.copy_kind), composition)
        made[1:, batch] = copies.reshape(composition.copies, len(batch), *own.shape[1:])
    return made


def fit_densities(compositions: Sequence[Composition], banks: Banks) -> dict[Composition, Scorer]:
    """Fit each composition's density to the images to learn from; memory is bounded by a batch, not their number."""
    densities = {composition: composition.density() for composition in compositions}
    for bank in banks.values():
        own = [composition for composition in compositions if composition.encoder == bank.name]
        for rows in batches(bank.prepared.fit_rows, BATCH) if own else ():
            features = bank.of(rows)
            for composition in own:
                densities[composition].add(arrange(features, composition))
                if composition.copies:
                    copies = bank.of_copies(rows, composition.copies, composition.copy_kind)
                    densities[composition].add(arrange(copies, composition))
    return {composition: density.scorer() for composition, density in densities.items()}

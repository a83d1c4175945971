"""Is an arriving image one that is there already? Exact by bytes or pixels, near by perceptual hash."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from components.arrivals.names import Refusal
from components.images.measures import hash_of
from components.images.perceptual_hash import HashIndex

if TYPE_CHECKING:
    import pandas as pd

NEAR = frozenset({"near-duplicate", "near-test-image"})  # a person decides; what is exact needs none


@dataclass
class KnownImages:
    """The images of a category, those held, and those that came before in the delivery."""

    near_distance: float
    _by_digest: dict[str, str] = field(default_factory=dict)
    _index: HashIndex = field(default_factory=HashIndex)
    _test: set[str] = field(default_factory=set)

    def add_category(self, table: "pd.DataFrame") -> None:
        """Know the images of `image_facts.category_facts`."""
        for row in table.to_dict("records"):
            if row["split"] == "test":
                self._test.add(row["name"])
            self.add(row["name"], row["sha256"], row)

    def add(self, name: str, sha256: str, facts: Mapping[str, Any]) -> None:
        """Know an image with its digest and facts; of two with the same content the first one counts."""
        for digest in (sha256, facts["pixels"]):
            self._by_digest.setdefault(digest, name)
        self._index.add(name, hash_of(facts["hash"]))

    def check(self, sha256: str, facts: Mapping[str, Any], grey: Callable[[], np.ndarray]) -> Refusal | None:
        """Check an image by the digest of its file and its facts; few need their `perceptual_hash.small_grey` too.

        Codes: duplicate, test-image (exact); near-duplicate, near-test-image. A new image that shows a test image must
        never be learned, or the test would say nothing.
        """
        for digest, words in ((sha256, "is the same file as"), (facts["pixels"], "shows the same pixels as")):
            if duplicate := self._by_digest.get(digest):
                return Refusal("test-image" if duplicate in self._test else "duplicate", f"{words} {duplicate}")
        nearest = self._index.nearest(hash_of(facts["hash"]), grey)
        if nearest is None or nearest[1] > self.near_distance:
            return None
        name, distance = nearest
        code = "near-test-image" if name in self._test else "near-duplicate"
        return Refusal(code, f"looks like {name} ({distance:.1%} of its perceptual hash differ)")

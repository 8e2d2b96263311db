"""Repeat factors: train images with rare categories more often.

The factors are those of LVIS (arXiv 1908.03195v2, appendix B.2) and of detectron2's
RepeatFactorTrainingSampler. In each epoch a factor is rounded up with the probability of its
fraction. The draw depends on the seed, the epoch and the image's id alone, so neither the number of
workers nor a resume can change it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.seeds import hash_ints, uniform

Ints = NDArray[np.int64]

# Purpose of a draw; part of its hash. plan.py uses 1 to 3.
_ROUND = 4

_MAX_DRAWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Repeats:
    """Repeat factors of the rows of a split."""

    factors: NDArray[np.float64]
    """(rows,) mean repetitions in an epoch, at least 1."""
    image_ids: Ints
    """(rows,)."""

    def counts(self, seed: int, epoch: int) -> Ints:
        """Return how often each row is trained in an epoch, at least once."""
        counts: Ints = self._round_factors(seed, np.array([[epoch]]))[0]
        return counts

    def lengths(self, seed: int, epochs: range) -> list[int]:
        """Return the number of samples in each epoch."""
        step = max(1, _MAX_DRAWS // len(self.factors))
        lengths: list[int] = []
        for first in range(epochs.start, epochs.stop, step):
            some = np.arange(first, min(first + step, epochs.stop))
            lengths += self._round_factors(seed, some[:, None]).sum(axis=1).tolist()
        return lengths

    def _round_factors(self, seed: int, epochs: Ints) -> Ints:
        whole = np.floor(self.factors)
        draws = uniform(hash_ints(seed, epochs, _ROUND, self.image_ids[None, :]))
        return (whole + (draws < self.factors - whole)).astype(np.int64)


def repeat_factors(
    row: Ints, category: Ints, *, rows: int, threshold: float
) -> NDArray[np.float64]:
    """Compute the repeat factor of each row: max(1, sqrt(threshold / f)) of its rarest category.

    The frequency f of a category is the share of rows that contain it.

    Args:
        row: (n,) the row of each annotation.
        category: (n,) the category of each annotation.
        rows: number of rows, including those without annotations.
        threshold: frequency below which categories are repeated.
    """
    factors = np.ones(rows)
    if len(row) == 0:
        return factors
    pairs = np.unique(np.stack([row, category]), axis=1)
    # Not counted by the numbers themselves: in a damaged shard they are negative or huge.
    _, which, counts = np.unique(pairs[1], return_inverse=True, return_counts=True)
    np.maximum.at(factors, pairs[0], np.sqrt(threshold / (counts / rows)[which]))
    return factors

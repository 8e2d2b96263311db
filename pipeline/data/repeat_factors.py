"""How often a row is trained in an epoch: repeat factors, rounded at random, the same everywhere.

Images with rare categories are trained more often (LVIS, arXiv 1908.03195v2, appendix B.2; the same
as detectron2's RepeatFactorTrainingSampler). A factor is no whole number, so in each epoch it is
rounded up as often as its fraction says. That is drawn from the seed, the epoch and the image's id
alone, so neither workers nor a resume can change it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.seeds import mixed, uniform

Ints = NDArray[np.int64]

# What a draw is for; part of its hash. Plans use 1 to 3.
_ROUND = 4

_MOST_DRAWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Repeats:
    """The mean number of times that each row is trained in an epoch."""

    factors: NDArray[np.float64]
    """(rows,) at least 1."""
    image_ids: Ints
    """(rows,)."""

    def counts(self, seed: int, epoch: int) -> Ints:
        """Round the factors of an epoch: how often each row is trained in it, at least once."""
        counts: Ints = self._rounded(seed, np.array([[epoch]]))[0]
        return counts

    def lengths(self, seed: int, epochs: range) -> list[int]:
        """Count the samples of each epoch."""
        step = max(1, _MOST_DRAWS // len(self.factors))
        found: list[int] = []
        for first in range(epochs.start, epochs.stop, step):
            some = np.arange(first, min(first + step, epochs.stop))
            found += self._rounded(seed, some[:, None]).sum(axis=1).tolist()
        return found

    def _rounded(self, seed: int, epochs: Ints) -> Ints:
        whole = np.floor(self.factors)
        drawn = uniform(mixed(seed, epochs, _ROUND, self.image_ids[None, :]))
        return (whole + (drawn < self.factors - whole)).astype(np.int64)


def repeat_factors(
    row: Ints, category: Ints, *, rows: int, threshold: float
) -> NDArray[np.float64]:
    """Give each row the factor of its rarest category: max(1, sqrt(threshold / f)).

    f is the share of rows in which the category is.

    Args:
        row: (n,) a row for each of its annotations.
        category: (n,) the category of each.
        rows: how many rows there are; those without annotations count too.
        threshold: categories in a smaller share of rows are repeated.
    """
    factors = np.ones(rows)
    if len(row) == 0:
        return factors
    pairs = np.unique(np.stack([row, category]), axis=1)
    share = np.bincount(pairs[1]) / rows
    wanted = np.sqrt(threshold / share[pairs[1]])
    np.maximum.at(factors, pairs[0], wanted)
    return factors

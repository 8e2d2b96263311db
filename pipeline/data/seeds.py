"""Random numbers as a pure function of what they are for, the same on every machine and worker.

A generator carries state, and state depends on who drew before. Here a draw is a hash of its
purpose and its place (seed, epoch, image id), so that neither workers nor a resume can change it.
The mixing step is splitmix64's finalizer, written out because the streams of library generators
may change between versions.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def mixed(*parts: int | NDArray[np.int64]) -> Words:
    """Hash integers, or arrays of them that broadcast together, to uniform 64-bit words.

    Args:
        parts: what the draw is for and where it is, in a fixed order.
    """
    words: Words = np.zeros(1, dtype=np.uint64)
    for part in parts:
        words = _finalized(
            words ^ _finalized(np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64))
        )
    return words


def permutation(count: int, *parts: int) -> NDArray[np.int64]:
    """Return 0..count-1 in an order that is a function of `parts` alone."""
    return np.argsort(mixed(*parts, np.arange(count)), kind="stable").astype(np.int64)


def sample_seeds(
    seed: int,
    *,
    epochs: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    repeats: NDArray[np.int64] | int = 0,
) -> NDArray[np.int64]:
    """Return the seed (not negative) of each sample, from which all its random choices come.

    Args:
        seed: the recipe's.
        epochs: of each sample.
        image_ids: of each sample.
        repeats: how many times the image has come before in its epoch.
    """
    once = mixed(seed, epochs, image_ids)
    words = np.where(np.equal(repeats, 0), once, mixed(seed, epochs, image_ids, repeats))
    return (words >> np.uint64(1)).astype(np.int64)


def uniform(words: Words) -> NDArray[np.float64]:
    """Turn hashed words into numbers in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalized(words: Words) -> Words:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))

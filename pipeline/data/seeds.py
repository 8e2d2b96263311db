"""Counter-based random numbers: pure functions of their purpose, the same on every worker.

A generator carries state, and state depends on who drew before. Here a draw is a hash of its
purpose and its coordinates (seed, epoch, image id), so neither the number of workers nor a resume
can change it. The mixing step is splitmix64's finalizer, written out because the streams of library
generators may change between versions.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def hash_ints(*parts: int | NDArray[np.int64]) -> Words:
    """Hash integers, or arrays of them that broadcast together, to uniform 64-bit words.

    Args:
        parts: purpose and coordinates of the draw, in a fixed order.
    """
    words: Words = np.zeros(1, dtype=np.uint64)
    for part in parts:
        words = _finalize(
            words ^ _finalize(np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64))
        )
    return words


def permutation(count: int, *parts: int) -> NDArray[np.int64]:
    """Return a permutation of 0..count-1 that depends on `parts` alone."""
    return np.argsort(hash_ints(*parts, np.arange(count)), kind="stable").astype(np.int64)


def sample_seeds(
    seed: int,
    *,
    epochs: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    repeats: NDArray[np.int64] | int = 0,
) -> NDArray[np.int64]:
    """Return the non-negative seed of each sample, from which all its random choices derive.

    Args:
        seed: of the recipe.
        epochs: of each sample.
        image_ids: of each sample.
        repeats: of each sample: how often its image came earlier in the epoch.
    """
    once = hash_ints(seed, epochs, image_ids)
    words = np.where(np.equal(repeats, 0), once, hash_ints(seed, epochs, image_ids, repeats))
    return (words >> np.uint64(1)).astype(np.int64)


def uniform(words: Words) -> NDArray[np.float64]:
    """Map hashed words to floats in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalize(words: Words) -> Words:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))

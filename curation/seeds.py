"""Where k-means begins: vectors of the sample at random, or far apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ALIKE = 1e-6  # distance (1 - cosine) below which float32 tells two vectors no more apart
ROWS = 16_384  # looked at together


def at_random(sample: np.ndarray, k: int, seed: int) -> np.ndarray:
    """int64, ascending: places of k distinct rows of `sample`, or of all that are distinct."""
    return np.sort(np.random.default_rng(seed).permutation(_distinct(sample))[:k])


def far_apart(sample: np.ndarray, k: int, seed: int, cosines: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """int64, ascending: places of at most k distinct rows, each drawn in proportion to its squared distance from those before.

    So k-means++ does it (Arthur and Vassilvitskii 2007), one by one; here in rounds that double the number, as k-means|| does (Bahmani et
    al. 2012): all rounds together cost one iteration of k-means. A crowd in one place then does not take all the seeds.

    cosines: rows float32 (m, d) -> float32 (n,), of each row of `sample` with the nearest of them.
    """
    rng = np.random.default_rng(seed)
    distinct = _distinct(sample)
    chosen = rng.choice(distinct, 1)
    far = np.full(len(sample), np.inf)
    new = chosen
    while True:
        far = np.minimum(far, 1.0 - cosines(np.array(sample[new])).astype(np.float64))
        left = distinct[far[distinct] > ALIKE]
        wanted = min(k - len(chosen), len(chosen), len(left))
        if not wanted:
            return np.sort(chosen)
        # the smallest of exponential variates over weights: a draw without replacement in proportion to the weights
        new = np.sort(left[np.argsort(rng.exponential(size=len(left)) / far[left], kind="stable")[:wanted]])
        chosen = np.concatenate([chosen, new])


def _distinct(sample: np.ndarray) -> np.ndarray:
    """int64, ascending: the first place of each different row, told apart by a 64-bit hash of its bytes."""
    factors = np.random.default_rng(0).integers(1, 2**63, sample.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(sample), np.uint64)
    for start in range(0, len(sample), ROWS):
        words = np.ascontiguousarray(sample[start : start + ROWS]).view(np.uint32)
        hashes[start : start + ROWS] = np.einsum("ij,j->i", words, factors)
    return np.sort(np.unique(hashes, return_index=True)[1])

"""The rarest numbers of each signature, dealt into slices: two signatures that agree in enough numbers share one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from curation.search_files import mapped, put
from curation.vectors import Vectors

SAMPLE = 1 << 18  # signatures that are counted to tell rare numbers from common ones
GROUP = 1 << 24  # numbers of the signatures that one task reads: 64 MB
ROWS = 1 << 13  # of them ordered at once
SLICE = 1 << 20  # tokens of a slice, about


@dataclass(frozen=True, slots=True)
class Search:
    """A search, as its tasks see it. Things are numbered in ascending order of their vectors.

    folder  holds ids.npy int64 (n,), place.npy int64 (n,): 0 = best, flags.npy uint8 (n,), counts.npy, and what tasks leave behind.
    least   numbers in which two signatures must agree. most: see curation/near.py. asked: whether only pairs with a query are wanted.
    """

    vectors: Vectors
    folder: str
    count: int
    least: int
    most: int
    asked: bool

    @property
    def kept(self) -> int:
        """Tokens of each signature: the others are fewer than `least`, so who shares only others agrees in too few."""
        return self.vectors.width - self.least + 1

    @property
    def group(self) -> int:
        """Signatures that a task reads."""
        return max(1, GROUP // self.vectors.width)

    @property
    def groups(self) -> int:
        return -(-self.count // self.group)

    @property
    def slices(self) -> int:
        return max(1, self.count * self.kept // SLICE)

    def path(self, kind: str, number: int) -> Path:
        return Path(self.folder) / f"{kind}-{number:06d}.npy"

    def load(self, name: str) -> np.ndarray:
        return mapped(Path(self.folder) / f"{name}.npy")


def count_tokens(vectors: Vectors, ids: np.ndarray) -> np.ndarray:
    """uint32 (a power of two,): how often the tokens of each slot occur in an even sample of these signatures.

    ids: int64, ascending. Whatever these counts are, as long as they are a function of the token alone, what is found is the same: they
    only decide how many have to be compared.
    """
    sample = ids[:: -(-len(ids) // SAMPLE)]
    counts = np.zeros(1 << max(10, (len(sample) * vectors.width - 1).bit_length()), np.uint32)
    step = max(1, GROUP // vectors.width)
    for start in range(0, len(sample), step):
        _count(vectors.take(sample[start : start + step]), counts)
    return counts


def deal_tokens(search: Search, number: int) -> None:
    """Files of group `number`, in order of slice: tokens uint64 (component << 32 | value), things uint32 (from the group's first on); where
    each slice starts, int64; and of each signature which components are among its tokens, uint64 (group, ⌈width / 64⌉)."""
    done = search.path("starts", number)
    if done.exists():
        return
    ids = search.load("ids")[number * search.group : (number + 1) * search.group]
    signatures = search.vectors.take(ids)
    tokens = np.empty((len(ids), search.kept), np.uint64)
    masks = np.zeros((len(ids), -(-search.vectors.width // 64)), np.uint64)
    counts = search.load("counts")
    for start in range(0, len(ids), ROWS):
        rows = slice(start, start + ROWS)
        # the first `kept` in the order (count of its slot, component)
        components = np.partition(_counted(signatures[rows], counts), search.kept - 1, axis=1)[:, : search.kept] & 0xFFFF
        _taken(signatures[rows], components, tokens[rows], masks[rows])
    slices = _slices(tokens.reshape(-1), search.slices)
    order = np.argsort(slices, kind="stable")
    starts = np.zeros(search.slices + 1, np.int64)
    np.cumsum(np.bincount(slices, minlength=search.slices), out=starts[1:])
    put(search.path("tokens", number), tokens.reshape(-1)[order])
    put(search.path("things", number), (order // search.kept).astype(np.uint32))
    put(search.path("masks", number), masks)
    put(done, starts)


def slice_of(search: Search, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens uint64, things int64) of one slice, from all groups."""
    tokens, things = [], []
    for group in range(search.groups):
        start, end = mapped(search.path("starts", group))[number : number + 2]
        tokens.append(mapped(search.path("tokens", group))[start:end])
        things.append(mapped(search.path("things", group))[start:end] + np.int64(group * search.group))
    return np.concatenate(tokens), np.concatenate(things)


def masks_of(search: Search, things: np.ndarray) -> np.ndarray:
    """uint64 (len(things), ⌈width / 64⌉). things: ascending."""
    borders = np.searchsorted(things, np.arange(search.groups + 1) * search.group)
    found = [
        mapped(search.path("masks", g))[things[borders[g] : borders[g + 1]] - g * search.group]
        for g in range(search.groups)
        if borders[g] < borders[g + 1]
    ]
    return np.concatenate(found)


@numba.njit(cache=True, inline="always")
def _mix(x: np.uint64) -> np.uint64:
    """A bijection that spreads (the finalizer of MurmurHash3)."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@numba.njit(cache=True, inline="always")
def _token(component: np.int64, value: np.uint32) -> np.uint64:
    return (np.uint64(component) << np.uint64(32)) | np.uint64(value)


@numba.njit(cache=True)
def _count(signatures, counts):  # type: ignore[no-untyped-def]
    last = np.uint64(len(counts) - 1)
    for i in range(signatures.shape[0]):
        for k in range(signatures.shape[1]):
            counts[_mix(_token(k, signatures[i, k])) & last] += 1


@numba.njit(cache=True)
def _counted(signatures, counts):  # type: ignore[no-untyped-def]
    """int64 (n, width): count of the token's slot << 16 | component."""
    last = np.uint64(len(counts) - 1)
    keys = np.empty(signatures.shape, np.int64)
    for i in range(signatures.shape[0]):
        for k in range(signatures.shape[1]):
            keys[i, k] = np.int64(counts[_mix(_token(k, signatures[i, k])) & last]) << 16 | k
    return keys


@numba.njit(cache=True)
def _taken(signatures, components, tokens, masks):  # type: ignore[no-untyped-def]
    """Fills the tokens of these components, and their masks."""
    for i in range(components.shape[0]):
        for place in range(components.shape[1]):
            k = components[i, place]
            tokens[i, place] = _token(k, signatures[i, k])
            masks[i, k >> 6] |= np.uint64(1) << np.uint64(k & 63)


@numba.njit(cache=True)
def _slices(tokens, slices):  # type: ignore[no-untyped-def]
    found = np.empty(len(tokens), np.int32)
    for i in range(len(tokens)):
        found[i] = np.int32((_mix(tokens[i]) >> np.uint64(32)) % np.uint64(slices))
    return found

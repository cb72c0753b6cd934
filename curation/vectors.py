"""Vectors of a population in memory-mapped blocks on disk: as many as there are, with no more of them in memory than is looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.errors import InfrastructureError

BLOCK = 65_536  # vectors of a file: 128 MB at 512 numbers


@dataclass(frozen=True, slots=True)
class Vectors:
    """`count` vectors of `width` numbers, in files of BLOCK rows. Picklable: workers map the same files.

    Vector i < rows is that of medium 0 of the population's row i; the others are of media 1, 2, … of samples with several.

    folder   where `<number>.npy` lie.
    dtype    "float32": embeddings, of unit length; "uint32": signatures, as they are.
    digest   of the step that wrote them: vectors of two digests are never compared.
    owner    int64 (count - rows,): row of each of the others; place: int16, its number among the sample's media. Ascending together.
    valid    bool (count,): whether there is a vector; zero and not finite ones are none (`refused` of them), and zeros on disk.
    """

    folder: str
    count: int
    rows: int
    width: int
    dtype: str
    digest: str
    owner: np.ndarray
    place: np.ndarray
    valid: np.ndarray
    refused: int = 0

    @property
    def blocks(self) -> int:
        return -(-self.count // BLOCK)

    def block(self, number: int) -> np.ndarray:
        """(≤ BLOCK, width) of block `number`, mapped read-only: vectors number·BLOCK …"""
        mapped: np.ndarray = np.load(block_path(self.folder, number), mmap_mode="r", allow_pickle=False)
        return mapped

    def take(self, ids: np.ndarray) -> np.ndarray:
        """(len(ids), width), copied. Blocks are mapped one at a time; ascending ids read each once and in order."""
        ids = np.asarray(ids, np.int64)
        found = np.empty((len(ids), self.width), self.dtype)
        order = np.arange(len(ids)) if len(ids) < 2 or np.all(ids[1:] >= ids[:-1]) else np.argsort(ids, kind="stable")
        numbers = ids[order] // BLOCK
        borders = np.flatnonzero(np.diff(numbers)) + 1
        for part in np.split(order, borders) if len(order) else []:
            found[part] = self.block(int(ids[part[0]] // BLOCK))[ids[part] % BLOCK]
        return found

    def row_of(self, ids: np.ndarray) -> np.ndarray:
        """int64: the population's row that each vector belongs to."""
        ids = np.asarray(ids, np.int64)
        if self.count == self.rows:
            return ids
        return np.where(ids < self.rows, ids, self.owner[np.maximum(ids - self.rows, 0)])

    def medium_of(self, ids: np.ndarray) -> np.ndarray:
        """int16: which of its sample's media each vector is of."""
        ids = np.asarray(ids, np.int64)
        if self.count == self.rows:
            return np.zeros(len(ids), np.int16)
        return np.where(ids < self.rows, 0, self.place[np.maximum(ids - self.rows, 0)]).astype(np.int16)


def block_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number:06d}.npy"


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file of zeros, mapped for writing. Its room is taken now: to run out of it in a mapped page would kill the process.

    Raises InfrastructureError where there is not enough.
    """
    try:
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raise InfrastructureError(f"cannot write {path} of {size:,} bytes: {error.strerror}; free space there and run again") from error
    return mapped


def write_vectors(
    folder: str | Path,
    rows: int,
    more: np.ndarray,
    batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    dtype: str = "float32",
    digest: str = "",
) -> Vectors:
    """Lay vectors into blocks, in whatever order they come: the files are a function of the set alone.

    rows     of the population. more: int64 (m, 2) of (row, medium) with medium ≥ 1, ascending: where media beyond the first may have one.
    batches  (row int64 (k,), medium int64 (k,), values (k, width)).

    Embeddings are brought to unit length here, each by itself, so that no batch shows in a digit; a zero or not finite one is refused.
    Raises InfrastructureError for vectors of two widths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    more = np.asarray(more, np.int64).reshape(-1, 2)
    keys = more[:, 0] << 16 | more[:, 1]
    count = rows + len(more)
    valid = np.zeros(count, bool)
    width, refused = 0, 0
    files: dict[int, np.ndarray] = {}
    for row, medium, values in batches:
        if not len(row):
            continue
        if not width:
            width = values.shape[1]
            for number in range(-(-count // BLOCK)):
                shape = (min(BLOCK, count - number * BLOCK), width)
                new_array(block_path(folder, number), dtype, shape)
        elif values.shape[1] != width:
            raise InfrastructureError(f"vectors of {width} and {values.shape[1]} numbers cannot be compared: they are not of one model")
        if dtype == "float32":
            values, good = unit(values)
        else:
            good = np.ones(len(values), bool)
        refused += int((~good).sum())
        ids = np.where(medium == 0, row, rows + np.searchsorted(keys, row << 16 | medium))[good]
        values = values[good]
        for number in np.unique(ids // BLOCK).tolist():
            here = ids // BLOCK == number
            files.clear()  # one block mapped at a time
            files[number] = np.load(block_path(folder, number), mmap_mode="r+", allow_pickle=False)
            files[number][ids[here] % BLOCK] = values[here]
        valid[ids] = True
    files.clear()
    return Vectors(
        str(folder),
        count if width else 0,
        rows if width else 0,
        width,
        dtype,
        digest,
        more[:, 0],
        more[:, 1].astype(np.int16),
        valid,
        refused,
    )


def unit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (k, width) of unit length, bool (k,): which have a length that is neither zero nor beyond numbers)."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    good = np.isfinite(norms) & (norms > 0)
    return (values / np.where(good, norms, 1.0)[:, None]).astype(np.float32), good

"""Spherical k-means on a sample, and the nearest centroids of every vector, by tasks over fixed blocks: the same for any number of workers.

The arithmetic of k-means is a search (which centroid is nearest) and a sum. The search is FAISS's, one block of rows a task and one thread
in each, so that no partition shows in a digit; the sums are made here, in float64 and in order of the rows.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np

from curation.population import Workers
from curation.seeds import ALIKE, at_random, far_apart
from curation.vectors import Vectors, new_array

ITERATIONS = 10
SAMPLE_PER_CENTROID = 64  # FAISS warns below 39; a centroid moves little with more
TRAIN_BLOCK = 16_384  # rows of a task of k-means
ASSIGN_BLOCK = 32_768  # rows of a task of `assign`: 64 MB at 512 numbers
STIR = 1 / 1024  # how far the halves of a divided cluster are moved apart, as FAISS does
_NONE = np.zeros(0, np.int64)


def train_centroids(
    vectors: Vectors,
    ids: np.ndarray,
    k: int,
    seed: int,
    workers: Workers,
    scratch: Path,
    *,
    iterations: int = ITERATIONS,
    sample_per_centroid: int = SAMPLE_PER_CENTROID,
    apart: bool = False,
    gpus: float = 0.0,
) -> np.ndarray:
    """Centroids of spherical k-means (Lloyd's iterations, vectors and centroids of unit length, nearest by cosine).

    ids       int64, ascending: which vectors, all of them valid. It learns from at most k · sample_per_centroid of them, evenly spaced:
              rows are in order of uid, which is a hash, so that they are a random sample and a function of the set alone.
    apart     begin with vectors far apart, so that a crowd in one place does not take all the centroids; else with any. Lists of even
              length want any, clusters that stand for something far ones.
    scratch   a folder that all workers see; what an earlier try of the same left there is gone on from.

    Returns float32 (k', width); k' is below k where the sample has fewer distinct vectors. A centroid that no vector is nearest to takes
    half of the cluster that adds most to the cost, unless all clusters hold vectors that are alike.
    """
    ids = np.asarray(ids, np.int64)
    if not len(ids):
        return np.zeros((0, vectors.width), np.float32)
    scratch.mkdir(parents=True, exist_ok=True)
    sample_path, sample_digest = _write_sample(vectors, ids[evenly(len(ids), k * sample_per_centroid)], scratch)
    name = f"centroids-{_digest('2', sample_digest, k, seed, iterations, apart)}"
    final = scratch / f"{name}.npy"
    try:
        if not final.is_file():
            _put(final, _lloyd(sample_path, k, seed, iterations, apart, name, workers, scratch, gpus))
        found: np.ndarray = np.load(final, allow_pickle=False)
    finally:
        sample_path.unlink(missing_ok=True)
    for turn in range(iterations + 1):
        _turn_path(scratch, name, turn).unlink(missing_ok=True)
    _seeds_path(scratch, name).unlink(missing_ok=True)
    return found


def assign(
    vectors: Vectors,
    ids: np.ndarray,
    centroids: np.ndarray,
    probes: int,
    workers: Workers,
    scratch: Path,
    gpus: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroids of each vector, nearest first: (int32 (m, p), float32 (m, p) cosines), p = min(probes, centroids).

    ids: int64 (m,), ascending, all of them valid. Both answers are mapped read-only from files in `scratch`, which a later call with the
    same vectors, ids, centroids and probes finds there; so are the blocks that were done when it was killed.
    """
    ids, probes = np.asarray(ids, np.int64), min(probes, len(centroids))
    if not len(ids) or not probes:
        return np.zeros((len(ids), probes), np.int32), np.zeros((len(ids), probes), np.float32)
    scratch.mkdir(parents=True, exist_ok=True)
    digest = _digest("1", _space(vectors, ids), np.ascontiguousarray(centroids, np.float32), probes)
    near, like = scratch / f"assigned-{digest}-near.npy", scratch / f"assigned-{digest}-like.npy"
    if not (near.is_file() and like.is_file()):
        centroid_path = scratch / f"assigned-{digest}-centroids.npy"
        _put(centroid_path, np.ascontiguousarray(centroids, np.float32))
        starts = range(0, len(ids), ASSIGN_BLOCK)
        paths = [scratch / f"assigned-{digest}-{start // ASSIGN_BLOCK:06d}.npy" for start in starts]
        done = {entry.name for entry in os.scandir(scratch)}
        files = _without_books(vectors)
        tasks = (
            (files, ids[start : start + ASSIGN_BLOCK], str(centroid_path), probes, str(path), gpus)
            for start, path in zip(starts, paths, strict=True)
            if path.name not in done
        )
        for _ in workers.map(_assign_block, tasks, gpus=gpus):
            pass
        _join(paths, len(ids), probes, near, like)
        for path in [*paths, centroid_path]:
            path.unlink(missing_ok=True)
    return np.load(near, mmap_mode="r", allow_pickle=False), np.load(like, mmap_mode="r", allow_pickle=False)


def evenly(count: int, wanted: int) -> np.ndarray:
    """int64, ascending: about `wanted` of `count` places, all of them where there are no more; never more than `wanted`.

    Evenly spaced; large samples in short runs, because a disk reads neighbours together.
    """
    if wanted >= count:
        return np.arange(count)
    run = max(1, min(16, wanted // 65_536))
    runs = wanted // run
    starts = np.arange(runs) * count // runs
    return (starts[:, None] + np.arange(run)).reshape(-1)


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS, and the matrix products it calls, on one thread: the order of a sum shows in its last digit."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def flat_index(rows: np.ndarray, gpus: float) -> Any:
    """FAISS's exact search by inner product among float32 rows; on a GPU where one was asked for and FAISS has one."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(np.ascontiguousarray(rows))
    if gpus > 0 and faiss.get_num_gpus() > 0:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index


def _lloyd(
    sample_path: Path, k: int, seed: int, iterations: int, apart: bool, name: str, workers: Workers, scratch: Path, gpus: float
) -> np.ndarray:
    sample = np.load(sample_path, mmap_mode="r", allow_pickle=False)

    def search(path: Path) -> tuple[np.ndarray, np.ndarray]:
        tasks = [(str(sample_path), start, str(path), gpus) for start in range(0, len(sample), TRAIN_BLOCK)]
        parts = list(workers.map(_nearest_block, tasks, gpus=gpus))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def cosines(rows: np.ndarray) -> np.ndarray:
        path = _seeds_path(scratch, name)
        _put(path, rows)
        return search(path)[1]

    turn = max((t for t in range(iterations + 1) if _turn_path(scratch, name, t).is_file()), default=0)
    if _turn_path(scratch, name, turn).is_file():
        centroids: np.ndarray = np.load(_turn_path(scratch, name, turn), allow_pickle=False)
    else:
        centroids = np.array(sample[far_apart(sample, k, seed, cosines) if apart else at_random(sample, k, seed)])
        _put(_turn_path(scratch, name, 0), centroids)
    before: np.ndarray | None = None
    while turn < iterations:
        nearest, cosine = search(_turn_path(scratch, name, turn))
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        centroids = _means(sample, nearest, cosine, centroids)
        turn += 1
        _put(_turn_path(scratch, name, turn), centroids)
    return centroids


def _nearest_block(sample_path: str, start: int, centroid_path: str, gpus: float) -> tuple[np.ndarray, np.ndarray]:
    block = np.load(sample_path, mmap_mode="r", allow_pickle=False)[start : start + TRAIN_BLOCK]
    with one_thread():
        cosine, nearest = flat_index(np.load(centroid_path, allow_pickle=False), gpus).search(np.ascontiguousarray(block), 1)
    return nearest[:, 0].astype(np.int32), cosine[:, 0]


def _assign_block(files: Vectors, ids: np.ndarray, centroid_path: str, probes: int, path: str, gpus: float) -> None:
    with one_thread():
        cosine, nearest = flat_index(np.load(centroid_path, allow_pickle=False), gpus).search(files.take(ids), probes)
    _put(Path(path), np.concatenate([nearest.astype(np.int32), cosine.view(np.int32)], axis=1))  # one file, so that it is whole or absent


def _join(paths: list[Path], m: int, probes: int, near: Path, like: Path) -> None:
    """The blocks as two files; blocks stay until both are there."""
    partial = {final: final.with_name(f"{final.name}.{uuid.uuid4().hex}.tmp") for final in (near, like)}
    nears = new_array(partial[near], np.int32, (m, probes))
    likes = new_array(partial[like], np.float32, (m, probes))
    for number, path in enumerate(paths):
        block = np.load(path, allow_pickle=False)
        rows = slice(number * ASSIGN_BLOCK, number * ASSIGN_BLOCK + len(block))
        nears[rows], likes[rows] = block[:, :probes], np.ascontiguousarray(block[:, probes:]).view(np.float32)
    nears.flush()
    likes.flush()
    for final in (near, like):
        partial[final].replace(final)


def _means(sample: np.ndarray, nearest: np.ndarray, cosine: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Unit-length means of the clusters; a cluster without members takes half of the one that adds most to the cost."""
    k = len(before)
    sums = np.zeros(before.shape, np.float64)
    for start in range(0, len(sample), TRAIN_BLOCK):
        _add(sums, sample[start : start + TRAIN_BLOCK], nearest[start : start + TRAIN_BLOCK])
    lengths = np.sqrt((sums * sums).sum(axis=1))
    centroids = np.where(
        lengths[:, None] > 0, sums / np.maximum(lengths, np.finfo(np.float64).tiny)[:, None], before
    )  # 0: members cancel out
    counts = np.bincount(nearest, minlength=k)
    cost = np.bincount(nearest, weights=1.0 - cosine.astype(np.float64), minlength=k)
    heap = [(-cost[c], c) for c in np.flatnonzero((counts > 1) & (cost > ALIKE * counts)).tolist()]
    heapq.heapify(heap)
    stir = np.where(np.arange(before.shape[1]) % 2 == 0, 1 + STIR, 1 - STIR)
    for empty in np.flatnonzero(counts == 0).tolist():
        if not heap:
            break
        half, large = heap[0][0] / 2, heap[0][1]
        centroids[empty], centroids[large] = centroids[large] * stir, centroids[large] * (2 - stir)
        heapq.heapreplace(heap, (half, large))
        heapq.heappush(heap, (half, empty))
    return (centroids / np.sqrt((centroids * centroids).sum(axis=1))[:, None]).astype(np.float32)


@numba.njit(cache=True)
def _add(sums: np.ndarray, rows: np.ndarray, nearest: np.ndarray) -> None:
    for i in range(len(rows)):
        c = nearest[i]
        for j in range(rows.shape[1]):
            sums[c, j] += rows[i, j]


def _write_sample(vectors: Vectors, ids: np.ndarray, scratch: Path) -> tuple[Path, str]:
    """Lay the sample side by side in one file, named by its content."""
    partial = scratch / f"sample-{uuid.uuid4().hex}.tmp"
    file = new_array(partial, np.float32, (len(ids), vectors.width))
    sha = hashlib.sha256()
    for start in range(0, len(ids), TRAIN_BLOCK):
        block = vectors.take(ids[start : start + TRAIN_BLOCK])
        sha.update(block.data)
        file[start : start + TRAIN_BLOCK] = block
    file.flush()
    path = scratch / f"sample-{sha.hexdigest()[:32]}.npy"
    partial.replace(path)
    return path, sha.hexdigest()


def _without_books(vectors: Vectors) -> Vectors:
    """The same files without what is held for each vector: small enough to be sent with every task, for `take`."""
    return replace(vectors, owner=_NONE, place=_NONE.astype(np.int16), valid=_NONE.astype(bool))


def _space(vectors: Vectors, ids: np.ndarray) -> str:
    """Digest of which vectors these are: the step that wrote them, the ids, and some of the vectors themselves."""
    some = vectors.take(ids[evenly(len(ids), 64)])
    return _digest(vectors.digest, vectors.count, vectors.width, np.ascontiguousarray(ids), some)


def _digest(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.data if isinstance(part, np.ndarray) else repr(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:32]


def _turn_path(scratch: Path, name: str, turn: int) -> Path:
    return scratch / f"{name}-{turn:03d}.npy"


def _seeds_path(scratch: Path, name: str) -> Path:
    return scratch / f"{name}-seeds.npy"


def _put(path: Path, array: np.ndarray) -> None:
    """The file whole or not at all, whoever else writes it too."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)

"""Near pairs of a million embeddings beside brute force on a sample, and beside the bare FAISS calls on the same data in the same run.

    python -m benchmarks.near_vectors [--count 1000000] [--width 512] [--data clustered isotropic] [--folder DIR]

Data are written a block at a time. `clustered`: 5,000 concepts of very different size, two vectors of one at a cosine of about 0.6;
`isotropic`: no structure at all, the worst case for lists, because a near copy across a border has nothing but luck. In both 2 % of the
vectors are copies at a cosine of 0.90 to 0.99 of another, and 2 % look-alikes at 0.80 to 0.89. `tight`, `loose`, `alike`: blobs of 90 % of
the vectors, or all of them, where what is measured is that time and memory stay bounded.

Ours is `near_vectors` on Ray, from the vectors on disk to the pairs; start-up is told apart. Memory is the sum over the whole tree of
processes (driver, Ray's daemons, workers) of their proportional share (PSS, mapped files included), sampled every two seconds: asking the
kernel for it takes 45 ms of CPU, which are not counted as ours.

Bare is one process with everything in memory, timed inside FAISS alone: spherical k-means with as many rounds on as many vectors, the
search of the nearest lists, both on all cores, and a range search of each list's askers among its members, one thread for each core. Rows
are gathered, and exact cosines, order and files are done without, outside that time: they are what ours adds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import faiss
import numpy as np
import psutil

from curation.clusters import ITERATIONS, SAMPLE_PER_CENTROID
from curation.near import Found
from curation.near_vectors import Search, near_vectors
from curation.search_tiles import read_range
from curation.vectors import Vectors, unit, write_vectors
from pipeline import cluster
from pipeline.ray_workers import RayWorkers

FLOOR = 0.9
BATCH = 16_384
CONCEPTS = 5_000
CORES = os.cpu_count() or 1
SAMPLE = 3_000
BLOBS = {"alike": 0.0, "tight": 0.1, "loose": 0.33}  # noise against signal: cosines of 1, 0.99, 0.90, where half of all pairs are near


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--data", nargs="*", default=["clustered", "isotropic"], choices=["clustered", "isotropic", *BLOBS])
    parser.add_argument("--folder", default=None, help="where to put twice the vectors for a while")
    parser.add_argument("--bare", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the bare process: Ray's own would let whatever else runs here go first
    at = time.monotonic()
    cluster.connect()
    warm_up()
    print(f"start-up: {time.monotonic() - at:.1f} s until Ray's workers have imported what they need")
    for kind in arguments.data:
        folder = Path(tempfile.mkdtemp(prefix="fovea-near-", dir=arguments.folder))
        try:
            compare(kind, arguments.count, arguments.width, folder, arguments.bare)
        finally:
            shutil.rmtree(folder)


def warm_up() -> None:
    with tempfile.TemporaryDirectory() as name:
        vectors = write_vectors(f"{name}/vectors", 2_000, np.zeros((0, 2), np.int64), _batches("isotropic", 2_000, 16, []))
        for i in range(CORES):  # a worker for each, whoever is quicker
            fixed = np.zeros(2_000, bool)
            near_vectors(vectors, np.arange(2_000), np.arange(2_000), fixed, FLOOR, Search(20 + i, 4), RayWorkers(CORES), Path(name))


def compare(kind: str, count: int, width: int, folder: Path, bare: bool) -> None:
    print(f"{kind}: {count:,} x {width}", flush=True)
    copies: list[np.ndarray] = []
    batches = _batches(kind, count, width, copies)
    vectors = write_vectors(folder / "vectors", count, np.zeros((0, 2), np.int64), batches, digest=kind)
    rank = np.random.default_rng(1).permutation(count)
    with Watch() as watch:
        found = near_vectors(vectors, np.arange(count), rank, np.zeros(count, bool), FLOOR, Search(), RayWorkers(CORES), folder / "scratch")
    print(
        f"  ours   {watch.seconds:7.1f} s, {watch.cpu:7.1f} CPU s, peak {watch.peak / 1e9:.2f} GB, of that {watch.base / 1e9:.2f} GB before"
    )
    print(f"         {len(found):,} pairs, {int(found.cut.sum()):,} things cut", flush=True)
    if kind in BLOBS:
        return
    for line in accuracy(vectors, found, np.concatenate(copies)):
        print(f"  {line}", flush=True)
    if bare:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            parts = pool.submit(bare_calls, vectors, Search().probes).result()
        seconds, cpu = (sum(part[i] for part in parts.values()) for i in range(2))
        told = ", ".join(f"{name} {part[0]:.1f}" for name, part in parts.items())
        print(f"  bare   {seconds:7.1f} s, {cpu:7.1f} CPU s inside FAISS ({told})")
        print(f"         {seconds / watch.seconds:.2f} of our time (goal 0.8), {cpu / watch.cpu:.2f} of our CPU seconds")


@dataclass(slots=True)
class Watch:
    """Seconds, CPU seconds and the peak of memory of this process and all below it, while it is open."""

    seconds: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    base: int = 0
    _own: float = 0.0
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self.base, self.cpu = _memory(), -_cpu()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self.seconds = -time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic()
        self._done.set()
        assert self._thread is not None
        self._thread.join()
        self.cpu += _cpu() - self._own

    def _sample(self) -> None:
        while not self._done.wait(2):
            self.peak = max(self.peak, _memory())
        self._own = time.thread_time()


def _tree() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _memory() -> int:
    total = 0
    for process in _tree():
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # gone meanwhile
            continue
        total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def _cpu() -> float:
    total = 0.0
    for process in _tree():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _batches(kind: str, count: int, width: int, copies: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of vectors for `write_vectors`; `copies` gets int64 (k, 2) of a copy and what it is a copy of, for each batch."""
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((CONCEPTS, width), np.float32))[0]
    sizes = rng.lognormal(0, 1.0, CONCEPTS)
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        values = unit(rng.standard_normal((n, width), np.float32))[0]
        if kind == "clustered":
            values = np.sqrt(np.float32(0.6)) * centres[rng.choice(CONCEPTS, n, p=sizes / sizes.sum())] + np.sqrt(np.float32(0.4)) * values
        elif kind in BLOBS:
            blob = slice(0, n if kind == "alike" else n * 9 // 10)
            values[blob] = centres[0] + np.float32(BLOBS[kind]) * values[blob]
        if kind not in BLOBS:
            values = unit(values)[0]
            planted = rng.permutation(n)[: n * 8 // 100 // 2 * 2].reshape(2, -1)
            half = planted.shape[1] // 2
            cosine = np.concatenate([rng.uniform(0.90, 0.99, half), rng.uniform(0.80, 0.89, planted.shape[1] - half)])[:, None]
            across = rng.standard_normal((planted.shape[1], width))
            across -= (across * values[planted[0]]).sum(axis=1)[:, None] * values[planted[0]]
            values[planted[1]] = cosine * values[planted[0]] + np.sqrt(1 - cosine**2) * unit(across)[0]
            copies.append(np.stack([planted[1, :half], planted[0, :half]], axis=1) + start)
        yield np.arange(start, start + n), np.zeros(n, np.int64), values.astype(np.float32)


def accuracy(vectors: Vectors, found: Found, copies: np.ndarray) -> Iterator[str]:
    """Recall and precision of the pairs of a sample, half of it copies, half anything, against all cosines in float64."""
    rng = np.random.default_rng(2)
    half = min(SAMPLE // 2, len(copies))
    sample = np.unique(np.concatenate([rng.choice(copies[:, 0], half, replace=False), rng.choice(vectors.count, half, replace=False)]))
    true = _brute_force(vectors, sample)
    in_sample = np.zeros(vectors.count, bool)
    in_sample[sample] = True
    pairs = np.stack([found.better, found.worse], axis=1)
    mine = {(min(a, b), max(a, b)) for a, b in pairs[in_sample[pairs].any(axis=1)].tolist()}
    hits = len(mine & true.keys())
    yield f"recall {hits / len(true):.4f}, precision {hits / len(mine):.4f}: {len(true):,} pairs of {len(sample):,} vectors by brute force"
    for low, high in ((0.90, 0.92), (0.92, 0.95), (0.95, 1.01)):
        band = {pair for pair, cosine in true.items() if low <= cosine < high}
        yield f"       {len(band & mine) / max(1, len(band)):.4f} of {len(band):,} at {low} to {min(high, 1.0)}"


def _brute_force(vectors: Vectors, sample: np.ndarray) -> dict[tuple[int, int], float]:
    rows = vectors.take(sample)
    true = {}
    for start in range(0, vectors.count, BATCH):
        block = read_range(vectors, start, min(start + BATCH, vectors.count))
        i, j = np.nonzero(rows @ block.T >= FLOOR - 1e-3)
        exact = np.einsum("ij,ij->i", rows[i], block[j], dtype=np.float64)
        for a, b, cosine in zip(sample[i].tolist(), (j + start).tolist(), exact.tolist(), strict=True):
            if a != b and cosine >= FLOOR:
                true[min(a, b), max(a, b)] = cosine
    return true


def bare_calls(vectors: Vectors, probes: int) -> dict[str, tuple[float, float]]:
    """(seconds, CPU seconds) inside FAISS of each of its calls, on as many lists and probes."""
    n, width = vectors.count, vectors.width
    k = round(n**0.5)
    x = np.concatenate([vectors.block(b) for b in range(vectors.blocks)])
    faiss.omp_set_num_threads(CORES)
    kmeans = faiss.Kmeans(width, k, niter=ITERATIONS, spherical=True, max_points_per_centroid=SAMPLE_PER_CENTROID, seed=42)
    parts = {"k-means": _timed(lambda: kmeans.train(x))}
    index = faiss.IndexFlatIP(width)
    index.add(np.asarray(kmeans.centroids))
    near = np.empty((n, probes), np.int64)

    def nearest() -> None:
        for i in range(0, n, BATCH):
            near[i : i + BATCH] = index.search(x[i : i + BATCH], probes)[1]

    parts["lists"] = _timed(nearest)
    askers = np.argsort(near.reshape(-1), kind="stable") // probes
    starts = np.concatenate([[0], np.cumsum(np.bincount(near.reshape(-1), minlength=k))])
    members = np.argsort(near[:, 0], kind="stable")
    firsts = np.concatenate([[0], np.cumsum(np.bincount(near[:, 0], minlength=k))])

    def range_searches(turn: int) -> np.ndarray:
        faiss.omp_set_num_threads(1)
        spent = np.zeros(2)
        for number in range(turn, k, CORES):
            columns = x[members[firsts[number] : firsts[number + 1]]]
            for first in range(int(starts[number]), int(starts[number + 1]), BATCH):
                rows = x[askers[first : min(first + BATCH, int(starts[number + 1]))]]
                result = faiss.RangeSearchResult(len(rows))
                at = np.array([time.perf_counter(), time.thread_time()])
                faiss.range_search_inner_product(
                    faiss.swig_ptr(rows), faiss.swig_ptr(columns), width, len(rows), len(columns), FLOOR, result
                )
                spent += np.array([time.perf_counter(), time.thread_time()]) - at
        return spent

    with ThreadPoolExecutor(CORES) as pool:
        spent = sum(pool.map(range_searches, range(CORES)), np.zeros(2))
    parts["range searches"] = float(spent[0]) / CORES, float(spent[1])
    return parts


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    before = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - before[0], time.process_time() - before[1]


if __name__ == "__main__":
    main()

"""Pairs of 64-bit hashes within a radius, beside FAISS's flat binary index.

    python -m benchmarks.hamming [--cases 1M-random,10M-random,...] [--samples 1000]

random   evenly spread hashes, a twentieth of them copies of another with 0 … radius bits flipped.
bucket   the same, and a twentieth of all alike in their last 24 bits: one bucket of the last band holds them, and few are near each other.
blob     the same, and a twentieth of all within the radius of each other: copies of one hash with up to radius / 2 bits flipped.

Ours: all against all, two processes of one thread each, tables and answers written to disk; each case in a process of its own.
FAISS: IndexBinaryFlat.range_search of `samples` hashes against all, two threads, scaled to all hashes. Its answers are the truth for
recall: of each sampled hash the best-ranked betters must be the very ones that ours gives; and no planted copy may be missing.
Memory: largest resident size of the main process and of a worker, mapped pages of the tables included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np

from curation.hamming import near_hashes
from curation.near import MOST, Found

T = TypeVar("T")
CASES = {
    f"{name}-{kind}": (count, radius, kind)
    for name, count, radius in (("1M", 10**6, 8), ("10M", 10**7, 4))
    for kind in ("random", "bucket", "blob")
}
GOALS = {"1M-random": 120.0, "10M-random": 600.0}
CPUS = 2


@dataclass(frozen=True)
class Processes:
    """`curation.population.Workers`: a pool of this machine."""

    cpus: int = CPUS

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        with ProcessPoolExecutor(self.cpus, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(function, *zip(*tasks, strict=True))


@dataclass(frozen=True)
class Measured:
    seconds: float
    pairs: int
    cut: int
    driver_gb: float
    worker_gb: float
    faiss_seconds: float
    sampled: int
    recall: float
    planted: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    print(
        "case        radius  seconds   goal     pairs      cut  main GB  worker GB  FAISS s (scaled)  times faster  recall  planted",
        flush=True,
    )
    for name in args.cases.split(","):
        count, radius, _ = CASES[name]
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as alone:
            m = alone.submit(measure, name, args.samples).result()
        goal = f"{GOALS[name]:.0f}" if name in GOALS else "-"
        flat = m.faiss_seconds * count / m.sampled
        print(
            f"{name:11} {radius:6} {m.seconds:8.1f} {goal:>6} {m.pairs:9} {m.cut:8} {m.driver_gb:8.2f} {m.worker_gb:10.2f} "
            f"{flat:17.0f} {flat / m.seconds:13.1f} {m.recall:7.4f} {m.planted:8.4f}",
            flush=True,
        )


def measure(name: str, samples: int) -> Measured:
    count, radius, kind = CASES[name]
    rng = np.random.default_rng(7)
    hashes, copies = made(count, radius, kind, rng)
    rank = rng.permutation(count)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = near_hashes(hashes, rank, np.zeros(count, bool), radius, Processes(), Path(folder))
        seconds = time.perf_counter() - began
    driver, worker = (resource.getrusage(who).ru_maxrss / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sample = np.unique(np.concatenate([rng.choice(count, samples // 2, replace=False), copies[: samples // 2, 1]]))
    faiss.omp_set_num_threads(CPUS)
    flat = faiss.IndexBinaryFlat(64)
    flat.add(hashes.view(np.uint8).reshape(-1, 8))
    began = time.perf_counter()
    limits, _, near = flat.range_search(hashes[sample].view(np.uint8).reshape(-1, 8), radius + 1)  # it means: nearer than
    faiss_seconds = time.perf_counter() - began
    truth = [near[a:b] for a, b in zip(limits[:-1].astype(np.int64), limits[1:].astype(np.int64), strict=True)]
    return Measured(
        seconds,
        len(found),
        int(found.cut.sum()),
        driver,
        worker,
        faiss_seconds,
        len(sample),
        recall(found, rank, sample, truth),
        planted_found(found, rank, copies),
    )


def made(count: int, radius: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(hashes uint64 (count,), planted int64 (count / 20, 2): original, copy)."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    chosen = rng.permutation(count)[: count // 20 * 3].reshape(3, -1)
    many, originals, copies = chosen
    if kind == "bucket":
        hashes[many] = hashes[many] >> np.uint64(24) << np.uint64(24)
    if kind == "blob":
        hashes[many] = flipped(np.full(len(many), hashes[0]), radius // 2, rng)
    hashes[copies] = flipped(hashes[originals], radius, rng)
    return hashes, np.stack([originals, copies], axis=1)


def flipped(hashes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    flips = rng.integers(0, most + 1, len(hashes))
    for turn in range(most):
        bit = np.uint64(1) << rng.integers(0, 64, len(hashes)).astype(np.uint64)
        hashes = hashes ^ np.where(turn < flips, bit, np.uint64(0))
    return hashes


def recall(found: Found, rank: np.ndarray, sample: np.ndarray, truth: Sequence[np.ndarray]) -> float:
    """Share of the true best-ranked betters of the sampled that were found; raises where more was found than is true."""
    mine = np.isin(found.worse, sample)
    better, worse = found.better[mine], found.worse[mine]
    hit = total = 0
    for one, near in zip(sample, truth, strict=True):
        betters = near[rank[near] < rank[one]]
        wanted = set(betters[np.argsort(rank[betters])][:MOST].tolist())
        got = set(better[worse == one].tolist())
        assert got <= wanted, f"{got - wanted} are no betters of {one}"
        assert bool(found.cut[one]) == (len(betters) > MOST)
        hit, total = hit + len(got), total + len(wanted)
    return hit / total


def planted_found(found: Found, rank: np.ndarray, copies: np.ndarray) -> float:
    """Share of planted copies that are among the pairs, of those whose betters are not cut."""
    better = np.where(rank[copies[:, 0]] < rank[copies[:, 1]], copies[:, 0], copies[:, 1])
    worse = copies.sum(axis=1) - better
    whole = ~found.cut[worse]
    return float(np.isin(better[whole] << 32 | worse[whole], found.better << 32 | found.worse).mean())


if __name__ == "__main__":
    main()

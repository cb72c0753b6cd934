"""Pairs of MinHash signatures: time, memory, recall and precision, beside datasketch's MinHashLSH in the same run.

    python -m benchmarks.text_pairs [--signatures 1000000] [--beside 50000] [--floor 0.8] [--workers 0]

Signatures of 128 numbers are made without texts, so that the truth is known. "planted": all are random, but a tenth are copies of others,
at similarities of 0.5 to 1. "boilerplate": of a quarter, 65 numbers of 100 are those of one phrase, which makes no two of them near; a
twentieth are near-copies of one text (0.95 of its numbers); a tenth are copies as before. Recall and precision are against brute force for
2,000 evenly spread signatures, half of them of those that were planted. Each measurement is a process of its own; memory is its peak
resident set, the pages of the mapped files among it; cpu_seconds are of that process alone. workers: 0 = in the process, n = on a Ray
cluster of n processors (whose processes those two numbers do not count).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numba
import numpy as np

from curation.near import MOST, Found
from curation.population import OneByOne, Workers
from curation.text_pairs import near_signatures
from curation.vectors import BLOCK, Vectors, write_vectors

WIDTH = 128
ASKED = 2_000
LSH = {"datasketch (its own bands)": None, "datasketch (21 bands of 6)": (21, 6)}  # 6: of 128 numbers the widest that misses ≤ 1 % at 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--signatures", type=int, default=1_000_000)
    parser.add_argument("--beside", type=int, default=50_000, help="signatures for the comparison with datasketch")
    parser.add_argument("--floor", type=float, default=0.8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        system, data, count = args.one
        print(json.dumps(measure(system, data, int(count), args.floor, args.workers)))
        return
    runs = [("ours", "planted", args.signatures), ("ours", "boilerplate", args.signatures)]
    runs += [(system, "planted", args.beside) for system in ("ours", *LSH)]
    runs += [(system, "boilerplate", args.beside) for system in ("ours", *LSH)]
    for system, data, count in runs:
        command = [sys.executable, "-m", "benchmarks.text_pairs", "--one", system, data, str(count), "--floor", str(args.floor)]
        done = subprocess.run([*command, "--workers", str(args.workers)], check=True, capture_output=True, text=True)
        print(done.stdout.splitlines()[-1], flush=True)


def measure(system: str, data: str, count: int, floor: float, cpus: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="text-pairs-"))
    try:
        vectors = write_vectors(folder / "vectors", count, np.zeros((0, 2), np.int64), batches(data, count), dtype="uint32")
        rank = np.random.default_rng(1).permutation(count)
        if system == "ours":
            search: Callable[[np.ndarray], Found | set[tuple[int, int]]] = ours(vectors, rank, floor, folder, cpus)
        else:
            search = datasketchs(vectors, rank, floor, LSH[system])
        search(np.arange(200))  # compiled, connected
        at, used = time.monotonic(), time.process_time()
        found = search(np.arange(count))
        seconds, used = time.monotonic() - at, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        scratch = sum(p.stat().st_size for p in folder.glob("signatures-*/*")) / 1e9
        right, of_right, of_found = judge(found, vectors, rank, floor)
        return {
            "system": system,
            "data": data,
            "signatures": count,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used, 1),
            "peak_gb": round(peak, 2),
            "scratch_gb": round(scratch, 2),
            "pairs": len(found),
            "cut": int(found.cut.sum()) if isinstance(found, Found) else 0,
            "sampled_true_pairs": right,
            "recall": of_right,
            "precision": of_found,
        }
    finally:
        shutil.rmtree(folder)


def batches(data: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Signatures block by block; a copy's original lies in its own block."""
    phrase, text = np.random.default_rng(2).integers(0, 2**32, (2, WIDTH), dtype=np.uint32)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        random = np.random.default_rng((3, start))
        values = random.integers(0, 2**32, (n, WIDTH), dtype=np.uint32)
        if data == "boilerplate":
            quarter, blob = slice(n // 2, n // 2 + n // 4), slice(n - n // 20, n)
            values[quarter] = np.where(random.random((n // 4, WIDTH)) < 0.65, phrase, values[quarter])
            values[blob] = np.where(random.random((n // 20, WIDTH)) < 0.95, text, values[blob])
        copies = n // 10
        share = random.uniform(0.5, 1, (copies, 1))
        values[:copies] = np.where(random.random((copies, WIDTH)) < share, values[random.integers(copies, n, copies)], values[:copies])
        yield np.arange(start, start + n), np.zeros(n, np.int64), values


def ours(vectors: Vectors, rank: np.ndarray, floor: float, folder: Path, cpus: int) -> Callable[[np.ndarray], Found]:
    workers: Workers = OneByOne()
    if cpus:
        from pipeline import cluster
        from pipeline.ray_workers import RayWorkers

        cluster.connect(None)
        workers = RayWorkers(cpus)
    return lambda ids: near_signatures(vectors, ids, rank[ids], np.zeros(len(ids), bool), floor, workers, folder)


def datasketchs(
    vectors: Vectors, rank: np.ndarray, floor: float, params: tuple[int, int] | None
) -> Callable[[np.ndarray], set[tuple[int, int]]]:
    """Its index, asked for each signature; what it answers is checked on the whole signatures, as its own manual advises."""
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    def search(ids: np.ndarray) -> set[tuple[int, int]]:
        signatures = vectors.take(ids)
        hashes = [LeanMinHash(MinHash(hashvalues=row, scheme="affine32")) for row in signatures]
        index = MinHashLSH(threshold=floor, num_perm=WIDTH, params=params)
        for number, one in zip(ids.tolist(), hashes, strict=True):
            index.insert(number, one, check_duplication=False)
        found = set()
        least = ceil(floor * WIDTH - 1e-9)
        for number, one in zip(ids.tolist(), hashes, strict=True):
            others = np.array(index.query(one), np.int64)
            others = others[rank[others] > rank[number]]
            others = others[(signatures[others] == signatures[number]).sum(1) >= least]
            found.update((number, other) for other in others.tolist())
        return found

    return search


def judge(found: Found | set[tuple[int, int]], vectors: Vectors, rank: np.ndarray, floor: float) -> tuple[int, float, float]:
    """(true pairs of the sample, share of them found, share of found ones that are true). Who was cut has its best-ranked betters."""
    n, least = vectors.count, ceil(floor * WIDTH - 1e-9)
    inside = np.arange(n) % BLOCK  # a block's first tenth are copies
    planted = np.flatnonzero(inside < min(BLOCK, n) // 10)
    asked = np.unique(np.concatenate([planted[:: max(1, len(planted) * 2 // ASKED)], np.arange(0, n, max(1, n * 2 // ASKED))]))
    signatures = vectors.take(asked)
    true: dict[int, list[int]] = {i: [] for i in asked.tolist()}
    for number in range(vectors.blocks):
        for i, j in _near(np.array(vectors.block(number)), signatures, least):
            other = int(i) + number * BLOCK
            if rank[other] < rank[asked[j]]:
                true[int(asked[j])].append(other)
    right = set()
    for worse, betters in true.items():
        betters.sort(key=lambda b: rank[b])
        right.update((b, worse) for b in (betters[:MOST] if isinstance(found, Found) else betters))
    pairs = set(zip(found.better.tolist(), found.worse.tolist(), strict=True)) if isinstance(found, Found) else found
    pairs = {(b, w) for b, w in pairs if w in true}
    return len(right), round(len(pairs & right) / max(1, len(right)), 5), round(len(pairs & right) / max(1, len(pairs)), 5)


@numba.njit(cache=True)
def _near(block, signatures, least):  # type: ignore[no-untyped-def]
    found = [(np.int64(0), np.int64(0)) for _ in range(0)]
    for i in range(len(block)):
        for j in range(len(signatures)):
            equal = 0
            for k in range(block.shape[1]):
                equal += 1 if block[i, k] == signatures[j, k] else 0
            if equal >= least:
                found.append((np.int64(i), np.int64(j)))
    return found


if __name__ == "__main__":
    main()

"""What a million, a hundred million and a billion vectors cost: the planner itself on simulated lists, and measured constants times sizes.

    python -m benchmarks.scale [--counts 1000000 100000000 1000000000] [--width 512] [--probes 16] [--cores 64] [--gflops 90]
    python -m benchmarks.scale --measure                          the constants, on this machine (about two minutes)

No vectors are needed: `curation.search_plan.plan_search` cuts the work from the sizes of the lists, so it is run here at full size, in the
shapes that data have: lists of about equal size, heavy-tailed ones, one list with 5 % of the data, one with 90 %. The time and peak memory
of that planning are measured; the rest is its sum of multiply-adds over cores and GFLOP/s.

Who asks a list is simulated unkindly: every vector asks `probes` - 1 lists besides its own, in proportion to their sizes, so that the
largest are asked most. In a list far above the average nearly all are alike (k-means divides what is not), and a vector is done when it has
found more than MOST better ones: `worst` counts every comparison all the same, `closing` a list's members for the first CLOSED only where
the list is over BLOB times the average. Between the two lies the truth for what is alike, `worst` is that for what is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import balance, deduplicate
from curation.clusters import ASSIGN_BLOCK, ITERATIONS, SAMPLE_PER_CENTROID, assign, train_centroids
from curation.near_vectors import Search, near_vectors
from curation.population import OneByOne, population_of
from curation.search_plan import MEMORY, SearchPlan, plan_search
from curation.stars import links_of, walk
from curation.vectors import write_vectors

ROWS = ("balance", "near", "deduplicate")
SHAPES = ("even", "heavy", "5 %", "90 %")
BLOB = 64
CLOSED = 2_048


@dataclass(frozen=True, slots=True)
class Planned:
    """own, others: the two passes. closing, worst: multiply-adds. seconds: of the planning."""

    own: SearchPlan
    others: SearchPlan
    closing: float
    worst: float
    seconds: float


def list_sizes(shape: str, count: int, lists: int) -> np.ndarray:
    """int64 (lists,) that sum to `count`."""
    rng = np.random.default_rng(0)
    weights = rng.lognormal(0, 0.5, lists) if shape == "even" else rng.pareto(1.2, lists) + 0.05
    if shape.endswith("%"):
        share = float(shape[:-1]) / 100
        weights[0] = 0
        weights *= (1 - share) / weights.sum()
        weights[0] = share
    edges = np.round(np.cumsum(weights / weights.sum()) * count).astype(np.int64)
    return np.diff(np.concatenate([[0], edges]))


def askers(sizes: np.ndarray, probes: int) -> np.ndarray:
    """int64 (k,): how many of other lists ask each: in proportion to its size, each vector a list at most once."""
    count, given = int(sizes.sum()), np.zeros(len(sizes))
    left = float(count) * min(probes - 1, len(sizes) - 1)
    room = (count - sizes).astype(np.float64)
    for _ in range(20):
        weights = np.where(given < room, sizes, 0).astype(np.float64)
        if left < 1 or not weights.any():
            break
        more = np.minimum(room - given, left * weights / weights.sum())
        given, left = given + more, left - more.sum()
    return given.astype(np.int64)


def planned(sizes: np.ndarray, probes: int, width: int) -> Planned:
    at = time.perf_counter()
    asking = askers(sizes, probes)
    own = plan_search(sizes, sizes, width, triangle=True)
    others = plan_search(sizes, asking, width)
    seconds = time.perf_counter() - at
    blob = sizes > BLOB * max(1.0, float(sizes.mean()))
    columns = np.where(blob, np.minimum(sizes, CLOSED), sizes).astype(np.float64)
    closing = float((np.where(blob, sizes * columns, sizes * columns / 2) + asking * columns).sum()) * width
    return Planned(own, others, closing, float(own.work.sum() + others.work.sum()), seconds)


def simulate(count: int, width: int, probes: int, cores: int, gflops: float) -> None:
    """Print the planner's answer for every shape."""
    lists = max(1, round(count**0.5))
    hour = cores * gflops * 1e9 * 3600
    print(f"\n{count:,} x {width}, {lists:,} lists, {probes} probes, {cores} cores of {gflops:g} GFLOP/s")
    print("| lists | largest | tasks | largest task | PFLOP closing | worst | hours closing | worst | planned in | driver peak |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        found = json.loads(_in_process(["--plan", shape, "--counts", str(count), "--width", str(width), "--probes", str(probes)]))
        largest = f"{found['memory'] / 1e6:.0f} MB, {found['longest'] * 2 / gflops / 1e9:.0f} s"
        work = " | ".join(f"{found[which] * 2 / unit:.3g}" for unit in (1e15, hour) for which in ("closing", "worst"))
        planning = f"{found['seconds']:.1f} s | {found['peak'] / 1e6:.0f} MB"
        print(f"| {shape} | {found['largest']:,} | {found['tasks']:,} | {largest} | {work} | {planning} |")


def plan(shape: str, count: int, width: int, probes: int) -> dict[str, float]:
    """In a process of its own, so that its peak is the planner's: what Python and its libraries take is subtracted."""
    before = peak()
    sizes = list_sizes(shape, count, max(1, round(count**0.5)))
    assert int(sizes.sum()) == count
    found = planned(sizes, probes, width)
    grown = peak() - before
    work = np.concatenate([found.own.work, found.others.work])
    assert max(found.own.bytes, found.others.bytes) <= MEMORY
    return {
        "largest": int(sizes.max()),
        "tasks": found.own.tasks + found.others.tasks,
        "memory": max(found.own.bytes, found.others.bytes),
        "longest": float(work.max()),
        "closing": found.closing,
        "worst": found.worst,
        "seconds": found.seconds,
        "peak": grown,
    }


def costs(count: int, width: int, probes: int, cores: int, gflops: float) -> None:
    """Print the arithmetic: what every stage computes and writes. Rates of disks and networks are the reader's."""
    lists = max(1, round(count**0.5))
    hour = cores * gflops * 1e9 * 3600
    clusters = 1000 if count <= 10**7 else 5000
    flop = {
        "k-means of lists": 2.0 * min(count, lists * SAMPLE_PER_CENTROID) * lists * width * ITERATIONS,
        "nearest lists": 2.0 * count * lists * width,
        "search, even lists": 2.0 * (0.5 + probes - 1) * count * count / lists * width,
        f"k-means of balance, {clusters:,}": 2.0
        * min(count, clusters * balance.SAMPLE_PER_CENTROID)
        * clusters
        * width
        * (balance.ITERATIONS + 1),
        f"balance, nearest of {clusters:,}": 2.0 * count * clusters * width,
    }
    print(f"\n{count:,} x {width}, {cores} cores")
    for name, value in flop.items():
        print(f"  {name:32s} {value * 1e-15:12.4g} PFLOP {value / hour:10.3g} h")
    written = {"vectors": 4 * width * count, "vectors by list": 4 * width * count, "probes, cosines": 8 * probes * count}
    written["askers"] = (4 if count < 2**31 else 8) * (probes - 1) * count
    for name, size in written.items():
        print(f"  {name:32s} {size / 1e9:12.4g} GB on disk")
    print(f"  {'tasks of `assign`':32s} {-(-count // ASSIGN_BLOCK):12,}")


def measure() -> None:
    """The constants that docs/scale.md stands on. Seconds are of one processor, so that what else it does has little part in them."""
    with tempfile.TemporaryDirectory(prefix="fovea-scale-") as folder:
        made = list(random_batches(65_536, 512))
        at = time.process_time()
        vectors = write_vectors(Path(folder) / "v", 65_536, np.zeros((0, 2)), made)
        print(f"vectors into blocks: {65_536 * 2048 / (time.process_time() - at) / 1e9:.2f} GB/s on one core")
        ids = np.arange(65_536)
        for k in (1_000, 5_000):
            centroids = vectors.take(ids[:k])
            for probes in (1, 16):
                at = time.process_time()
                assign(vectors, ids, centroids, probes, OneByOne(), Path(folder) / f"s{k}-{probes}")
                seconds = time.process_time() - at
                print(f"assign, {k} centroids, {probes} probes: {2 * len(ids) * k * 512 / seconds / 1e9:.0f} GFLOP/s on one core")
        train_centroids(vectors, ids[:5000], 10, 1, OneByOne(), Path(folder) / "warm", iterations=1)
        at = time.process_time()
        train_centroids(vectors, ids, 1_000, 1, OneByOne(), Path(folder) / "t", iterations=4)
        seconds = time.process_time() - at
        print(f"k-means, 1,000 centroids: {2 * 64_000 * 1_000 * 512 * 4 / seconds / 1e9:.0f} GFLOP/s on one core")
    rng = np.random.default_rng(0)
    better, worse = np.sort(rng.integers(0, 5_000_000, (2, 5_000_000)), axis=0)
    parts = [(better[better < worse], worse[better < worse], np.ones(int((better < worse).sum()), np.float32), 1)]
    for _ in range(2):  # the first compiles
        at = time.process_time()
        links = links_of([(a, b, similarity, np.full(len(a), rung, np.int8)) for a, b, similarity, rung in parts])
        walk(5_000_000, links, np.zeros(5_000_000, bool))
        seconds = time.process_time() - at
    print(f"walk: {seconds / 5:.2f} s a million pairs, putting them in order included")
    for what in ROWS:
        few, many = (json.loads(_in_process(["--rows", what, "--counts", str(n)])) for n in (500_000, 2_000_000))
        per_row = (many["peak"] - few["peak"]) / 1_500_000
        seconds = (many["seconds"] - few["seconds"]) / 1.5
        print(f"{what}: {per_row:.0f} bytes of the driver's memory a row, {seconds:.2f} s a million rows")


def rows(what: str, count: int) -> dict[str, float]:
    """Peak memory and time of a driver over `count` vectors of 8 numbers: what is paid for the row, not for its vector."""
    with tempfile.TemporaryDirectory(prefix="fovea-scale-") as folder:
        vectors = write_vectors(Path(folder) / "v", count, np.zeros((0, 2)), random_batches(count, 8))
        at = time.process_time()
        if what == "near":
            rank = np.random.default_rng(0).permutation(count)
            near_vectors(vectors, np.arange(count), rank, np.zeros(count, bool), 0.9999, Search(probes=2), OneByOne(), Path(folder) / "s")
        else:
            rng = np.random.default_rng(0)
            columns = {"uid": _hex(np.arange(count), 22), "kind": pa.repeat("image", count), "score": rng.random(count)}
            if what == "deduplicate":
                one = np.arange(count + 1, dtype=np.int32)
                columns["sha256"] = pa.ListArray.from_arrays(one, _hex(rng.permutation(count), 54))
                columns["phash"] = pa.ListArray.from_arrays(one, pa.array(rng.integers(0, 2**63, count).astype(np.uint64)))
            population = population_of(pa.table(columns), Path(folder) / "s", vectors={"embedding": vectors})
            (Path(folder) / "s").mkdir(exist_ok=True)
            at = time.process_time()
            if what == "balance":
                balance.reduce(balance.What(clusters=64, keep_best="score desc"), population)
            else:
                deduplicate.reduce(deduplicate.What(phash_radius=4, keep_best="score desc"), population)
        return {"peak": peak(), "seconds": time.process_time() - at}


def _hex(numbers: np.ndarray, zeros: int) -> pa.Array:
    """Texts of ten digits and so many zeros."""
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), 10, "0")
    return pc.binary_join_element_wise(digits, "0" * zeros, "")


def random_batches(count: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for start in range(0, count, 65_536):
        n = min(65_536, count - start)
        yield np.arange(start, start + n), np.zeros(n, np.int64), rng.standard_normal((n, width), dtype=np.float32)


def peak() -> int:
    """Most bytes that this program has had in memory (Linux). Not `ru_maxrss`, which begins at what the process had that started it."""
    line = next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _in_process(arguments: list[str]) -> str:
    command = [sys.executable, "-m", "benchmarks.scale", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="*", default=[10**6, 10**8, 10**9])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--gflops", type=float, default=90.0, help="of one core, as --measure and the search's benchmark find them")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--plan", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        print(json.dumps(plan(arguments.plan, arguments.counts[0], arguments.width, arguments.probes)))
    elif arguments.rows:
        print(json.dumps(rows(arguments.rows, arguments.counts[0])))
    elif arguments.measure:
        measure()
    else:
        for count in arguments.counts:
            simulate(count, arguments.width, arguments.probes, arguments.cores, arguments.gflops)
        for count in arguments.counts:
            costs(count, arguments.width, arguments.probes, arguments.cores, arguments.gflops)


if __name__ == "__main__":
    main()

"""`balance` beside the bare FAISS calls on the same vectors in the same run: time, and peak memory of everything.

    python -m benchmarks.balance [--count 1000000] [--width 512] [--clusters 1000] [--folder DIR]

Ours is `curation.balance.reduce` on two processes of one thread each, from the vectors on disk to the table: sample, seeds, k-means,
nearest centroids, ordering, ranks and caps. Bare is one process with all vectors in memory: FAISS's spherical k-means on as many vectors
with as many rounds, and its flat search of the nearest centroid, both on as many threads; only the two calls are timed.

Vectors: `--concepts` places of very different size, two vectors of one at a cosine of about 0.6. Both are judged by the mean cosine of a
vector with its centroid, and by how many concepts keep something at a cap of a tenth of the mean size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import psutil
import pyarrow as pa

from curation.balance import ITERATIONS, SAMPLE_PER_CENTROID, What, reduce
from curation.population import population_of
from curation.vectors import Vectors, write_vectors
from shards.sample import uid_of

T = TypeVar("T")
CORES = 2
BATCH = 16_384


@dataclass
class Processes:
    """Workers: processes of this machine."""

    pool: ProcessPoolExecutor
    cpus: int = CORES

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        waiting: list[Any] = []
        for task in tasks:
            waiting.append(self.pool.submit(function, *task))
            if len(waiting) >= 2 * self.cpus:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def concepts_of(count: int, concepts: int) -> np.ndarray:
    """int64 (count,): which concept each vector is of; sizes fall as in a Zipf law."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, concepts + 1)
    return rng.choice(concepts, count, p=weights / weights.sum())


def batches(count: int, width: int, concepts: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    middle = rng.standard_normal((concepts, width), dtype=np.float32)
    of = concepts_of(count, concepts)
    for start in range(0, count, BATCH):
        part = of[start : start + BATCH]
        noise = rng.standard_normal((len(part), width), dtype=np.float32)
        yield np.arange(start, start + len(part)), np.zeros(len(part), np.int64), middle[part] + 0.8 * noise


def ours(vectors: Vectors, what: What, folder: Path, concepts: int) -> dict[str, Any]:
    uids = sorted(uid_of("balance", str(i)) for i in range(vectors.count))
    score = np.random.default_rng(2).random(vectors.count)
    table = pa.table({"uid": uids, "kind": pa.repeat("image", vectors.count), "score": score})
    del uids
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(_warm, range(CORES)))
        with Peak() as peak:
            at, used = time.perf_counter(), cpu()
            found = reduce(what, population_of(table, folder / "scratch", vectors={"embedding": vectors}, workers=Processes(pool)))
            seconds, used = time.perf_counter() - at, cpu() - used
    kept = found["rank"].to_numpy() < found["cap"].to_numpy()
    near = folder / "scratch"
    like = next(near.glob("assigned-*-like.npy"))
    of = concepts_of(vectors.count, concepts)
    return {
        "seconds": seconds,
        "cpu": used,
        "peak": peak.most,
        "cosine": float(np.load(like).mean()),
        "kept": int(kept.sum()),
        "concepts": len(np.unique(of[kept])),
    }


def bare(vectors: Vectors, what: What, concepts: int) -> dict[str, Any]:
    faiss.omp_set_num_threads(CORES)
    values = vectors.take(np.arange(vectors.count))
    with Peak() as peak:
        at, used = time.perf_counter(), cpu()
        sample = min(vectors.count, what.clusters * SAMPLE_PER_CENTROID)
        means = faiss.Kmeans(
            vectors.width, what.clusters, niter=ITERATIONS, seed=what.seed, spherical=True, max_points_per_centroid=SAMPLE_PER_CENTROID
        )
        means.train(values[:sample])
        trained = time.perf_counter() - at
        cosine, nearest = means.index.search(values, 1)
        seconds, used = time.perf_counter() - at, cpu() - used
    order = np.argsort(nearest[:, 0], kind="stable")
    sizes = np.bincount(nearest[:, 0], minlength=what.clusters)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = place < what.per_cluster
    of = concepts_of(vectors.count, concepts)
    return {
        "seconds": seconds,
        "cpu": used,
        "train": trained,
        "peak": peak.most,
        "cosine": float(cosine.mean()),
        "kept": int(kept.sum()),
        "concepts": len(np.unique(of[kept])),
    }


class Peak:
    """Most bytes of this process and its children (proportional share, mapped files included), looked at five times a second."""

    def __enter__(self) -> Peak:
        self.most, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, total)
            if self.done.wait(0.2):
                return


def cpu() -> float:
    """Seconds of processors that this process and its children have used."""
    me = psutil.Process()
    return sum(times.user + times.system for times in (process.cpu_times() for process in [me, *me.children(recursive=True)]))


def _warm(_: int) -> None:
    import curation.clusters  # noqa: F401

    time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--concepts", type=int, default=3_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to put the vectors for a while")
    parser.add_argument("--side", choices=["ours", "bare"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    what = What(clusters=arguments.clusters, per_cluster=max(1, arguments.count // arguments.clusters // 10), keep_best="score desc")
    if arguments.side:
        valid = np.ones(arguments.count, bool)
        none = np.zeros(0, np.int64)
        vectors = Vectors(
            str(arguments.folder / "v"),
            arguments.count,
            arguments.count,
            arguments.width,
            "float32",
            "",
            none,
            none.astype(np.int16),
            valid,
        )
        found = (
            ours(vectors, what, arguments.folder, arguments.concepts)
            if arguments.side == "ours"
            else bare(vectors, what, arguments.concepts)
        )
        print(json.dumps(found))
        return
    folder = Path(tempfile.mkdtemp(prefix="fovea-balance-", dir=arguments.folder))
    try:
        write_vectors(folder / "v", arguments.count, np.zeros((0, 2)), batches(arguments.count, arguments.width, arguments.concepts))
        rest = [f"--{name}={getattr(arguments, name)}" for name in ("count", "width", "clusters", "concepts")]
        sides = {}
        for side in ("bare", "ours"):
            command = [sys.executable, "-m", "benchmarks.balance", f"--side={side}", f"--folder={folder}", *rest]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            sides[side] = json.loads(output.splitlines()[-1])
            print(f"{side}: {json.dumps(sides[side])}")
        print(f"the bare calls take {sides['bare']['seconds'] / sides['ours']['seconds']:.2f} of the time")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

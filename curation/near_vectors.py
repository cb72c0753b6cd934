"""All pairs of embeddings above a cosine: exact for few, by lists of k-means with several probes for many, in memory that no data breaks.

How it goes. Centroids are learned from a sample, each vector gets its nearest `probes` lists (curation/clusters.py), and a second file
holds the vectors in order of list and rank. A vector is compared with everything in the lists that it probes, so a pair is found when
*either* end probes the other's own list: pairs across borders too. The work is cut into tiles of bounded size (search_plan), run as tasks
of one thread each (search_tiles: FAISS proposes, float64 sums decide), and their files become one answer (search_merge).

Blobs. Where thousands are near each other, nobody needs all the pairs. Own lists are searched first, each with its members in order of
rank; who has found more than `most` betters there is done, and meets other lists only for the sake of those that are not. Nothing is hashed
or collapsed for this: equal vectors are a blob like any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from curation.clusters import assign, evenly, train_centroids
from curation.near import MOST, Found
from curation.population import Workers
from curation.search_files import mapped, put, whole
from curation.search_lists import Lists, lay_out, write_asking
from curation.search_merge import betters_of, merge
from curation.search_plan import MEMORY, SearchPlan, plan_search
from curation.search_tiles import SearchSpace, search_task
from curation.vectors import Vectors

EXACT = 20_000  # vectors that are compared each with each: that takes seconds
VERSION = 1  # of the files in scratch


@dataclass(frozen=True, slots=True)
class Search:
    """How near embeddings are looked for.

    lists   of k-means; 1 compares all with all, 0 is 1 up to EXACT vectors and the root of their number above.
    probes  lists that each vector is compared with, its own among them. More find more: of pairs at cosine 0.90 among a million isotropic
            vectors of 512 numbers (the worst data there is) 16 of 1,000 find 99.6 %.
    seed    of k-means.
    """

    lists: int = 0
    probes: int = 16
    seed: int = 42


def near_vectors(
    vectors: Vectors,
    ids: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    floor: float,
    search: Search,
    workers: Workers,
    scratch: Path,
    queries: np.ndarray | None = None,
    most: int = MOST,
    gpus: float = 0.0,
) -> Found:
    """Pairs of `ids` with a cosine of at least `floor` (as float32), numbered by their place in `ids`.

    ids      int64 (m,), each once; those without a valid vector are near nothing. rank: int64 (m,), each once, lowest is best.
    fixed    bool (m,): of better rank than all others; pairs of two of them are not wanted.
    queries  bool (m,): only pairs with an end in it are wanted. None: all.
    most     betters given of each (Found.cut), fewer where that would be over ROOM pairs a thing (curation/near.py).
    gpus     of a task; 0 searches on the CPU.

    A pure function of which vectors have which rank: neither the order of ids, nor workers, nor the cut into tasks shows. With several
    lists a pair may be missed (Search.probes); none is ever wrong. Who has more than `most` betters in its own list is given those alone.
    Files of tasks lie in `scratch` under a digest of all this until the answer is there, which stays; who was killed goes on from them.
    Raises ValueError for arguments that contradict this.
    """
    ids, rank, fixed = np.asarray(ids, np.int64), np.asarray(rank, np.int64), np.asarray(fixed, bool)
    asks = np.ones(len(ids), bool) if queries is None else np.asarray(queries, bool)
    _check(vectors, ids, rank, fixed, asks, floor, search, most)
    things = np.argsort(ids, kind="stable")
    things = things[vectors.valid[ids[things]]] if vectors.count else things[:0]
    none = Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(len(ids), bool))
    if len(things) < 2 or fixed[things].all() or not asks[things].any():
        return none
    lists = min(search.lists or (1 if len(things) <= EXACT else round(len(things) ** 0.5)), len(things))
    by_rank = np.argsort(rank[things], kind="stable")
    dense = np.empty(len(things), np.int64)
    dense[by_rank] = np.arange(len(things))
    digest = _digest(vectors, ids[things], dense, fixed[things], asks[things], (floor, lists, search.probes, search.seed, most))
    folder, answer = scratch / f"near-{digest}", scratch / f"near-{digest}.npz"
    if not answer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        near = np.zeros((len(things), 1), np.int32)
        if lists > 1:
            centroids = train_centroids(vectors, ids[things], lists, search.seed, workers, folder, gpus=gpus)
            lists = len(centroids)
            near = assign(vectors, ids[things], centroids, search.probes, workers, folder, gpus)[0]
        laid = lay_out(vectors, ids[things], dense, asks[things], near, lists, workers, folder)
        files = _search(laid, ~fixed[things[by_rank]], floor, most, workers, folder, gpus)
        found = merge(files, by_rank, most, workers, folder)
        with whole(answer) as file:
            np.savez(file, better=found.better, worse=found.worse, similarity=found.similarity, cut=found.cut)
        shutil.rmtree(folder, ignore_errors=True)  # a shared disk may hold on to files that a worker has open
    with np.load(answer, allow_pickle=False) as held:
        none.cut[things] = held["cut"]
        return Found(things[held["better"]], things[held["worse"]], held["similarity"], none.cut)


def _search(lists: Lists, may_lose: np.ndarray, floor: float, most: int, workers: Workers, folder: Path, gpus: float) -> list[Path]:
    """Own lists, then the others; the files of all tasks. may_lose: bool (n,), by rank."""
    ranks, starts = mapped(lists.ranks), lists.starts
    first, last = starts[:-1].copy(), starts[1:].copy()
    last[1::2] = first[1::2]  # those that are no queries: pairs among themselves are not wanted
    still_open = may_lose[ranks]
    losers = np.add.reduceat(np.append(still_open, False), first, dtype=np.int64) * (last > first)
    own = plan_search(last - first, losers, lists.vectors.width, MEMORY, triangle=True)
    opened = folder / "open-0.npy"
    put(opened, still_open)
    space = SearchSpace(lists.vectors, lists.ranks, str(opened), floor, most)
    files = _run(own, space, last - losers, first, "", folder / "own", workers, gpus)

    still_open &= (betters_of(files, len(ranks)) <= most)[ranks]
    opened, asking = folder / "open-1.npy", folder / "asking.npy"
    put(opened, still_open)
    rows = write_asking(lists, still_open, asking)
    space = SearchSpace(lists.vectors, lists.ranks, str(opened), floor, most)
    others = plan_search(np.diff(starts), np.diff(rows), lists.vectors.width, MEMORY)
    return files + _run(others, space, rows, starts, str(asking), folder / "others", workers, gpus)


def _run(
    plan: SearchPlan,
    space: SearchSpace,
    row_starts: np.ndarray,
    column_starts: np.ndarray,
    asking: str,
    name: Path,
    workers: Workers,
    gpus: float,
) -> list[Path]:
    """Run the tasks of a plan whose files are not there; the files of all. Pool i's rows begin at row_starts[i], columns likewise."""
    files = [name.with_name(f"{name.name}-{i:06d}.pairs") for i in range(plan.tasks)]

    def tasks() -> Iterator[tuple[SearchSpace, np.ndarray, str, str, float]]:
        for i, file in enumerate(files):
            t = slice(plan.starts[i], plan.starts[i + 1])
            rows, columns = row_starts[plan.pool[t]], column_starts[plan.pool[t]]
            tiles = np.stack(
                [rows + plan.row_first[t], rows + plan.row_last[t], columns + plan.column_first[t], columns + plan.column_last[t]], axis=1
            )
            if not file.exists():
                yield space, tiles, asking, str(file), gpus

    for _ in workers.map(search_task, tasks(), gpus=gpus):
        pass
    return files


def _check(
    vectors: Vectors, ids: np.ndarray, rank: np.ndarray, fixed: np.ndarray, asks: np.ndarray, floor: float, search: Search, most: int
) -> None:
    if not len(ids) == len(rank) == len(fixed) == len(asks):
        raise ValueError(f"{len(ids)} ids, {len(rank)} ranks, {len(fixed)} fixed and {len(asks)} queries: one of each for every id")
    if len(np.unique(ids)) < len(ids) or len(np.unique(rank)) < len(rank):
        raise ValueError("an id or a rank is there twice")
    if fixed.any() and not fixed.all() and rank[fixed].max() > rank[~fixed].min():
        raise ValueError("a fixed one is ranked behind one that is not")
    if vectors.count and vectors.dtype != "float32":
        raise ValueError(f"vectors of {vectors.dtype} are no embeddings")
    if not -1 < floor <= 1 or most < 1 or search.lists < 0 or search.probes < 1:
        raise ValueError(f"floor {floor} (-1 to 1), most {most}, lists {search.lists} or probes {search.probes} (at least 1) cannot be")


def _digest(vectors: Vectors, ids: np.ndarray, rank: np.ndarray, fixed: np.ndarray, asks: np.ndarray, others: tuple[object, ...]) -> str:
    """Of all that decides the answer; of the vectors themselves a few hundred, besides what wrote them."""
    hashed = xxhash.xxh3_128(repr((VERSION, vectors.digest, vectors.count, vectors.width, *others)).encode())
    for array in (ids, rank, fixed, asks, vectors.take(ids[evenly(len(ids), 256)])):
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()

"""Takes so many pictures of each cluster of like ones, so that common concepts do not drown the rare (VideoLLaMA3 report §2.1, step 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.ordering import order_columns, ordered
from curation.population import Population
from curation.step import Column, How, Step
from shards.errors import InfrastructureError

IMAGE = frozenset({"image"})
POINTS_PER_CENTROID = 256  # more do not move a centroid; FAISS's own bound
ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class What:
    """embedding    column with the vectors, "embedding" or "clip_embedding"; of several media the first that has one counts.
    clusters     k of k-means; fewer where there are fewer pictures.
    per_cluster  so many pictures of each cluster stay; 0 = by `alpha` and `total`.
    alpha        each cluster's share is in proportion to its size to the power of alpha: 1 = as it is, 0 = all clusters alike.
    total        how many pictures stay, with alpha: a number, or below 1 a share of the population, rounded up.
    keep_best    an SQL ordering over scores that says which of a cluster stay; completed by uid, which alone is a fixed random order.
    seed         of k-means.
    """

    embedding: str = "embedding"
    clusters: int = 1000
    per_cluster: int = 0
    alpha: float = 0.5
    total: float = 0.5
    keep_best: str = ""
    seed: int = 42


def reduce(what: What, population: pa.Table) -> pa.Table:
    """Cluster, its size, rank and cap of each sample: (uid, cluster, size, rank, cap), in order of uid.

    population: uid string, kind string, the embedding column list<list<float>>, and the columns that keep_best names.

    k-means is spherical: vectors are of unit length and compared by cosine. A sample without a vector, or with one that is zero or not
    finite, is in no cluster (NULL) and stays. Depends on the set of rows alone: k-means learns from the rows of lowest uid.
    """
    population = population.sort_by("uid")
    vectors, rows = _vectors(population[what.embedding])
    n = len(population)
    cluster = np.full(n, -1, np.int32)
    if len(rows):
        cluster[rows] = _assign(vectors, min(what.clusters, len(rows)), what.seed)
    sizes = np.bincount(cluster[rows], minlength=1)
    caps = _caps(what, sizes)
    rank = np.full(n, -1, np.int32)
    seen = np.zeros(len(sizes), np.int32)
    for place in ordered(what.keep_best, population):
        if (c := cluster[place]) >= 0:
            rank[place] = seen[c]
            seen[c] += 1
    absent = cluster < 0
    of = np.where(absent, 0, cluster)
    columns = {"cluster": cluster, "size": sizes[of], "rank": rank, "cap": caps[of]}
    arrays = {name: pa.array(values.astype(np.int32), mask=absent) for name, values in columns.items()}
    return pa.table({"uid": population["uid"].cast(pa.string()), **arrays})


def _vectors(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (m, d) of unit length, int64 (m,) row numbers) of rows that have one. Raises InfrastructureError for two lengths."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_list(column.type.value_type):  # a value for each medium
        inner = column.flatten()
        valid = pc.is_valid(inner)
        owner = pc.list_parent_indices(column).filter(valid).to_numpy()
        inner = inner.filter(valid)
        rows, first = np.unique(owner, return_index=True)
        inner = inner.take(pa.array(first))
    else:
        rows = np.flatnonzero(pc.is_valid(column))
        inner = column.drop_null()
    if not len(rows):
        return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    lengths = np.unique(pc.list_value_length(inner).to_numpy())
    if len(lengths) > 1:
        raise InfrastructureError(f"vectors of {lengths.min()} and {lengths.max()} numbers cannot be clustered: they are not of one model")
    vectors = inner.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), int(lengths[0]))
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    good = np.isfinite(norms) & (norms > 0)
    return (vectors[good] / norms[good, None]).astype(np.float32), rows[good].astype(np.int64)


def _with_vectors(what: What, population: Population) -> pa.Table:
    held = population.vectors[what.embedding]
    ids = np.arange(population.table.num_rows)
    lists = [v.tolist() if held.count and held.valid[i] else None for i, v in zip(ids, held.take(ids) if held.count else ids, strict=True)]
    return population.table.append_column(what.embedding, pa.array(lists, pa.list_(pa.float32())))


def _assign(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """int32 (n,): the nearest of k centroids. One thread, because the order of a sum shows in its last digit."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        means = faiss.Kmeans(
            vectors.shape[1],
            k,
            niter=ITERATIONS,
            seed=seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=POINTS_PER_CENTROID,
        )
        means.train(vectors[: k * POINTS_PER_CENTROID])
        _, nearest = means.index.search(vectors, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    found: np.ndarray = nearest[:, 0].astype(np.int32)
    return found


def _caps(what: What, sizes: np.ndarray) -> np.ndarray:
    """int64 (k,): how many of each cluster stay. With alpha: min(size, s·size^alpha) for the s that gives the total."""
    if what.per_cluster:
        return np.minimum(sizes, what.per_cluster)
    total = min(int(sizes.sum()), math.ceil((what.total if what.total >= 1 else what.total * sizes.sum()) - 1e-9))
    weights = np.where(sizes > 0, np.maximum(sizes, 1) ** what.alpha, 0.0)
    low, high = 0.0, float(max(sizes.max(), 1))  # at `high` every cluster stays whole, for weights are at least 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(sizes, middle * weights).sum() < total else (low, middle)
    caps = np.minimum(sizes, np.floor(high * weights + 1e-9)).astype(np.int64)
    missing = total - int(caps.sum())
    open_clusters = np.flatnonzero(caps < sizes)
    by_share = open_clusters[np.argsort(-(high * weights - caps)[open_clusters], kind="stable")]
    caps[by_share[: max(0, missing)]] += 1  # largest remainders first
    return caps


def _columns(what: What) -> list[Column]:
    return [
        Column("cluster", pa.int32(), IMAGE, doc="number of the cluster; NULL without a vector"),
        Column("size", pa.int32(), IMAGE, doc="pictures in the cluster"),
        Column("rank", pa.int32(), IMAGE, doc="place within the cluster by keep_best and uid, from 0"),
        Column("cap", pa.int32(), IMAGE, doc="so many of the cluster stay"),
    ]


def _check(what: What) -> None:
    if what.clusters < 1:
        raise ValueError(f"clusters: {what.clusters} is below 1")
    if what.per_cluster < 0:
        raise ValueError(f"per_cluster: {what.per_cluster} is below 0; 0 means by alpha and total")
    if not 0 <= what.alpha <= 1:
        raise ValueError(f"alpha: {what.alpha} is outside 0..1 (1 = as it is, 0 = all clusters alike)")
    if what.total <= 0:
        raise ValueError(f"total: {what.total} must be above 0: a number of pictures, or below 1 a share")
    order_columns(what.keep_best)


STEP = Step(
    version=1,
    shape="global",
    level="sample",
    applies=IMAGE,
    prefix="balance_",
    what=What,
    how=How,
    columns=_columns,
    reads=lambda what: [c for c in dict.fromkeys([what.embedding, *order_columns(what.keep_best)]) if c not in ("uid", "kind")],
    reduce=lambda what, population: reduce(what, _with_vectors(what, population)),
    implied=lambda what: "{prefix}rank is null or {prefix}rank < {prefix}cap",
    check=_check,
)

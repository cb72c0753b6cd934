"""Takes so many pictures of each cluster of like ones, so that common concepts do not drown the rare (VideoLLaMA3 report §2.1, step 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.clusters import assign, train_centroids
from curation.ordering import order_columns, ordered
from curation.population import Population
from curation.step import Column, How, Step
from curation.vectors import Vectors

IMAGE = frozenset({"image"})
SAMPLE_PER_CENTROID = 128
ITERATIONS = 20


@dataclass(frozen=True, slots=True)
class What:
    """embedding    column with the vectors, "embedding" or "clip_embedding"; of several media the first that has one counts.
    clusters     k of k-means; fewer where there are fewer different pictures.
    per_cluster  so many pictures of each cluster stay; 0 = by `alpha` and `total`.
    alpha        each cluster's share is in proportion to its size to the power of alpha: 1 = as it is, 0 = all clusters alike.
    total        how many pictures stay, with alpha: a number, or below 1 a share of the population, rounded up.
    keep_best    an SQL ordering over scores: the first of a cluster stay. Completed by uid. Empty: they are drawn at random.
    seed         of k-means, and of the draw.
    """

    embedding: str = "embedding"
    clusters: int = 1000
    per_cluster: int = 0
    alpha: float = 0.5
    total: float = 0.5
    keep_best: str = ""
    seed: int = 42


def reduce(what: What, population: Population) -> pa.Table:
    """Cluster, its size, rank and cap of each sample: (uid, cluster, size, rank, cap), in order of uid.

    population: its table has the columns that keep_best names, its vectors the embedding.

    k-means is spherical: vectors are of unit length and compared by cosine. A sample without a vector, or with one that is zero or not
    finite, is in no cluster (NULL) and stays. Depends on the set of samples alone: k-means learns from vectors evenly spaced by uid, a draw
    is by a hash of uid and seed. In memory are the table, about 60 bytes a sample, and one block of vectors for each worker.
    """
    samples = population.table.slice(0, population.samples)
    n = len(samples)
    vectors = population.vectors[what.embedding]
    ids = _first_vectors(vectors, n)
    cluster = np.full(n, -1, np.int32)
    if len(ids):
        workers, scratch, gpus = population.workers, population.scratch, population.how.gpus
        centroids = train_centroids(
            vectors,
            ids,
            what.clusters,
            what.seed,
            workers,
            scratch,
            iterations=ITERATIONS,
            sample_per_centroid=SAMPLE_PER_CENTROID,
            apart=True,
            gpus=gpus,
        )
        cluster[vectors.row_of(ids)] = assign(vectors, ids, centroids, 1, workers, scratch, gpus)[0][:, 0]
    absent = cluster < 0
    sizes = np.bincount(cluster[~absent], minlength=1)
    caps = _caps(what, sizes)
    # the hash's first 64 bits: a draw that neither other samples nor the order of uids, by which k-means learns, has a part in
    order = ordered(what.keep_best.strip() or f"left(md5(uid || ':{what.seed}'), 16)", samples)
    rank = _ranks(cluster, order, sizes)
    of = np.where(absent, 0, cluster)
    columns = {"cluster": cluster, "size": sizes[of], "rank": rank, "cap": caps[of]}
    arrays = {name: pa.array(values.astype(np.int32), mask=absent) for name, values in columns.items()}
    return pa.table({"uid": samples["uid"].cast(pa.string()), **arrays})


def _first_vectors(vectors: Vectors, samples: int) -> np.ndarray:
    """int64, ascending: of each of the first `samples` rows the vector of its first medium that has one."""
    if not vectors.count:
        return np.zeros(0, np.int64)
    has = vectors.valid[:samples]
    more = vectors.rows + np.flatnonzero(vectors.valid[vectors.rows :])
    owner = vectors.row_of(more)
    more, owner = more[owner < samples], owner[owner < samples]
    lacking, first = np.unique(owner, return_index=True)
    return np.concatenate([np.flatnonzero(has), more[first[~has[lacking]]]])


def _ranks(cluster: np.ndarray, order: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int32 (n,): each one's place among its cluster's in `order`, from 0; -1 for those in none."""
    inside = order[cluster[order] >= 0]
    members = inside[np.argsort(cluster[inside], kind="stable")]
    rank = np.full(len(cluster), -1, np.int32)
    rank[members] = np.arange(len(members)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _caps(what: What, sizes: np.ndarray) -> np.ndarray:
    """int64 (k,): how many of each cluster stay. With alpha: min(size, s·size^alpha) for the s that gives the total."""
    if what.per_cluster:
        return np.minimum(sizes, min(what.per_cluster, int(sizes.sum())))
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
    if what.total == 1:
        raise ValueError("total: 1 is one picture of all; take balance out to keep all, or give a share below 1 or a number of pictures")
    if not 0 < what.total < math.inf:
        raise ValueError(f"total: {what.total} must be above 0: a number of pictures, or below 1 a share")
    if what.seed < 0:
        raise ValueError(f"seed: {what.seed} is below 0")
    if what.embedding in order_columns(what.keep_best):
        raise ValueError(f"keep_best: {what.embedding!r} holds lists, which cannot be ordered by; name another column")


STEP = Step(
    version=2,
    shape="global",
    level="sample",
    applies=IMAGE,
    prefix="balance_",
    what=What,
    how=How,
    columns=_columns,
    reads=lambda what: [c for c in dict.fromkeys([what.embedding, *order_columns(what.keep_best)]) if c not in ("uid", "kind")],
    reduce=reduce,
    vectors=lambda what: {what.embedding: "float"},
    implied=lambda what: "{prefix}rank is null or {prefix}rank < {prefix}cap",
    check=_check,
)

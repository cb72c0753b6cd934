from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curation.near as near
import curation.near_vectors as near_vectors_module
import curation.search_merge as search_merge
import curation.search_plan as search_plan
import curation.search_tiles as search_tiles
from curation.clusters import assign, train_centroids
from curation.cosines import cosine
from curation.near import Found
from curation.near_vectors import EXACT, Search, near_vectors
from curation.population import OneByOne
from curation.search_files import PAIR, RUN, pairs_in, put_runs, range_of
from curation.vectors import Vectors, unit, write_vectors

T = TypeVar("T")
Pairs = dict[tuple[int, int], float]  # (better, worse): similarity

LISTS = Search(lists=16, probes=4)


class Processes:
    """Workers: two processes."""

    cpus = 2

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
            yield from [f.result() for f in [pool.submit(function, *task) for task in tasks]]


class Dying:
    """Workers: one process, gone after so many tasks."""

    cpus = 1

    def __init__(self, tasks: int) -> None:
        self.left = tasks

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        for task in tasks:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield function(*task)


def vectors_of(folder: Path, values: np.ndarray) -> Vectors:
    return write_vectors(folder, len(values), np.zeros((0, 2)), [(np.arange(len(values)), np.zeros(len(values), np.int64), values)])


def clustered(count: int, width: int, seed: int, clusters: int = 60, spread: float = 0.6) -> np.ndarray:
    """A corpus with concepts, near copies and equal vectors in it."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, width))
    values = centres[rng.integers(0, clusters, count)] + spread * rng.standard_normal((count, width))
    copies = rng.choice(count, count // 4, replace=False)
    values[copies] = values[rng.integers(0, count, len(copies))] + 0.15 * rng.random((len(copies), 1)) * rng.standard_normal(
        (len(copies), width)
    )
    values[copies[:20]] = values[copies[20:40]]
    return values.astype(np.float32)


def pairs_of(found: Found) -> Pairs:
    pairs = dict(zip(zip(found.better.tolist(), found.worse.tolist(), strict=True), found.similarity.tolist(), strict=True))
    assert len(pairs) == len(found)
    return pairs


def wanted(
    values: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    floor: float,
    queries: np.ndarray | None = None,
    most: int = 128,
    probed: np.ndarray | None = None,
) -> tuple[Pairs, np.ndarray]:
    """What near_vectors promises, by definition. probed: int (n, p), lists of each; None where all are compared with all."""
    n = len(values)
    exact = unit(values)[0].astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1)[:, None]
    like = (exact @ exact.T).astype(np.float32)
    asks = np.ones(n, bool) if queries is None else queries
    near = (
        (like >= np.float32(floor)) & (rank[:, None] < rank[None, :]) & ~(fixed[:, None] & fixed[None, :]) & (asks[:, None] | asks[None, :])
    )
    own = near & (probed is None or probed[:, :1] == probed[:, 0][None, :])
    if probed is not None:
        asked = (probed[:, :, None] == probed[:, 0][None, None, :]).any(axis=1)
        near &= asked | asked.T
    crowded = (own & asks[:, None] & asks[None, :]).sum(axis=0) > most
    near[:, crowded] = own[:, crowded] & asks[:, None]
    cut = near.sum(axis=0) > most
    pairs = {}
    for worse in range(n):
        betters = np.flatnonzero(near[:, worse])
        for better in betters[np.argsort(rank[betters])][:most].tolist():
            pairs[better, worse] = float(like[better, worse])
    return pairs, cut


def check(found: Found, expected: tuple[Pairs, np.ndarray], rank: np.ndarray) -> None:
    pairs = pairs_of(found)
    assert pairs.keys() == expected[0].keys()
    assert all(abs(like - expected[0][pair]) < 1e-6 for pair, like in pairs.items())
    assert np.array_equal(found.cut, expected[1])
    assert found.similarity.dtype == np.float32
    keys = list(zip(rank[found.better].tolist(), rank[found.worse].tolist(), strict=True))
    assert keys == sorted(keys)


def equal(a: Found, b: Found) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("better", "worse", "similarity", "cut"))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Blobs, equal vectors and loners in few dimensions; ranks, fixed ones, queries."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, width = draw(st.integers(1, 80)), draw(st.integers(2, 9))
    centres = rng.standard_normal((draw(st.integers(1, 5)), width))
    values = centres[rng.integers(0, len(centres), n)] + draw(st.sampled_from([0.0, 0.05, 0.5])) * rng.standard_normal((n, width))
    rank = rng.permutation(n) * 3 - 7
    fixed = rank < np.quantile(rank, draw(st.sampled_from([0.0, 0.3, 1.0])))
    queries = rng.random(n) < draw(st.sampled_from([0.1, 0.6])) if draw(st.booleans()) else None
    return values.astype(np.float32), rank, fixed, queries, draw(st.sampled_from([1, 3, 128]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpora())
def test_few_are_compared_each_with_each(tmp_path_factory: pytest.TempPathFactory, corpus: Any) -> None:
    values, rank, fixed, queries, most = corpus
    folder = tmp_path_factory.mktemp("corpus")
    vectors = vectors_of(folder / "vectors", values)
    found = near_vectors(vectors, np.arange(len(values)), rank, fixed, 0.9012345, Search(), OneByOne(), folder, queries, most)
    check(found, wanted(values, rank, fixed, 0.9012345, queries, most), rank)


@pytest.mark.parametrize("kind", ["all", "fixed", "queries", "both"])
@pytest.mark.parametrize("most", [2, 128])
def test_lists_find_a_pair_when_either_end_probes_the_list_of_the_other(tmp_path: Path, kind: str, most: int) -> None:
    values = clustered(1500, 24, 1)
    rng = np.random.default_rng(2)
    rank = rng.permutation(len(values))
    fixed = rank < 400 if kind in ("fixed", "both") else np.zeros(len(values), bool)
    queries = rng.random(len(values)) < 0.2 if kind in ("queries", "both") else None
    vectors, ids = vectors_of(tmp_path / "vectors", values), np.arange(len(values))
    probed = assign(vectors, ids, train_centroids(vectors, ids, 16, 42, OneByOne(), tmp_path), 4, OneByOne(), tmp_path)[0]
    expected = wanted(values, rank, fixed, 0.75, queries, most, np.array(probed))
    found = near_vectors(vectors, ids, rank, fixed, 0.75, LISTS, OneByOne(), tmp_path, queries, most)
    check(found, expected, rank)
    assert len(found) > 300
    borders = sum(probed[a, 0] != probed[b, 0] for a, b in pairs_of(found))
    assert borders > 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, np.ndarray, np.ndarray, Found]:
    """3,000 vectors, some of them fixed, and what is found in them."""
    values = clustered(3000, 16, 3)
    rank = np.random.default_rng(4).permutation(len(values))
    folder = tmp_path_factory.mktemp("corpus")
    vectors = vectors_of(folder / "vectors", values)
    found = near_vectors(vectors, np.arange(3000), rank, rank < 500, 0.8, LISTS, OneByOne(), folder / "scratch", None, 10)
    assert len(found) > 1000
    assert 0 < found.cut.sum() < 1000
    return vectors, rank, rank < 500, found


def test_the_order_of_ids_does_not_show(tmp_path: Path, corpus: tuple[Vectors, np.ndarray, np.ndarray, Found]) -> None:
    vectors, rank, fixed, found = corpus
    order = np.random.default_rng(5).permutation(len(rank))
    shuffled = near_vectors(vectors, order, rank[order], fixed[order], 0.8, LISTS, OneByOne(), tmp_path, None, 10)
    assert np.array_equal(order[shuffled.better], found.better)
    assert np.array_equal(order[shuffled.worse], found.worse)
    assert np.array_equal(shuffled.similarity, found.similarity)
    assert np.array_equal(shuffled.cut, found.cut[order])


def test_neither_workers_nor_the_cut_into_tasks_show(
    tmp_path: Path, corpus: tuple[Vectors, np.ndarray, np.ndarray, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, rank, fixed, found = corpus
    monkeypatch.setattr(search_plan, "ROWS", 100)
    monkeypatch.setattr(search_plan, "COLUMNS", 90)
    monkeypatch.setattr(search_tiles, "step_of", lambda width: 7)
    monkeypatch.setattr(search_tiles, "STEP_HITS", 50)
    monkeypatch.setattr(search_merge, "AT_ONCE", 500)
    monkeypatch.setattr(near_vectors_module, "plan_search", lambda *a, **k: search_plan.plan_search(*a, **{**k, "work": 1e6}))
    other = near_vectors(vectors, np.arange(len(rank)), rank, fixed, 0.8, LISTS, Processes(), tmp_path, None, 10)
    assert equal(other, found)


def test_who_is_killed_goes_on(
    tmp_path: Path, corpus: tuple[Vectors, np.ndarray, np.ndarray, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, rank, fixed, found = corpus
    monkeypatch.setattr(near_vectors_module, "plan_search", lambda *a, **k: search_plan.plan_search(*a, **{**k, "work": 2e6}))
    arguments = (vectors, np.arange(len(rank)), rank, fixed, 0.8, LISTS)
    again, tries = None, 0
    while again is None:
        tries += 1
        try:
            again = near_vectors(*arguments, Dying(9), tmp_path, None, 10)
        except KeyboardInterrupt:
            assert not list(tmp_path.glob("*.npz"))
    assert tries > 3
    assert equal(again, found)
    assert [p.suffix for p in tmp_path.iterdir()] == [".npz"]
    assert equal(near_vectors(*arguments, Dying(0), tmp_path, None, 10), found)  # the answer stays
    with pytest.raises(KeyboardInterrupt):
        near_vectors(vectors, np.arange(len(rank)), rank, fixed, 0.81, LISTS, Dying(0), tmp_path, None, 10)  # another question


def test_planted_copies_are_found_and_look_alikes_are_not(tmp_path: Path) -> None:
    """24,000 vectors, so that lists are chosen by themselves: copies at 0.90 to 0.99, look-alikes at 0.80 to 0.89."""
    rng = np.random.default_rng(6)
    n, width = 24_000, 64
    assert n > EXACT
    values = rng.standard_normal((200, width))[rng.integers(0, 200, n)] + rng.standard_normal((n, width))
    values /= np.linalg.norm(values, axis=1)[:, None]
    planted = rng.permutation(n)[:4000].reshape(2, -1)
    cosines = np.concatenate([rng.uniform(0.90, 0.99, 1000), rng.uniform(0.80, 0.89, 1000)])
    across = rng.standard_normal((2000, width))
    across -= (across * values[planted[0]]).sum(axis=1)[:, None] * values[planted[0]]
    across /= np.linalg.norm(across, axis=1)[:, None]
    values[planted[1]] = cosines[:, None] * values[planted[0]] + np.sqrt(1 - cosines**2)[:, None] * across
    vectors = vectors_of(tmp_path / "vectors", values.astype(np.float32))
    rank = rng.permutation(n)
    found = near_vectors(vectors, np.arange(n), rank, np.zeros(n, bool), 0.9, Search(), OneByOne(), tmp_path)
    pairs = {frozenset(p) for p in pairs_of(found)}
    copies = [frozenset(p) for p in planted[:, :1000].T.tolist()]
    assert sum(c in pairs for c in copies) >= 0.99 * len(copies)
    assert not any(frozenset(p) in pairs for p in planted[:, 1000:].T.tolist())
    assert all(like >= np.float32(0.9) for like in found.similarity)


@pytest.mark.parametrize("search", [Search(), LISTS])
@pytest.mark.parametrize("spread", [0.0, 0.001, 0.1])
def test_a_blob_costs_most_pairs_each(tmp_path: Path, search: Search, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 of which 90 % are near each other: all alike, tight, loose."""
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.standard_normal(32) + spread * rng.standard_normal((2700, 32)), rng.standard_normal((300, 32))])
    vectors, rank = vectors_of(tmp_path / "vectors", values.astype(np.float32)), rng.permutation(3000)
    weighed = []

    def counted(path: Path, parts: Iterable[np.ndarray]) -> None:
        put_runs(path, parts)
        weighed.append(pairs_in(path))

    monkeypatch.setattr(search_tiles, "put_runs", counted)
    found = near_vectors(vectors, np.arange(3000), rank, np.zeros(3000, bool), 0.9, search, OneByOne(), tmp_path, None, 20)
    betters = np.bincount(found.worse, minlength=3000)
    blob = np.arange(3000) < 2700
    place = np.argsort(np.argsort(rank[:2700]))
    assert betters.max() == 20
    assert not betters[~blob].any()
    assert np.all(betters[:2700][place >= 20 * (1 if search.lists == 0 else 16)] == 20)
    assert np.array_equal(betters[found.cut], np.full(found.cut.sum(), 20))
    assert sum(weighed) < 2700 * 21 * 6  # of 3.6 M pairs
    if search.lists == 0:
        assert np.array_equal(found.cut[:2700], place > 20)
        assert pairs_of(found).keys() == wanted(values, rank, np.zeros(3000, bool), 0.9, None, 20)[0].keys()


def test_a_corpus_that_is_one_blob_is_given_fewer_betters_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "LEAST_ROOM", 100)
    values, rank = np.ones((400, 8), np.float32), np.arange(400)
    vectors = vectors_of(tmp_path / "vectors", values)
    found = near_vectors(vectors, np.arange(400), rank, np.zeros(400, bool), 0.9, Search(), OneByOne(), tmp_path, None, 40)
    assert np.array_equal(np.bincount(found.worse, minlength=400), np.minimum(np.arange(400), 10))  # 40, 20, 10: 16 each have room
    assert np.array_equal(found.cut, np.arange(400) > 10)
    assert np.all(found.similarity == 1)


def test_none_one_and_those_without_a_vector(tmp_path: Path) -> None:
    values = np.ones((6, 4), np.float32)
    values[1], values[4] = 0, np.nan
    vectors = vectors_of(tmp_path / "vectors", values)

    def pairs(ids: list[int], fixed: bool = False) -> Pairs:
        given = np.array(ids, np.int64)
        return pairs_of(near_vectors(vectors, given, np.arange(len(ids)), np.full(len(ids), fixed), 0.9, Search(), OneByOne(), tmp_path))

    assert pairs([]) == {}
    assert pairs([3]) == {}
    assert pairs([1, 4]) == {}
    assert pairs([0, 1, 4]) == {}
    assert pairs([0, 2], fixed=True) == {}
    assert pairs([5, 1, 0]) == {(0, 2): 1.0}
    assert set(pairs([0, 1, 2, 3, 4, 5])) == {(0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5)}
    nothing = write_vectors(tmp_path / "nothing", 3, np.zeros((0, 2)), [])
    assert not len(near_vectors(nothing, np.arange(3), np.arange(3), np.zeros(3, bool), 0.9, Search(), OneByOne(), tmp_path))


def test_arguments_that_cannot_be(tmp_path: Path) -> None:
    vectors = vectors_of(tmp_path / "vectors", np.ones((4, 4), np.float32))
    none, ids = np.zeros(4, bool), np.arange(4)

    def refused(what: str, ids: np.ndarray, rank: np.ndarray, fixed: np.ndarray, floor: float, search: Search, **more: Any) -> None:
        with pytest.raises(ValueError, match=what):
            near_vectors(vectors, ids, rank, fixed, floor, search, OneByOne(), tmp_path, **more)

    refused("twice", ids, np.array([0, 1, 1, 2]), none, 0.9, Search())
    refused("twice", np.array([0, 1, 1, 2]), ids, none, 0.9, Search())
    refused("one of each", ids, ids[:3], none, 0.9, Search())
    refused("ranked behind", ids, ids, ids == 1, 0.9, Search())
    refused("floor", ids, ids, none, 1.5, Search())
    refused("probes", ids, ids, none, 0.9, Search(probes=0))
    refused("most", ids, ids, none, 0.9, Search(), most=0)


def test_a_cosine_is_a_function_of_two_vectors_alone() -> None:
    rng = np.random.default_rng(8)
    for width in (1, 3, 4, 130):
        a, b = rng.standard_normal((2, width)).astype(np.float32)
        exact = (a.astype(float) @ b) / np.sqrt((a.astype(float) @ a) * (b.astype(float) @ b))
        assert abs(cosine(a, b) - exact) < 1e-7
        assert cosine(a, b) == cosine(b, a)
        assert cosine(a, a) == 1
        assert cosine(np.ascontiguousarray(np.tile(a, 3)[width : 2 * width]), b) == cosine(a, b)


def test_a_gpu_gives_what_the_processor_gives(
    tmp_path: Path, corpus: tuple[Vectors, np.ndarray, np.ndarray, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS's call for GPUs is answered by its twin for processors: what we make of its answer is held here, not FAISS's kernels."""
    vectors, rank, fixed, found = corpus
    calls = []

    def knn_gpu(resources: Any, rows: np.ndarray, columns: np.ndarray, k: int, metric: int) -> Any:
        calls.append(k)
        return faiss.knn(rows, columns, k, metric=metric)

    monkeypatch.setattr(search_tiles, "NEAREST", 3)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    monkeypatch.setattr(near_vectors_module, "train_centroids", lambda *a, gpus: train_centroids(*a))
    monkeypatch.setattr(near_vectors_module, "assign", lambda *a: assign(*a[:-1]))
    other = near_vectors(vectors, np.arange(len(rank)), rank, fixed, 0.8, LISTS, OneByOne(), tmp_path, None, 10, gpus=1.0)
    assert calls
    assert equal(other, found)


def test_the_plan_covers_every_cell_once_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_plan, "ROWS", 50)
    monkeypatch.setattr(search_plan, "COLUMNS", 70)
    rng = np.random.default_rng(9)
    members = rng.integers(0, 200, 30)
    members[3:6] = 0
    for triangle in (False, True):
        queries = np.maximum(members - rng.integers(0, 40, 30), 0) if triangle else rng.integers(0, 300, 30)
        plan = search_plan.plan_search(members, queries, 8, triangle=triangle, work=1e5)
        seen = [np.zeros((q, m), int) for q, m in zip(queries, members, strict=True)]
        for pool, a, b, c, d in zip(plan.pool, plan.row_first, plan.row_last, plan.column_first, plan.column_last, strict=True):
            assert 0 < b - a <= 50
            assert 0 < d - c <= 70
            seen[pool][a:b, c:d] += 1
        for q, m, cells in zip(queries, members, seen, strict=True):
            needed = np.arange(m)[None, :] <= np.arange(m - q, m)[:, None] if triangle else np.ones((q, m), bool)
            assert np.all(cells[needed] == 1)
            assert cells.max(initial=0) <= 1
        assert plan.starts[0] == 0
        assert plan.starts[-1] == len(plan.pool)
        assert np.all(np.diff(plan.starts) > 0)
        assert plan.work.max() <= 1e5 + 50 * 70 * 8


def test_a_task_is_bounded_whatever_the_largest_list_is() -> None:
    for width in (64, 512, 4096):
        even = search_plan.plan_search(np.full(100, 1000), np.full(100, 15_000), width)
        skew = search_plan.plan_search(np.array([90_000_000, 5]), np.array([30_000, 9_000_000]), width)
        assert even.bytes == skew.bytes <= search_plan.MEMORY
        assert (skew.row_last - skew.row_first).max() <= skew.rows
    assert search_plan.plan_search(np.zeros(3), np.ones(3), 8).tasks == 0


def test_runs_of_pairs_are_read_by_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    pairs = np.zeros(2 * RUN + 77, PAIR)
    pairs["worse"], pairs["better"] = rng.integers(0, 1000, len(pairs)), rng.integers(0, 10**9, len(pairs))
    put_runs(tmp_path / "pairs", np.array_split(pairs, 7))
    assert pairs_in(tmp_path / "pairs") == len(pairs)
    got = range_of([tmp_path / "pairs"], 400, 420)
    expected = pairs[(pairs["worse"] >= 400) & (pairs["worse"] < 420)]
    assert np.array_equal(np.sort(got, order=["worse", "better"]), np.sort(expected, order=["worse", "better"]))

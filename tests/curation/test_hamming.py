from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import hamming, hamming_tables, near
from curation.hamming import near_hashes
from curation.hamming_tables import SWELL, band_radius, build_tables, choose_parts, load_tables
from curation.near import MOST, Found
from curation.population import OneByOne

T = TypeVar("T")
Triples = list[tuple[int, int, float]]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of 40 hashes and buckets that are full at 12: what takes millions otherwise."""
    monkeypatch.setattr(hamming, "TASK", 40)
    monkeypatch.setattr(hamming_tables, "FULL", 12)


def search(
    hashes: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray | None,
    radius: int,
    scratch: Path,
    queries: np.ndarray | None = None,
    most: int = MOST,
) -> Found:
    fixed = np.zeros(len(hashes), bool) if fixed is None else fixed
    return near_hashes(hashes, rank, fixed, radius, OneByOne(), scratch, queries, most)


def triples(found: Found) -> Triples:
    return list(zip(found.better.tolist(), found.worse.tolist(), found.similarity.tolist(), strict=True))


def brute_force(
    hashes: np.ndarray, rank: np.ndarray, fixed: np.ndarray | None, radius: int, queries: np.ndarray | None = None, most: int = MOST
) -> tuple[Triples, list[bool]]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    near = (distances <= radius) & (rank[:, None] < rank[None, :])
    if fixed is not None:
        near &= ~(fixed[:, None] & fixed[None, :])
    if queries is not None:
        near &= queries[:, None] | queries[None, :]
    pairs = []
    for worse in range(len(hashes)):
        betters = sorted(np.flatnonzero(near[:, worse]).tolist(), key=lambda i: rank[i])
        pairs += [(better, worse, 1.0 - float(distances[better, worse]) / 64) for better in betters[:most]]
    return sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]])), (near.sum(axis=0) > most).tolist()


@st.composite
def populations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Hashes that are copies of a few centres with bits flipped (pairs on both sides of any radius, equal ones), rank, fixed, queries."""
    count = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    hashes = rng.integers(0, 2**64, 4, dtype=np.uint64)[rng.integers(0, draw(st.integers(1, 4)), count)]
    for _ in range(draw(st.integers(0, 14))):
        hashes = hashes ^ np.where(rng.random(count) < 0.6, np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64), np.uint64(0))
    rank = rng.permutation(count)
    fixed = rank < draw(st.sampled_from([0, 0, count // 5, count]))
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.6]))
    return hashes, rank, fixed, None if share is None else rng.random(count) < share


@pytest.mark.usefixtures("small")
@settings(max_examples=80, deadline=None)
@given(populations(), st.integers(0, 16), st.sampled_from([1, 2, 3, 9, MOST]))
def test_the_best_ranked_near_ones_of_each_and_who_has_more(population: Any, radius: int, most: int) -> None:
    hashes, rank, fixed, queries = population
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(hamming_tables, "PROBE", 0.01)  # cut into bands, few as they are
        patch.setattr(hamming_tables, "PLACE", 0.001)
        found = search(hashes, rank, fixed, radius, Path(folder), queries, most)
    pairs, cut = brute_force(hashes, rank, fixed, radius, queries, most)
    assert triples(found) == pairs
    assert found.cut.tolist() == cut
    assert (found.better.dtype, found.worse.dtype, found.similarity.dtype, found.cut.dtype) == (np.int64, np.int64, np.float32, bool)


def planted(count: int, rng: np.random.Generator) -> np.ndarray:
    """Random hashes, a third of them copies of their neighbour with up to 20 bits flipped."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for place in range(0, count - 1, 3):
        flips = rng.choice(64, rng.integers(0, 21), replace=False).astype(np.uint64)
        hashes[place + 1] = hashes[place] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    return hashes


@pytest.mark.parametrize("radius", [0, 1, 4, 8, 9, 16])
def test_many_bands_and_flips_agree_with_brute_force(radius: int, scratch: Path) -> None:
    rng = np.random.default_rng(5)
    hashes, rank = planted(2500, rng), rng.permutation(2500)
    assert triples(search(hashes, rank, None, radius, scratch)) == brute_force(hashes, rank, None, radius)[0]


@pytest.mark.parametrize("shared", [16, 24, 40])
def test_a_bucket_that_holds_a_twentieth_of_all_is_cut_again(shared: int, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 hashes, 500 of them alike in their last bits: tables within tables, of bounded size, and nothing lost between them."""
    monkeypatch.setattr(hamming_tables, "FULL", 100)
    rng = np.random.default_rng(shared)
    hashes, rank = planted(10_000, rng), rng.permutation(10_000)
    many = np.arange(500)
    hashes[many] = hashes[many] >> np.uint64(shared) << np.uint64(shared)
    build_tables(scratch / f"shared-{shared}", np.unique(hashes), 4, 10_000)
    tables = load_tables(scratch / f"shared-{shared}")
    assert len(tables.parts) > 1
    assert tables.same[1:].min() > 0
    assert len(tables.hashes) <= (1 + SWELL) * tables.first_band[1] * 10_000
    found = search(hashes, rank, None, 4, scratch)
    near = np.zeros((0, 2), np.int64)
    for begin in range(0, 10_000, 1000):
        i, j = np.nonzero(np.bitwise_count(hashes[begin : begin + 1000, None] ^ hashes[None, :]) <= 4)
        near = np.concatenate([near, np.stack([i + begin, j], axis=1)])
    near = near[rank[near[:, 0]] < rank[near[:, 1]]]
    near = near[np.lexsort((rank[near[:, 1]], rank[near[:, 0]]))]
    assert np.array_equal(np.stack([found.better, found.worse], axis=1), near)


def test_all_alike_gives_each_its_best_ranked(scratch: Path) -> None:
    """40,000 equal hashes: 8 betters for each, not 800 million pairs; the first eight have fewer."""
    rank = np.random.default_rng(1).permutation(40_000)
    found = search(np.full(40_000, 7, np.uint64), rank, None, 8, scratch, most=8)
    assert len(found) == 8 * 40_000 - 36
    assert rank[found.better].max() == 7
    assert found.cut.sum() == 40_000 - 9
    assert not found.cut[rank <= 8].any()
    assert (found.similarity == 1.0).all()


def test_a_corpus_that_is_one_blob_is_given_fewer_betters_each(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "LEAST_ROOM", 100)
    monkeypatch.setattr(hamming, "TASK", 150)
    rank = np.random.default_rng(4).permutation(400)
    found = search(np.full(400, 7, np.uint64), rank, None, 8, scratch, most=40)
    worse = np.bincount(rank[found.worse], minlength=400)
    assert np.array_equal(worse, np.minimum(np.arange(400), 10))  # 40, 20, 10: 16 each have room
    assert rank[found.better].max() == 9
    assert np.array_equal(found.cut, rank > 10)


def test_workers_that_refuse_cost_no_tables(scratch: Path) -> None:
    class Refusing(OneByOne):
        def map(self, function: Any, tasks: Any, *, gpus: float = 0.0) -> Any:
            raise InterruptedError

    hashes = np.random.default_rng(5).integers(0, 2**64, 1000, dtype=np.uint64)
    with pytest.raises(InterruptedError):
        near_hashes(hashes, np.arange(1000), np.zeros(1000, bool), 4, Refusing(), scratch)
    assert not list(scratch.rglob("tables*"))


def test_a_blob_within_the_radius_costs_its_best_and_no_more(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 different hashes, each within 8 bits of each other: exactly the best-ranked five of each, whatever bucket they are found in."""
    monkeypatch.setattr(hamming_tables, "FULL", 256)
    rng = np.random.default_rng(2)
    hashes = np.full(4000, rng.integers(0, 2**64, dtype=np.uint64))
    for _ in range(4):
        hashes ^= np.uint64(1) << rng.integers(0, 64, 4000).astype(np.uint64)
    rank = rng.permutation(4000)
    found = search(hashes, rank, None, 8, scratch, most=5)
    by_rank = np.argsort(rank)
    assert found.better.tolist() == [by_rank[b] for b in range(5) for _ in range(4000 - 1 - b)]
    assert found.cut.sum() == 4000 - 6


def test_the_order_of_the_input_and_the_cut_into_tasks_do_not_show(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    hashes, rank = planted(900, rng), rng.permutation(900)
    hashes[600:700] = hashes[0]
    fixed, queries = rank < 100, rng.random(900) < 0.5
    whole = search(hashes, rank, fixed, 10, scratch, queries, 4)
    order = rng.permutation(900)
    shuffled = search(hashes[order], rank[order], fixed[order], 10, scratch, queries[order], 4)
    assert [(order[a], order[b], s) for a, b, s in triples(shuffled)] == triples(whole)
    assert np.array_equal(shuffled.cut, whole.cut[order])
    monkeypatch.setattr(hamming, "TASK", 13)
    backwards = Backwards()
    parts = near_hashes(hashes, rank, fixed, 10, backwards, scratch, queries, 4)
    assert backwards.tasks > 60
    assert triples(parts) == triples(whole)
    assert np.array_equal(parts.cut, whole.cut)


@dataclass
class Backwards:
    """Workers that do the last task first, and stop as a killed machine would after so many."""

    cpus: int = 2
    until: int = 1 << 30
    tasks: int = 0
    done: list[int] = field(default_factory=list)

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        answers = []
        for task in reversed(list(tasks)):
            if self.tasks == self.until:
                raise KeyboardInterrupt
            answers.append(function(*task))
            self.tasks += 1
        return iter(answers[::-1])


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "TASK", 50)
    rng = np.random.default_rng(4)
    hashes, rank, fixed = planted(500, rng), rng.permutation(500), np.zeros(500, bool)
    with pytest.raises(KeyboardInterrupt):
        near_hashes(hashes, rank, fixed, 12, Backwards(until=6), tmp_path)
    again = Backwards()
    found = near_hashes(hashes, rank, fixed, 12, again, tmp_path)
    assert again.tasks == 4
    assert triples(found) == brute_force(hashes, rank, fixed, 12)[0]
    assert not list(tmp_path.glob("*/tables"))  # only answers stay
    other = Backwards()
    near_hashes(hashes, rank, fixed, 11, other, tmp_path)  # another radius is another search
    assert other.tasks == 10


def test_none_one_and_two(scratch: Path) -> None:
    for count in (0, 1):
        found = search(np.arange(count, dtype=np.uint64), np.arange(count), None, 4, scratch)
        assert len(found) == 0
        assert found.cut.tolist() == [False] * count
    found = search(np.array([1, 3], np.uint64), np.array([5, 2]), None, 1, scratch)  # ranks need not be dense
    assert triples(found) == [(1, 0, 1 - 1 / 64)]


def test_queries_alone_are_compared_with_all(scratch: Path) -> None:
    rng = np.random.default_rng(6)
    hashes, rank = planted(3000, rng), rng.permutation(3000)
    queries = np.zeros(3000, bool)
    queries[:30] = True
    assert triples(search(hashes, rank, None, 8, scratch, queries)) == brute_force(hashes, rank, None, 8, queries)[0]
    assert len(search(hashes, rank, None, 8, scratch, np.zeros(3000, bool))) == 0


def test_some_band_is_within_its_radius() -> None:
    """The least distance that no band would notice is one more than the radius."""
    for parts in (1, 3, 4, 5, 8, 17):
        for radius in range(17):
            assert sum(band_radius(radius, parts, band) + 1 for band in range(parts)) == radius + 1


def test_bands_are_cut_for_the_work_there_is() -> None:
    assert choose_parts(1_000_000, 64, 4, 1_000_000) >= 3
    assert choose_parts(1_000_000, 64, 8, 1_000_000) >= 4
    assert choose_parts(1_000_000, 64, 8, 1) == 1  # a single look-up: tables would cost more
    assert choose_parts(10, 64, 4, 10_000_000) == 1


def test_refuses_what_it_was_not_made_for(scratch: Path) -> None:
    three, ranks = np.arange(3, dtype=np.uint64), np.arange(3)
    with pytest.raises(ValueError, match=r"radius 17 is outside 0\.\.16"):
        search(three, ranks, None, 17, scratch)
    with pytest.raises(ValueError, match="most 0"):
        search(three, ranks, None, 4, scratch, most=0)
    with pytest.raises(ValueError, match="fixed hashes must rank before"):
        search(three, ranks, np.array([False, True, False]), 4, scratch)
    with pytest.raises(ValueError, match="rank of 2"):
        search(three, ranks[:2], None, 4, scratch)

"""text_pairs: every near pair of signatures against brute force, whatever the order, the tasks and the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation import near, text_pairs, text_tokens
from curation.near import MOST, Found, found_of
from curation.population import OneByOne
from curation.text_pairs import near_signatures
from curation.vectors import Vectors, write_vectors

WIDTH = 128


class Threads:
    """Two workers that finish in any order and are asked for everything at once."""

    cpus = 2

    def map(self, function: Callable[..., Any], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[Any]:
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(lambda task: function(*task), list(tasks))


def planted(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Signatures of which a third are copies of others (and of copies) at similarities of 0.5 to 1."""
    random = np.random.default_rng(seed)
    signatures = random.integers(0, 2**32, (count, width), dtype=np.uint32)
    for i in range(count - count // 3, count):
        same = random.random(width) < random.uniform(0.5, 1)
        signatures[i] = np.where(same, signatures[random.integers(0, i)], signatures[i])
    return signatures


def vectors_of(folder: Path, signatures: np.ndarray) -> Vectors:
    n = len(signatures)
    return write_vectors(folder, n, np.zeros((0, 2), np.int64), [(np.arange(n), np.zeros(n, np.int64), signatures)], dtype="uint32")


def by_hand(
    signatures: np.ndarray,
    rank: np.ndarray,
    floor: float,
    fixed: np.ndarray | None = None,
    queries: np.ndarray | None = None,
    most: int = MOST,
) -> Found:
    parts = []
    for i in range(len(signatures)):
        equal = (signatures[i + 1 :] == signatures[i]).sum(1)
        others = i + 1 + np.flatnonzero(equal >= ceil(floor * signatures.shape[1] - 1e-9))
        if fixed is not None and fixed[i]:
            others = others[~fixed[others]]
        if queries is not None and not queries[i]:
            others = others[queries[others]]
        share = (equal[others - i - 1] / signatures.shape[1]).astype(np.float32)
        parts.append((np.full(len(others), i), others, share))
    return found_of(parts, rank, most)


def check(found: Found, expected: Found) -> None:
    for name in ("better", "worse", "similarity", "cut"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


def search(vectors: Vectors, rank: np.ndarray, floor: float, scratch: Path, workers: Any = None, **more: Any) -> Found:
    n = vectors.count
    fixed = more.pop("fixed", np.zeros(n, bool))
    return near_signatures(vectors, np.arange(n), rank, fixed, floor, workers or OneByOne(), scratch, **more)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many groups, slices and tiles, and pairs dropped early: what large populations have."""
    monkeypatch.setattr(text_tokens, "GROUP", 100 * WIDTH)
    monkeypatch.setattr(text_tokens, "SAMPLE", 256)
    monkeypatch.setattr(text_tokens, "ROWS", 33)
    monkeypatch.setattr(text_tokens, "SLICE", 3_000)
    monkeypatch.setattr(text_pairs, "TILE", 57)
    monkeypatch.setattr(text_pairs, "PAIRS", 40)
    monkeypatch.setattr(text_pairs, "ALONE", 0)


@pytest.mark.parametrize("floor", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_every_pair_and_no_other(tmp_path: Path, floor: float) -> None:
    signatures = planted(900)
    rank = np.random.default_rng(1).permutation(900)
    found = search(vectors_of(tmp_path / "v", signatures), rank, floor, tmp_path)
    check(found, by_hand(signatures, rank, floor))
    assert (len(found) > 20) == (floor < 1)


@pytest.mark.parametrize("width", [16, 96, 200])
def test_signatures_of_other_widths(tmp_path: Path, width: int) -> None:
    signatures = planted(300, width=width)
    rank = np.arange(300)
    found = search(vectors_of(tmp_path / "v", signatures), rank, 0.75, tmp_path)
    check(found, by_hand(signatures, rank, 0.75))
    assert len(found) > 10


def test_a_pair_at_the_floor_itself_is_found(tmp_path: Path) -> None:
    """103 of 128 is the least share ≥ 0.8; 102 is below."""
    signatures = np.random.default_rng(0).integers(0, 2**32, (3, WIDTH), dtype=np.uint32)
    signatures[1, :103] = signatures[0, :103]
    signatures[2, 26:] = signatures[0, 26:]
    found = search(vectors_of(tmp_path / "v", signatures), np.arange(3), 0.8, tmp_path)
    assert (found.better.tolist(), found.worse.tolist(), found.similarity.tolist()) == ([0], [1], [103 / 128])


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("workers", [OneByOne(), Threads()])
def test_tasks_do_not_show(tmp_path: Path, workers: Any) -> None:
    signatures = planted(700, seed=3)
    rank = np.random.default_rng(4).permutation(700)
    check(search(vectors_of(tmp_path / "v", signatures), rank, 0.7, tmp_path, workers), by_hand(signatures, rank, 0.7))


def test_the_order_of_the_vectors_does_not_show(tmp_path: Path) -> None:
    signatures = planted(400, seed=5)
    shuffle = np.random.default_rng(6).permutation(400)
    rank = np.random.default_rng(7).permutation(400)
    one = search(vectors_of(tmp_path / "a", signatures), rank, 0.7, tmp_path)
    other = search(vectors_of(tmp_path / "b", signatures[shuffle]), rank[shuffle], 0.7, tmp_path)
    np.testing.assert_array_equal(shuffle[other.better], one.better)
    np.testing.assert_array_equal(shuffle[other.worse], one.worse)
    np.testing.assert_array_equal(other.similarity, one.similarity)
    np.testing.assert_array_equal(other.cut, one.cut[shuffle])


def test_only_the_ids_are_searched(tmp_path: Path) -> None:
    signatures = planted(500, seed=8)
    ids = np.random.default_rng(9).permutation(500)[:300]
    rank = np.random.default_rng(10).permutation(300) * 7
    vectors = vectors_of(tmp_path / "v", signatures)
    found = near_signatures(vectors, ids, rank, np.zeros(300, bool), 0.7, OneByOne(), tmp_path)
    check(found, by_hand(signatures[ids], rank, 0.7))
    assert len(found) > 10


@pytest.mark.usefixtures("small_files")
def test_fixed_ones_and_queries(tmp_path: Path) -> None:
    signatures = planted(600, seed=11)
    vectors = vectors_of(tmp_path / "v", signatures)
    random = np.random.default_rng(12)
    fixed = random.random(600) < 0.5
    rank = np.argsort(np.argsort(np.where(fixed, 0, 1) * 1_000 + random.permutation(600)))
    queries = random.random(600) < 0.3
    check(search(vectors, rank, 0.6, tmp_path, fixed=fixed), by_hand(signatures, rank, 0.6, fixed))
    check(search(vectors, rank, 0.6, tmp_path, queries=queries), by_hand(signatures, rank, 0.6, None, queries))
    both = search(vectors, rank, 0.4, tmp_path, fixed=fixed, queries=queries, most=1)
    check(both, by_hand(signatures, rank, 0.4, fixed, queries, 1))
    assert len(both) > 10
    assert both.cut.any()


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("most", [1, 5])
def test_a_blob_keeps_the_best_ranked_of_each(tmp_path: Path, most: int) -> None:
    """Two hundred near copies of one text, a third of them equal: over many tiles, and more pairs than a task may hold."""
    random = np.random.default_rng(13)
    text = random.integers(0, 2**32, WIDTH, dtype=np.uint32)
    blob = np.where(random.random((200, WIDTH)) < 0.95, text, random.integers(0, 2**32, (200, WIDTH), dtype=np.uint32))
    blob[::3] = text
    signatures = np.concatenate([blob, planted(200, seed=14)])
    rank = random.permutation(400)
    found = search(vectors_of(tmp_path / "v", signatures), rank, 0.8, tmp_path, most=most)
    check(found, by_hand(signatures, rank, 0.8, most=most))
    assert found.cut.sum() > 150


def test_all_alike(tmp_path: Path) -> None:
    signatures = np.repeat(planted(1), 1_000, axis=0)
    found = search(vectors_of(tmp_path / "v", signatures), np.arange(1_000), 0.8, tmp_path, most=3)
    assert len(found) == 0 + 1 + 2 + 3 * 997
    assert found.better.max() == 2
    assert found.cut.sum() == 996
    assert set(found.similarity.tolist()) == {1.0}


@pytest.mark.parametrize("pairs", [50, 1 << 22])
def test_a_corpus_that_is_one_blob_is_given_fewer_betters_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    """However few pairs a task holds before it drops some."""
    monkeypatch.setattr(near, "LEAST_ROOM", 100)
    monkeypatch.setattr(text_pairs, "PAIRS", pairs)
    monkeypatch.setattr(text_pairs, "TILE", 57)
    signatures = np.repeat(planted(1), 400, axis=0)
    rank = np.random.default_rng(6).permutation(400)
    found = search(vectors_of(tmp_path / "v", signatures), rank, 0.8, tmp_path, most=40)
    assert np.array_equal(np.bincount(rank[found.worse], minlength=400), np.minimum(np.arange(400), 10))  # 40, 20, 10: 16 each have room
    assert rank[found.better].max() == 9
    assert np.array_equal(found.cut, rank > 10)


def test_a_phrase_that_all_share_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of each signature are a boilerplate's: 2 M pairs share numbers, and hardly any is compared."""
    random = np.random.default_rng(15)
    signatures = random.integers(0, 2**32, (2_000, WIDTH), dtype=np.uint32)
    boilerplate = random.integers(0, 2**32, WIDTH, dtype=np.uint32)
    signatures = np.where(random.random((2_000, WIDTH)) < 0.65, boilerplate, signatures)
    signatures[1_000, 20:] = signatures[7, 20:]
    behind: list[int] = []
    buckets = text_pairs._buckets

    def counted(*arguments: Any) -> Any:
        found = buckets(*arguments)
        behind.append(len(found[1]))
        return found

    monkeypatch.setattr(text_pairs, "_buckets", counted)
    found = search(vectors_of(tmp_path / "v", signatures), np.arange(2_000), 0.8, tmp_path)
    check(found, by_hand(signatures, np.arange(2_000), 0.8))
    assert found.better.tolist() == [7]
    assert 2 <= sum(behind) < 200


def test_what_is_there_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = planted(300, seed=16)
    vectors = vectors_of(tmp_path / "v", signatures)
    rank = np.arange(300)
    first = search(vectors, rank, 0.7, tmp_path)
    monkeypatch.setattr(text_pairs, "_compare", None)
    monkeypatch.setattr(text_tokens, "_counted", None)
    check(search(vectors, rank, 0.7, tmp_path), first)
    with pytest.raises(TypeError):  # another floor is another search
        search(vectors, rank, 0.8, tmp_path)


def test_a_torn_file_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """A task killed while it writes leaves a part under another name."""
    signatures = planted(300, seed=17)
    vectors = vectors_of(tmp_path / "v", signatures)
    first = search(vectors, np.arange(300), 0.7, tmp_path)
    for path in tmp_path.glob("signatures-*/pairs-*.npy"):
        path.with_name(f"{path.name}.0a1b.tmp").write_bytes(path.read_bytes()[:100])
        path.unlink()
    check(search(vectors, np.arange(300), 0.7, tmp_path), first)


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(tmp_path: Path, count: int) -> None:
    vectors = vectors_of(tmp_path / "v", planted(5))
    found = near_signatures(vectors, np.arange(count), np.arange(count), np.zeros(count, bool), 0.8, OneByOne(), tmp_path)
    assert len(found) == 0
    assert len(found.cut) == count


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    vectors = vectors_of(tmp_path / "v", planted(5))
    with pytest.raises(ValueError, match="floor"):
        search(vectors, np.arange(5), 0.0, tmp_path)
    floats = write_vectors(tmp_path / "f", 1, np.zeros((0, 2)), [(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones((1, 4)))])
    with pytest.raises(ValueError, match="uint32"):
        search(floats, np.arange(1), 0.8, tmp_path)
    two = write_vectors(tmp_path / "t", 3, np.zeros((0, 2)), [(np.arange(2), np.zeros(2, np.int64), planted(2))], dtype="uint32")
    with pytest.raises(ValueError, match="no signature"):
        search(two, np.arange(3), 0.8, tmp_path)

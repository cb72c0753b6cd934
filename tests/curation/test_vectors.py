from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from curation import vectors as module
from curation.vectors import Vectors, block_path, new_array, unit, write_vectors
from shards.errors import InfrastructureError

WIDTH = 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)


def random(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)


# 40 rows; row 3 has media 1 and 2 besides, row 20 medium 1, row 39 media 1 to 30
MORE = np.array([(3, 1), (3, 2), (20, 1), *((39, m) for m in range(1, 31))], np.int64)


def delivered(order: np.ndarray, values: np.ndarray, pieces: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rows = np.concatenate([np.arange(40), MORE[:, 0]])
    media = np.concatenate([np.zeros(40, np.int64), MORE[:, 1]])
    for part in np.array_split(order, pieces):
        yield rows[part], media[part], values[part]


@pytest.fixture
def held(tmp_path: Path) -> tuple[Vectors, np.ndarray]:
    values = random(73)
    return write_vectors(tmp_path / "held", 40, MORE, delivered(np.arange(73), values, 1), digest="d"), values


def test_vectors_lie_where_their_number_says(held: tuple[Vectors, np.ndarray]) -> None:
    vectors, values = held
    exact = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1)[:, None]
    np.testing.assert_allclose(vectors.take(np.arange(73)), exact, atol=1e-7)
    assert (vectors.count, vectors.rows, vectors.width, vectors.dtype, vectors.digest) == (73, 40, WIDTH, "float32", "d")
    assert vectors.blocks == 5
    assert [len(vectors.block(b)) for b in range(5)] == [16, 16, 16, 16, 9]
    assert vectors.valid.all()
    assert vectors.refused == 0


@pytest.mark.parametrize("ids", [[], [72], [0, 15, 16, 40, 72], [72, 0, 16, 15, 16, 3], [5, 5, 5]])
def test_any_are_taken_in_any_order(ids: list[int], held: tuple[Vectors, np.ndarray]) -> None:
    vectors, _ = held
    every = np.concatenate([vectors.block(b) for b in range(vectors.blocks)])
    found = vectors.take(np.array(ids, np.int64))
    assert found.dtype == np.float32
    assert np.array_equal(found, every[ids])
    found[:] = 0  # a copy
    assert np.array_equal(vectors.take(np.arange(73)), every)


def test_files_are_not_to_be_written_by_those_who_read(held: tuple[Vectors, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        held[0].block(0)[0] = 0


def test_of_each_its_row_and_medium_are_known(held: tuple[Vectors, np.ndarray], tmp_path: Path) -> None:
    vectors, _ = held
    ids = np.array([0, 39, 40, 41, 42, 43, 72, 7])
    assert vectors.row_of(ids).tolist() == [0, 39, 3, 3, 20, 39, 39, 7]
    assert vectors.medium_of(ids).tolist() == [0, 0, 1, 2, 1, 1, 30, 0]
    single = write_vectors(tmp_path / "single", 4, np.zeros((0, 2)), [(np.arange(4), np.zeros(4, np.int64), random(4))])
    assert single.row_of(np.arange(4)).tolist() == [0, 1, 2, 3]
    assert single.medium_of(np.arange(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("pieces", [1, 4, 73])
def test_the_files_depend_on_the_set_alone(pieces: int, held: tuple[Vectors, np.ndarray], tmp_path: Path) -> None:
    vectors, values = held
    order = np.random.default_rng(pieces).permutation(73)
    other = write_vectors(tmp_path / "other", 40, MORE, delivered(order, values, pieces))
    for number in range(5):
        assert block_path(other.folder, number).read_bytes() == block_path(vectors.folder, number).read_bytes()
    assert np.array_equal(other.valid, vectors.valid)


def test_rows_without_one_are_not_valid_and_zeros_on_disk(tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path, 40, MORE, [(np.array([2, 20]), np.array([0, 1]), random(2))])
    assert np.flatnonzero(vectors.valid).tolist() == [2, 42]
    every = vectors.take(np.arange(73))
    assert np.flatnonzero(every.any(axis=1)).tolist() == [2, 42]


def test_vectors_without_a_direction_are_refused_and_counted(tmp_path: Path) -> None:
    values = random(7)
    values[1] = 0
    values[2, 3] = np.nan
    values[3, 0] = np.inf
    values[4] *= 1e25  # too long for float32's squares, but a direction
    values[5] *= 1e-25
    vectors = write_vectors(tmp_path, 7, np.zeros((0, 2)), [(np.arange(7), np.zeros(7, np.int64), values)])
    assert vectors.valid.tolist() == [True, False, False, False, True, True, True]
    assert vectors.refused == 3
    every = vectors.take(np.arange(7))
    assert not every[1:4].any()
    np.testing.assert_allclose(np.linalg.norm(every[[0, 4, 5, 6]].astype(np.float64), axis=1), 1, atol=1e-6)


def test_a_length_does_not_depend_on_the_batch() -> None:
    values = random(500)
    one_by_one = np.concatenate([unit(values[i : i + 1])[0] for i in range(500)])
    assert np.array_equal(unit(values)[0], one_by_one)


def test_signatures_stay_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**32, (20, WIDTH), np.uint32)
    values[4] = 0  # a signature like any other
    batch = (np.arange(20), np.zeros(20, np.int64), values)
    vectors = write_vectors(tmp_path, 20, np.zeros((0, 2)), [batch], dtype="uint32")
    assert vectors.valid.all()
    assert vectors.refused == 0
    found = vectors.take(np.arange(20))
    assert found.dtype == np.uint32
    assert np.array_equal(found, values)


def test_vectors_of_two_models_are_refused(tmp_path: Path) -> None:
    batches = [(np.array([i]), np.array([0]), np.ones((1, width), np.float32)) for i, width in enumerate((2, 3))]
    with pytest.raises(InfrastructureError, match="2 and 3 numbers"):
        write_vectors(tmp_path, 2, np.zeros((0, 2)), batches)


def test_none_at_all(tmp_path: Path) -> None:
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, WIDTH), np.float32))
    for number, batches in enumerate(([], [empty])):
        vectors = write_vectors(tmp_path / str(number), 40, MORE, batches)
        assert (vectors.count, vectors.width, vectors.blocks) == (0, 0, 0)
        assert not vectors.valid.any()


def test_another_process_maps_the_same_files(held: tuple[Vectors, np.ndarray]) -> None:
    vectors, _ = held
    other = pickle.loads(pickle.dumps(vectors))
    assert np.array_equal(other.take(np.arange(73)), vectors.take(np.arange(73)))
    assert other.row_of(np.array([42])).tolist() == [20]


def test_a_disk_that_takes_no_blocks_is_an_error_and_no_signal(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InfrastructureError, match=r"bytes: .*free space there"):
            new_array(tmp_path / "a.npy", np.float32, (4096, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    made = new_array(tmp_path / "a.npy", np.float32, (4096, 4))
    assert not made.any()
    held = (tmp_path / "a.npy").stat()
    assert held.st_blocks * 512 >= 4096 * 16  # no hole: what is stored into it later has its room

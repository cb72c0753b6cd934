"""Equal frames are found by their bytes, and what they keep together is counted once."""

from __future__ import annotations

import numpy as np
import pytest

import shards.repeats as repeats
from shards.repeats import first_equal, kept_once


def test_the_first_equal_frame_stands_for_all() -> None:
    a, b = np.zeros((4, 6), np.float32), np.ones((4, 6), np.float32)
    assert first_equal([a, b, a.copy(), b.copy(), a]).tolist() == [0, 1, 0, 1, 0]
    assert first_equal([a, a, a], kinds=["x", "y", "x"]).tolist() == [0, 1, 0]
    assert first_equal([]).tolist() == []


def test_equal_is_to_the_last_bit_type_and_shape() -> None:
    a = np.zeros((4, 6), np.float32)
    last = a.copy()
    last[-1, -1] = np.nextafter(np.float32(0), np.float32(1))
    others = [last, -a, a.reshape(6, 4), a.view(np.int32), a[:2]]
    assert first_equal([a, *others]).tolist() == list(range(6))
    assert first_equal([np.full(3, np.nan), np.full(3, np.nan)]).tolist() == [0, 0]
    assert first_equal([np.arange(12).reshape(3, 4).T, np.arange(12).reshape(3, 4).T.copy()]).tolist() == [0, 0]


def test_frames_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats.xxhash, "xxh3_64_intdigest", lambda _: 7)
    frames = [np.full(4, n % 3) for n in range(7)]
    assert first_equal(frames).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_blocks_that_equal_frames_keep_are_counted_once() -> None:
    kept = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], dtype=bool)
    once = kept_once(np.array([0, 1, 0, 1]), kept)
    assert once.astype(int).tolist() == [[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert np.array_equal(kept_once(np.arange(4), kept), kept)

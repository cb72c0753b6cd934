from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.orientations import near_oriented, orientations
from curation.population import OneByOne
from curation.probe import phash
from shards.image import decode_image
from shards.media import Limits

KINDS = [(False, False, 1), (True, False, 2), (False, True, 4), (True, True, 8)]
TURNS: list[Callable[[np.ndarray], np.ndarray]] = [
    *(lambda pixels, q=q: np.rot90(pixels, q) for q in range(4)),
    *(lambda pixels, q=q: np.rot90(pixels, q)[:, ::-1] for q in range(4)),
]
hashes64 = st.lists(st.integers(0, 2**64 - 1), max_size=20).map(lambda values: np.array(values, np.uint64))


@given(hashes64)
@settings(deadline=None)
def test_the_bits_of_a_turned_square(hashes: np.ndarray) -> None:
    """Bit (row, column) is about the frequency (row, column): a transposed picture has the transposed bits."""
    found = orientations(hashes, flips=True, rotations=True)
    squares = np.unpackbits(hashes.astype(">u8").view(np.uint8)).reshape(-1, 8, 8)
    transposed = np.packbits(squares.transpose(0, 2, 1)).view(">u8").astype(np.uint64)
    assert np.array_equal(found[:, 7], transposed)  # turned by 270°, then mirrored
    across = np.packbits(squares ^ (np.arange(8, dtype=np.uint8) & 1)).view(">u8").astype(np.uint64)
    assert np.array_equal(found[:, 4], across)


@pytest.mark.parametrize(("flips", "rotations", "count"), KINDS)
@given(hashes=hashes64)
@settings(deadline=None, max_examples=30)
def test_turns_are_a_group_that_keeps_distances(flips: bool, rotations: bool, count: int, hashes: np.ndarray) -> None:
    """So it does not matter which of two pictures is turned, nor in what orientation it came."""
    found = orientations(hashes, flips, rotations)
    assert found.shape == (len(hashes), count)
    assert np.array_equal(found[:, 0], hashes)
    for k in range(count):
        assert np.array_equal(np.sort(orientations(found[:, k], flips, rotations), axis=1), np.sort(found, axis=1))
        assert np.array_equal(np.bitwise_count(found[1:, k] ^ found[:-1, k]), np.bitwise_count(hashes[1:] ^ hashes[:-1]))


def test_turned_pictures_have_nearly_those_hashes(data_dir: Path) -> None:
    """40 photographs and figures, turned for real. The measured distribution is in the docstring; a wrong turn would be 32 bits off."""
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    files = [data_dir / record["files"][0] for record in records if record["kind"] == "caption"][::11]
    off = []
    for file in files:
        pixels = decode_image(file.read_bytes(), Limits())
        derived = orientations(np.array([phash(pixels)], np.uint64), flips=True, rotations=True)[0].tolist()
        off.append([(phash(np.ascontiguousarray(turn(pixels))) ^ bits).bit_count() for turn, bits in zip(TURNS, derived, strict=True)])
    bits = np.array(off)
    assert len(bits) > 40
    assert not bits[:, 0].any()
    assert bits[:, 1:].max() <= 14
    assert (bits[:, 1:] <= 8).mean() >= 0.98
    assert (bits[:, 7] <= 2).all()


@pytest.mark.parametrize(("flips", "rotations", "count"), KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), radius=st.integers(0, 10), most=st.sampled_from([1, 3, 128]), asked=st.booleans())
def test_pairs_near_in_some_orientation(
    flips: bool, rotations: bool, count: int, tmp_path_factory: pytest.TempPathFactory, seed: int, radius: int, most: int, asked: bool
) -> None:
    rng = np.random.default_rng(seed)
    centres = orientations(rng.integers(0, 2**64, 6, dtype=np.uint64), flips=True, rotations=True)
    hashes = centres[rng.integers(0, 6, 80), rng.integers(0, 8, 80)]
    for _ in range(5):
        hashes ^= np.where(rng.random(80) < 0.5, np.uint64(1) << rng.integers(0, 64, 80).astype(np.uint64), np.uint64(0))
    rank = rng.permutation(80)
    fixed, queries = rank < 20, rng.random(80) < 0.5 if asked else None
    scratch = tmp_path_factory.mktemp("turned")
    found = near_oriented(hashes, rank, fixed, radius, flips, rotations, OneByOne(), scratch, queries, most)
    distances = np.bitwise_count(orientations(hashes, flips, rotations)[:, None, :] ^ hashes[None, :, None]).min(axis=2)
    assert np.array_equal(distances, distances.T)
    near = (distances <= radius) & (rank[:, None] < rank[None, :]) & ~(fixed[:, None] & fixed[None, :])
    if queries is not None:
        near &= queries[:, None] | queries[None, :]
    assert np.array_equal(found.cut, near.sum(axis=0) > most)
    pairs = [(a, b) for b in range(80) for a in sorted(np.flatnonzero(near[:, b]).tolist(), key=lambda i: rank[i])[:most]]
    assert sorted(pairs) == sorted(zip(found.better.tolist(), found.worse.tolist(), strict=True))
    assert np.array_equal(found.similarity, (1 - distances[found.better, found.worse] / 64).astype(np.float32))


def test_a_mirrored_copy_is_no_copy_where_nothing_is_turned(tmp_path: Path) -> None:
    own = np.array([0x0123456789ABCDEF], np.uint64)
    both = np.concatenate([own, orientations(own, flips=True, rotations=False)[:, 1]])
    rank, fixed = np.arange(2), np.zeros(2, bool)
    assert len(near_oriented(both, rank, fixed, 8, False, False, OneByOne(), tmp_path)) == 0
    assert near_oriented(both, rank, fixed, 8, True, False, OneByOne(), tmp_path).similarity.tolist() == [1.0]
    assert len(near_oriented(both, rank, fixed, 8, False, True, OneByOne(), tmp_path)) == 0

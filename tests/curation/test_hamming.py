from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.hamming import choose_bands, near_pairs

Triples = list[tuple[int, int, int]]


def brute_force(hashes: list[int], radius: int) -> set[tuple[int, int, int]]:
    return {
        (i, j, (hashes[i] ^ hashes[j]).bit_count())
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= radius
    }


def found(hashes: list[int], radius: int, chunk: int = 1 << 20) -> Triples:
    return [
        triple
        for left, right, distance in near_pairs(np.array(hashes, np.uint64), radius, chunk)
        for triple in zip(left.tolist(), right.tolist(), distance.tolist(), strict=True)
    ]


@st.composite
def clustered_hashes(draw: st.DrawFn) -> list[int]:
    """A few centres and copies of them with up to 20 bits flipped: pairs on both sides of any radius, equal hashes among them."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    copies = st.tuples(st.sampled_from(centres), st.lists(st.integers(0, 63), max_size=20))
    hashes = [*centres]
    for centre, bits in draw(st.lists(copies, max_size=30)):
        for bit in bits:
            centre ^= 1 << bit
        hashes.append(centre)
    return draw(st.permutations(hashes))


@settings(max_examples=150, deadline=None)
@given(clustered_hashes(), st.integers(0, 16), st.integers(1, 40))
def test_every_pair_within_the_radius_once(hashes: list[int], radius: int, chunk: int) -> None:
    pairs = found(hashes, radius, chunk)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == brute_force(hashes, radius)
    lefts = [i for i, _, _ in pairs]
    assert lefts == sorted(lefts)


def test_many_bands_and_flips_agree_with_brute_force() -> None:
    """2,500 hashes: another cut into bands than a handful gives, with values flipped inside them."""
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**64, 2500, dtype=np.uint64)
    for place in range(0, 2400, 3):
        flips = rng.choice(64, rng.integers(0, 18), replace=False)
        hashes[place + 1] = hashes[place] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
    differences = hashes[:, None] ^ hashes[None, :]
    distances = np.unpackbits(differences.view(np.uint8).reshape(2500, 2500, 8), axis=-1).sum(-1)
    for radius in (0, 4, 9, 16):
        i, j = np.nonzero(np.triu(distances <= radius, 1))
        assert set(found(hashes.tolist(), radius)) == set(zip(i.tolist(), j.tolist(), distances[i, j].tolist(), strict=True))


def test_a_chunk_never_splits_the_pairs_of_one_hash() -> None:
    hashes = [0] * 10
    chunks = list(near_pairs(np.array(hashes, np.uint64), 0, chunk=3))
    assert sum(len(left) for left, _, _ in chunks) == 45
    for before, after in pairwise(chunks):
        assert before[0][-1] < after[0][0]


def test_large_sets_look_inside_bands_rather_than_at_everything() -> None:
    assert choose_bands(1_000_000, 4) >= 3
    assert choose_bands(10, 0) >= 3  # a band of more than 22 bits would cost more memory than the hashes


def test_refuses_a_radius_it_was_not_made_for() -> None:
    with pytest.raises(ValueError, match=r"0\.\.16"):
        list(near_pairs(np.zeros(3, np.uint64), 17))
    assert found([], 4) == []
    assert found([7], 4) == []

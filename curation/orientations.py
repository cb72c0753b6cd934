"""Perceptual hashes of a picture's mirror images and rotations, from the 64 bits of its own; pictures that are near in some orientation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from curation.hamming import near_variants
from curation.near import MOST, Found
from curation.population import Workers

_ODD_COLUMNS = np.uint64(0x5555555555555555)  # of the 8×8 frequencies, row by row from the highest bit
_ODD_ROWS = np.uint64(0x00FF00FF00FF00FF)
_SWAPS = (
    (0x00AA00AA00AA00AA, 7),
    (0x0000CCCC0000CCCC, 14),
    (0x00000000F0F0F0F0, 28),
)  # 8×8 bits transposed (Warren, "Hacker's Delight", 7-3)


def orientations(hashes: np.ndarray, flips: bool, rotations: bool) -> np.ndarray:
    """What `curation.probe.phash` gives, nearly, for the same picture in other orientations: uint64 (m,) -> uint64 (m, k), its own first.

    k = 1; 2 with flips: its mirror image, left for right; 4 with rotations: turned by 0, 90, 180, 270° anticlockwise; 8 with both: those
    four, then those four mirrored.

    A mirrored picture has the same DCT with odd columns (upside down: odd rows) negated, a transposed one the same transposed. A negated
    frequency is above the median where it was below, were the median zero: it is not quite, so some bits are wrong. Off from the hash of
    the picture that is really turned, 541 photographs and textbook figures, seven orientations each: none 21 %, at most 2 bits 57 %, at
    most 4 85 %, 6 96 %, 8 99.4 %, at worst 14 (a transposed picture: 0 or 2). A radius of 8 finds turned copies; 4 loses one in seven.
    """
    own = np.ascontiguousarray(hashes, np.uint64)
    across, turned = own ^ _ODD_COLUMNS, _transposed(own)
    if not rotations:
        return np.stack([own, across] if flips else [own], axis=1)
    quarters = [own, turned ^ _ODD_ROWS, own ^ _ODD_COLUMNS ^ _ODD_ROWS, turned ^ _ODD_COLUMNS]
    if flips:
        quarters += [quarter ^ _ODD_COLUMNS for quarter in quarters]
    return np.stack(quarters, axis=1)


def near_oriented(
    hashes: np.ndarray,
    rank: np.ndarray,
    fixed: np.ndarray,
    radius: int,
    flips: bool,
    rotations: bool,
    workers: Workers,
    scratch: Path,
    queries: np.ndarray | None = None,
    most: int = MOST,
) -> Found:
    """`curation.hamming.near_hashes` for pairs where some orientation of one is within the radius of the other; similarity of the nearest.

    Orientations keep distances and can be undone, so it is the same which of two is turned. Takes up to k times as long.
    """
    turn = partial(orientations, flips=flips, rotations=rotations)
    name = f"{'flips' * flips}{'rotations' * rotations}"
    return near_variants(hashes, rank, fixed, radius, turn, name, workers, scratch, queries, most)


def _transposed(hashes: np.ndarray) -> np.ndarray:
    """Rows and columns of 8×8 bits exchanged (Warren, "Hacker's Delight", section 7-3)."""
    for mask, shift in _SWAPS:
        moved = (hashes ^ (hashes >> np.uint64(shift))) & np.uint64(mask)
        hashes = hashes ^ moved ^ (moved << np.uint64(shift))
    return hashes

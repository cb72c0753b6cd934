"""Floors of searches: how far below a threshold pairs are looked for and stored, so that another threshold above searches nothing."""

from __future__ import annotations

from collections.abc import Sequence

STEP = 20  # floors of similarities lie on multiples of 1/20
HIGHEST = 18  # and not above 0.9, so that every cosine from there on shares one
LOWEST = 10
LARGEST_RADIUS = 16
RADII = (6, 10, 14, LARGEST_RADIUS)  # of 64 bits: floors of hashes


def radius_floor(radius: int) -> int:
    """The least of RADII that is at least two bits above a radius; 16 for the largest ones."""
    return next((r for r in RADII if r >= radius + 2), LARGEST_RADIUS)


def similarity_floor(threshold: float) -> float:
    """The highest multiple of 0.05 that is at least 0.025 below a threshold, and at most 0.9: 0.95 → 0.9, 0.9 → 0.85."""
    return min(HIGHEST, int((threshold - 0.025) * STEP + 1e-9)) / STEP


def lower_floors(floor: float) -> Sequence[float]:
    """Floors of similarities below this one, the nearest first: what was searched above any of them holds what is above this one."""
    return [k / STEP for k in range(HIGHEST, LOWEST - 1, -1) if k / STEP < floor]


def larger_radii(radius: int) -> Sequence[int]:
    return [r for r in RADII if r > radius]

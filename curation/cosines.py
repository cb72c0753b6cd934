"""Candidates of a matrix product, weighed exactly: float64 sums in a fixed order, so that no blocking of the product shows in a pair."""

from __future__ import annotations

import numba
import numpy as np

MARGIN = 1e-4  # a product in float32 is off by far less, so that nothing above a floor is missed when candidates are taken this much below


@numba.njit(cache=True)
def cosine(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Cosine of two float32 vectors, the same on any machine that follows IEEE 754; exactly 1 for equal ones."""
    ab0, ab1, ab2, ab3 = 0.0, 0.0, 0.0, 0.0
    aa0, aa1, aa2, aa3 = 0.0, 0.0, 0.0, 0.0
    bb0, bb1, bb2, bb3 = 0.0, 0.0, 0.0, 0.0
    whole = len(a) // 4 * 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = np.float64(a[i]), np.float64(a[i + 1]), np.float64(a[i + 2]), np.float64(a[i + 3])
        y0, y1, y2, y3 = np.float64(b[i]), np.float64(b[i + 1]), np.float64(b[i + 2]), np.float64(b[i + 3])
        ab0 += x0 * y0
        ab1 += x1 * y1
        ab2 += x2 * y2
        ab3 += x3 * y3
        aa0 += x0 * x0
        aa1 += x1 * x1
        aa2 += x2 * x2
        aa3 += x3 * x3
        bb0 += y0 * y0
        bb1 += y1 * y1
        bb2 += y2 * y2
        bb3 += y3 * y3
    for i in range(whole, len(a)):
        x0, y0 = np.float64(a[i]), np.float64(b[i])
        ab0 += x0 * y0
        aa0 += x0 * x0
        bb0 += y0 * y0
    ab = (ab0 + ab1) + (ab2 + ab3)
    squares = ((aa0 + aa1) + (aa2 + aa3)) * ((bb0 + bb1) + (bb2 + bb3))
    return np.float32(min(1.0, max(-1.0, ab / np.sqrt(squares))))


@numba.njit(cache=True)
def weigh(  # type: ignore[no-untyped-def]
    lims,
    labels,
    rows,
    columns,
    row_vectors,
    column_vectors,
    row_ranks,
    column_ranks,
    row_left,
    column_left,
    floor,
    worse,
    better,
    similarity,
):
    """Candidate pairs of one call, weighed; those at or above `floor` go to the three arrays as ranks. Returns how many.

    lims, labels     of the call: row i's candidates are labels[lims[i]:lims[i + 1]], ascending.
    rows, columns    int64: which rows and columns of the tile the call compared, both in order of rank.
    row_left, column_left  how many more betters each may take; a pair whose worse one has none left is not even weighed. Since both
                           sides are met in order of rank, the betters that one takes are its best-ranked.
    """
    filled = 0
    for i in range(len(lims) - 1):
        row = rows[i]
        for place in range(lims[i], lims[i + 1]):
            column = columns[labels[place]]
            if row_ranks[row] > column_ranks[column]:
                if row_left[row] == 0:
                    continue
            elif row_ranks[row] == column_ranks[column] or column_left[column] == 0:
                continue
            alike = cosine(row_vectors[i], column_vectors[labels[place]])
            if alike < floor:
                continue
            if row_ranks[row] > column_ranks[column]:
                row_left[row] -= 1
                worse[filled] = row_ranks[row]
                better[filled] = column_ranks[column]
            else:
                column_left[column] -= 1
                worse[filled] = column_ranks[column]
                better[filled] = row_ranks[row]
            similarity[filled] = alike
            filled += 1
    return filled

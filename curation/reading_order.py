"""The order in which people read lines of text that lie on a page: columns one after the other, rows of tables and receipts across.

A recursive cut along white gutters (Nagy and Seth's XY-cut), changed in two points. Lines that cross a gutter (a title, the caption of a
wide figure) cut the page into bands first, so that a heading above two columns does not hide them. And a gutter only counts between
*columns*: where both sides are running text, or where the lines of the two sides do not stand level with each other. The cells of a table,
the labels and prices of a receipt are short and level: they stay rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LONG = 2.0  # length to thickness from which a line tells an angle
_RUNNING = 6.0  # length to thickness of a median line of running text: about three words
_FEWEST = 3  # lines on each side of a gutter
_GUTTER = 0.6  # width of a gutter, in median thicknesses of the lines about it
_MARGIN = 0.2  # of a thickness: so far do detectors' boxes reach beyond the text at either end
_LEVEL = 0.4  # of a thickness: lines nearer than that in height are level
_UNLEVEL = 0.6  # share of level lines below which two sides have nothing to do with each other
_PLACES = 24  # where a gutter is looked for, at most
_CORE = 0.7  # of a line's thickness: detectors draw boxes a little too large, so neighbours seem to touch


@dataclass(frozen=True, slots=True)
class _Lines:
    """Edges of upright boxes, float64 (n,) each, y downwards."""

    left: np.ndarray
    top: np.ndarray
    right: np.ndarray
    bottom: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        return (self.top + self.bottom) / 2

    @property
    def thickness(self) -> np.ndarray:
        return self.bottom - self.top


def reading_order(polygons: np.ndarray) -> list[int]:
    """Places of the polygons (n, 4, 2: x, y in pixels, any corner first) in the order they are read, left to right and top to bottom.

    A permutation of range(n) that depends on where the polygons lie, not on the order they come in (equal ones aside), nor on scale or
    place. A page that is turned a little is straightened by the angle of its lines; one whose lines run downwards is read as if turned
    clockwise by 90 degrees.
    """
    if len(polygons) == 0:
        return []
    lines = _boxes(_straight(np.asarray(polygons, dtype=np.float64)))
    every = np.lexsort((lines.bottom, lines.right, lines.left, lines.top))
    return [int(i) for i in _read(lines, every)]


def page_angle(polygons: np.ndarray) -> float:
    """Radians by which the lines run downwards from left to right, -pi/4..3pi/4: the median over lines that are long enough to tell,
    each counted by its length; 0 where none is."""
    sides = np.roll(polygons, -1, axis=1) - polygons  # (n, 4, 2)
    lengths = np.linalg.norm(sides, axis=2)
    first, second = lengths[:, 0] + lengths[:, 2], lengths[:, 1] + lengths[:, 3]
    long, short = np.maximum(first, second), np.minimum(first, second)
    along = np.where((first >= second)[:, None], sides[:, 0] - sides[:, 2], sides[:, 1] - sides[:, 3])
    use = long >= _LONG * np.maximum(short, 1e-9)
    if not use.any():
        return 0.0
    angles = np.arctan2(along[use, 1], along[use, 0])
    angles = (angles + np.pi / 4) % np.pi - np.pi / 4  # a line has no head: -pi/4..3pi/4
    upright = angles < np.pi / 4
    weights = long[use]
    most = upright if weights[upright].sum() >= weights[~upright].sum() else ~upright
    order = np.lexsort((weights[most], angles[most]))
    total = np.cumsum(weights[most][order])
    return float(angles[most][order][np.searchsorted(total, total[-1] / 2)])


def _straight(polygons: np.ndarray) -> np.ndarray:
    angle = page_angle(polygons)
    cos, sin = np.cos(angle), np.sin(angle)
    corner = polygons.reshape(-1, 2).min(axis=0)
    return (polygons - corner) @ np.array([[cos, -sin], [sin, cos]])


def _boxes(polygons: np.ndarray) -> _Lines:
    """Each line as thick as it is, about its middle (the box about a slanted line would be too high), without its margins."""
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    ordered = np.sort(polygons[:, :, 1], axis=1)
    thick = np.maximum(ordered[:, 2:].mean(axis=1) - ordered[:, :2].mean(axis=1), 1e-6 * np.maximum((high - low).max(axis=1), 1e-9))
    middle = polygons[:, :, 1].mean(axis=1)
    margin = np.minimum(_MARGIN * thick, (high[:, 0] - low[:, 0]) / 4)
    return _Lines(low[:, 0] + margin, middle - thick / 2, high[:, 0] - margin, middle + thick / 2)


def _read(lines: _Lines, some: np.ndarray) -> list[int]:
    found = _gutter(lines, some)
    if found is None:
        return _rows(lines, some)
    order: list[int] = []
    for band in found:
        order += _rows(lines, band[0]) if len(band) == 1 else [i for side in band for i in _read(lines, side)]
    return order


def _gutter(lines: _Lines, some: np.ndarray) -> list[tuple[np.ndarray, ...]] | None:
    """The bands of a region from the top: (lines,) without columns, (left, right) with; None where no gutter parts any columns."""
    best: tuple[int, float] | None = None
    bands: list[tuple[np.ndarray, ...]] | None = None
    for x in _candidates(lines, some):
        cut = _bands(lines, some, x)
        parted = sum(min(len(band[0]), len(band[1])) for band in cut if len(band) == 2)
        if parted == 0:
            continue
        width = min(_width(lines, band[0], band[1]) for band in cut if len(band) == 2)
        if best is None or (parted, width) > best:
            best, bands = (parted, width), cut
    return bands


def _candidates(lines: _Lines, some: np.ndarray) -> np.ndarray:
    """Where a gutter may be: between a right edge and the next left edge beyond it, the places that part the most lines."""
    rights, lefts = np.unique(lines.right[some]), np.sort(lines.left[some])
    following = np.searchsorted(lefts, rights, side="left")
    inside = following < len(lefts)
    places = np.unique((rights[inside] + lefts[following[inside]]) / 2)
    before = np.searchsorted(np.sort(lines.right[some]), places, side="right")
    beyond = len(lefts) - np.searchsorted(lefts, places, side="left")
    fewer, across = np.minimum(before, beyond), len(some) - before - beyond
    ranked = np.argsort(across - fewer, kind="stable")[:_PLACES]
    return places[ranked[fewer[ranked] >= _FEWEST]]


def _bands(lines: _Lines, some: np.ndarray, x: float) -> list[tuple[np.ndarray, ...]]:
    """Cuts a region at the lines across x, from the top; neighbouring bands without columns are one."""
    across = (lines.left[some] < x) & (lines.right[some] > x)
    walls = some[across][np.argsort(lines.middle[some[across]], kind="stable")]
    rest = some[~across]
    place = np.searchsorted(lines.middle[walls], lines.middle[rest], side="right")
    bands: list[tuple[np.ndarray, ...]] = []
    for i in range(len(walls) + 1):
        body = rest[place == i]
        left, right = body[lines.right[body] <= x], body[lines.left[body] >= x]
        if _are_columns(lines, left, right):
            bands.append((left, right))
        elif len(body):
            _append(bands, body)
        if i < len(walls):
            _append(bands, walls[i : i + 1])
    return bands


def _append(bands: list[tuple[np.ndarray, ...]], some: np.ndarray) -> None:
    if bands and len(bands[-1]) == 1:
        bands[-1] = (np.concatenate((bands[-1][0], some)),)
    else:
        bands.append((some,))


def _are_columns(lines: _Lines, left: np.ndarray, right: np.ndarray) -> bool:
    if min(len(left), len(right)) < _FEWEST:
        return False
    thick = float(np.median(lines.thickness[np.concatenate((left, right))]))
    if _width(lines, left, right) < _GUTTER * thick:
        return False
    beside = min(lines.bottom[left].max(), lines.bottom[right].max()) - max(lines.top[left].min(), lines.top[right].min())
    lower = min(np.ptp(lines.middle[left]), np.ptp(lines.middle[right]))
    if beside < lower / 2:
        return False
    if _running(lines, left) and _running(lines, right):
        return True
    few, many = (left, right) if len(left) <= len(right) else (right, left)
    return len(few) > _FEWEST and _level_share(lines, few, many) < _UNLEVEL


def _width(lines: _Lines, left: np.ndarray, right: np.ndarray) -> float:
    return float(lines.left[right].min() - lines.right[left].max())


def _running(lines: _Lines, some: np.ndarray) -> bool:
    """Whether these are lines of running text: long for their thickness."""
    return bool(np.median((lines.right[some] - lines.left[some]) / lines.thickness[some]) >= _RUNNING)


def _level_share(lines: _Lines, few: np.ndarray, many: np.ndarray) -> float:
    """Share of the lines of one side that stand level with one of the other."""
    apart = np.abs(lines.middle[few][:, None] - lines.middle[many][None, :]).min(axis=1)
    return float((apart < _LEVEL * lines.thickness[few]).mean())


def _rows(lines: _Lines, some: np.ndarray) -> list[int]:
    """Row after row from the top, each from the left. A line joins the row of the line beside it that it is most level with."""
    rows: list[list[int]] = []
    reached: list[list[int]] = []  # those that later lines may still join
    for i in some[np.lexsort((lines.left[some], lines.middle[some]))]:
        reached = [row for row in reached if max(lines.bottom[row]) > lines.top[i]]
        shares = [_joins(lines, row, i) for row in reached]
        best = max(range(len(reached)), key=lambda r: (shares[r], r), default=-1)
        if best >= 0 and shares[best] >= 0.5:
            reached[best].append(int(i))
        else:
            rows.append([int(i)])
            reached.append(rows[-1])
    rows.sort(key=lambda row: (float(np.median(lines.middle[row])), float(lines.left[row].min())))
    return [i for row in rows for i in sorted(row, key=lambda i: (lines.left[i], lines.top[i], lines.right[i], lines.bottom[i]))]


def _joins(lines: _Lines, row: list[int], i: int) -> float:
    """How much of the thinner of two lines lies level with the other: line i and the nearest of a row. 0 if i lies above or below it."""
    members = np.array(row)
    gaps = np.maximum(lines.left[members] - lines.right[i], lines.left[i] - lines.right[members])  # negative: overlap
    width = np.minimum(lines.right[members] - lines.left[members], lines.right[i] - lines.left[i])
    if (gaps < -0.3 * width).any():
        return 0.0
    near = members[np.argmin(gaps)]
    thick, own = _CORE * lines.thickness[near], _CORE * lines.thickness[i]
    overlap = (thick + own) / 2 - abs(lines.middle[near] - lines.middle[i])
    return float(min(max(overlap / min(thick, own), 0.0), 1.0))

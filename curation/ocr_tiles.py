"""Small text on large pictures: the detector looks at overlapping tiles at full size, and lines cut by their borders are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_OVERLAP = 0.25  # of a tile's side
_INSIDE = 0.7  # share of a line that lies in another from which it is a piece of that one
_LEVEL = 0.6  # share of the thinner of two pieces' thickness that must lie level for one line
_BLUR = 11.0  # pixels of thickness, as the detector saw it, below which the median line is too small for it
_SHRUNK = 0.5  # a picture shrunk less than that for the detector gains nothing
_WIDER = 1.5  # side of the tiles of "auto", in `longest`
_CLEAR = 32.0  # … from which the whole view is better than the pieces tiles have of it


def find_lines(detect: Callable[[np.ndarray, int], np.ndarray], picture: np.ndarray, longest: int, tiles: str | int) -> np.ndarray:
    """Polygons (n, 4, 2) of the lines in a picture (uint8 H×W×3), in its pixels.

    longest  of a picture's sides as the detector sees it.
    tiles    "off": one view of the whole. "auto": tiles of 1.5 × `longest` where a picture was shrunk to half or less and its lines are
             then too thin to be seen well. A number: tiles of so many pixels, of each picture that is larger.
    """
    whole = detect(picture, longest)
    side = round(_WIDER * longest) if isinstance(tiles, str) else tiles
    if tiles == "off" or max(picture.shape[:2]) <= side:
        return whole
    scale = min(1.0, longest / max(picture.shape[:2]))
    thin = thickness(whole) * scale
    if tiles == "auto" and (len(whole) == 0 or scale > _SHRUNK or np.median(thin) >= _BLUR):
        return whole
    pieces = [whole[thin >= _CLEAR]]
    for top in tile_starts(picture.shape[0], side):
        for left in tile_starts(picture.shape[1], side):
            tile = np.ascontiguousarray(picture[top : top + side, left : left + side])
            pieces.append(detect(tile, longest) + np.array([left, top]))
    return merged(np.concatenate(pieces), np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces]))


def thickness(polygons: np.ndarray) -> np.ndarray:
    """(n,): the shorter side of each."""
    sides = np.linalg.norm(np.roll(polygons, -1, axis=1) - polygons, axis=2)
    return np.minimum(sides[:, 0] + sides[:, 2], sides[:, 1] + sides[:, 3]) / 2


def tile_starts(length: int, side: int) -> list[int]:
    """Where tiles of `side` pixels begin along `length`: evenly, overlapping by a quarter of a tile or more."""
    if length <= side:
        return [0]
    count = int(np.ceil((length - side) / (side * (1 - _OVERLAP)))) + 1
    return [int(start) for start in np.linspace(0, length - side, count).round()]


def merged(polygons: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """One polygon for each line: level pieces of two tiles that overlap are one line; what then lies inside another line is dropped.

    polygons (n, 4, 2); tile (n,): number of the tile each was found in.
    """
    import shapely

    if len(polygons) < 2:
        return polygons
    shapes = shapely.convex_hull(shapely.polygons(polygons))
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    group = np.arange(len(polygons))
    for a, b in zip(first, second, strict=True):
        if a < b and tile[a] != tile[b] and _one_line(polygons[a], polygons[b]):
            group[group == group[b]] = group[a]
    lines = np.array([_around(polygons[group == g]) for g in np.unique(group)])
    several = np.array([len(np.unique(tile[group == g])) > 1 for g in np.unique(group)])
    alone = np.array([tile[group == g][0] for g in np.unique(group)])
    shapes = shapely.convex_hull(shapely.polygons(lines))
    areas = np.maximum(shapely.area(shapes), 1e-9)
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    apart = several[first] | several[second] | (alone[first] != alone[second])
    inside = shapely.area(shapely.intersection(shapes[first], shapes[second])) >= _INSIDE * areas[first]
    smaller = (areas[first] < areas[second]) | ((areas[first] == areas[second]) & (first > second))
    return lines[np.setdiff1d(np.arange(len(lines)), first[apart & inside & smaller])]


def _one_line(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two polygons that touch are pieces of one line: level with each other along the longer, and equally thick."""
    along, length, thick = _axis(a)
    other, other_length, other_thick = _axis(b)
    if other_length > length:
        along = other
    if max(thick, other_thick) > 1.7 * min(thick, other_thick):
        return False
    across = np.array([-along[1], along[0]])
    apart = abs(float((a.mean(axis=0) - b.mean(axis=0)) @ across))
    return (thick + other_thick) / 2 - apart >= _LEVEL * min(thick, other_thick)


def _axis(polygon: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Unit vector along a line, its length and thickness."""
    one, two = (polygon[1] + polygon[2] - polygon[0] - polygon[3]) / 2, (polygon[2] + polygon[3] - polygon[0] - polygon[1]) / 2
    first, second = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    long, length, thick = (one, first, second) if first >= second else (two, second, first)
    return long / max(length, 1e-9), length, thick


def _around(pieces: np.ndarray) -> np.ndarray:
    """(4, 2): the one piece, or the smallest rectangle about several."""
    if len(pieces) == 1:
        return np.asarray(pieces[0])
    import cv2

    rectangle: Any = cv2.minAreaRect(pieces.reshape(-1, 2).astype(np.float32))
    return np.asarray(cv2.boxPoints(rectangle), dtype=np.float64)

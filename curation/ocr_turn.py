"""Turned pages: which way up a picture stands, from the shape of its lines and from how surely a few of them are read either way round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curation.ocr_engine import Engine, cut_line

_LONG = 2.0  # length to thickness from which a line tells whether the page lies on its side
_TRIED = 5  # lines read both ways
_SURE = 0.9  # mean confidence from which lines are the right way up without reading them the other way round
_FOUND = 0.8  # mean confidence that lines read the other way round must have
_BETTER = 0.1  # … and be better by


def quarter_turns(engine: Engine, picture: np.ndarray, polygons: np.ndarray) -> tuple[int, dict[int, tuple[str, float]]]:
    """Quarter turns counter-clockwise (0..3) after which the text of a picture (BGR uint8 H×W×3) stands upright.

    polygons (n, 4, 2): its lines. Also given: place → text and confidence of the lines that were read as they lie on the way. 0 quarters
    also where the lines cannot tell: too few, too short, or read badly either way (upright columns of Chinese, say).
    """
    extents = np.ptp(polygons, axis=1)  # (n, 2): width, height
    flat = extents[:, 0] >= _LONG * extents[:, 1]
    tall = extents[:, 1] >= _LONG * extents[:, 0]
    longest = extents.max(axis=1, initial=0)
    side = bool(longest[tall].sum() > longest[flat].sum())
    use = np.flatnonzero(tall if side else flat)
    tried = use[np.argsort(-longest[use], kind="stable")][:_TRIED]
    if len(tried) == 0:
        return 0, {}
    strips = [cut_line(picture, polygons[i]) for i in tried]  # a tall line is turned counter-clockwise here
    answers = engine.recognise(strips)
    read = dict(zip((int(i) for i in tried), answers, strict=True))
    as_cut = _confidence(answers)
    if as_cut >= _SURE:
        return int(side), read
    flipped = _confidence(engine.recognise([np.rot90(strip, 2) for strip in strips]))
    if flipped >= max(_FOUND, as_cut + _BETTER):
        return (3 if side else 2), read
    return int(side and as_cut >= _FOUND), read


def _confidence(answers: Sequence[tuple[str, float]]) -> float:
    return float(np.mean([confidence if text.strip() else 0.0 for text, confidence in answers]))


def turned_back(polygons: np.ndarray, turns: int, width: int, height: int) -> np.ndarray:
    """Polygons (n, 4, 2) of a picture turned counter-clockwise by so many quarters, in the pixels of the picture before (width × height).

    Corners stay in the order of the upright text.
    """
    x, y = polygons[:, :, 0], polygons[:, :, 1]
    if turns == 1:
        x, y = width - y, x
    elif turns == 2:
        x, y = width - x, height - y
    elif turns == 3:
        x, y = y, height - x
    return np.stack((x, y), axis=2)

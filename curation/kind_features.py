"""What can be measured of a picture without knowing what it shows: shape, colours, flatness, edges, and where its text lies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

PICTURE = (
    "tall",
    "white",
    "ground",
    "flat",
    "colours",
    "saturation",
    "tint",
    "entropy",
    "strong_edges",
    "crisp",
    "ink",
    "frame",
    "panels",
    "seam",
    "warm",
    "hues",
    "focus",
)
TEXT = ("lines", "text_area", "line_height", "line_width", "line_chars", "text_span", "digits", "amounts", "lefts", "drawn")
_SIDE = 256  # pixels, longer side: what is measured must not hang on the resolution
_WHITE = 240  # grey level from which paper is white
_GROUND = 10  # grey levels around the commonest colour that still are the ground
_FLAT = 3  # grey levels between neighbours
_STRONG = 48
_INK = 96
_AMOUNT = re.compile(r"\d[.,]\d\d\D{0,4}$")
_LINES = 200  # of one picture, more of them say nothing more


def picture_features(pixels: np.ndarray) -> dict[str, float]:
    """Of uint8 H×W×3. All but `tall` (ln of height / width) are shares or means in 0..1.

    white         share of pixels that are white.            ground   share within 10 levels of the commonest colour.
    flat          share of neighbours that differ ≤ 3 levels. colours  ln(distinct colours of 5 bits a channel) / ln(pixels).
    saturation    mean of (max - min) / 255.                  tint     spread of the colour differences at equal grey: 0 for sepia too.
    entropy       of the grey histogram, / 8 bits.            strong_edges  share of neighbours that differ ≥ 48 levels.
    crisp         strong edges among all that are not flat.   ink      share of dark pixels.
    frame         white share of the outermost 3 %.           panels   1 where a white gutter parts the picture, else 0.
    """
    height, width = pixels.shape[:2]
    small = _small(pixels)
    grey = small @ np.array([299, 587, 114]) // 1000
    white = small.min(axis=2) >= _WHITE
    steps = np.concatenate([np.abs(np.diff(grey, axis=0)).ravel(), np.abs(np.diff(grey, axis=1)).ravel()])
    flat, strong = float(np.mean(steps <= _FLAT)), float(np.mean(steps >= _STRONG))
    ground, distinct = _ground(small)
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    return {
        "tall": float(np.log(height / width)),
        "white": float(white.mean()),
        "ground": float(ground.mean()),
        "flat": flat,
        "colours": float(np.log(distinct) / np.log(ground.size)),
        "saturation": float((small.max(axis=2) - small.min(axis=2)).mean() / 255),
        "tint": _tint(small, grey),
        "entropy": float(-np.sum(shares * np.log2(np.maximum(shares, 1e-12))) / 8),
        "strong_edges": strong,
        "crisp": strong / max(1 - flat, 1e-6),
        "ink": float(np.mean(grey < _INK)),
        "frame": _frame(white),
        "panels": float(_parted(white) or _parted(white.T)),
        "seam": max(_seam(grey), _seam(grey.T)),
        "warm": float(((small[..., 0] + small[..., 1]) / 2 - small[..., 2]).mean() / 255),
        "hues": _hues(small),
        "focus": _focus(grey),
    }


def text_features(lines: Sequence[Mapping[str, Any]], pixels: np.ndarray) -> dict[str, float]:
    """Of the lines that an OCR step read: `text`, `confidence`, and `polygon` of four corners x, y as shares 0..1.

    lines       ln(1 + lines) / ln(201).          text_area   share of the picture under them.
    line_height median, share of the longer side. line_width  median, share of the width that the text spans.
    line_chars  ln(1 + median characters of a line) / ln(101). text_span  share of the picture in the box around all.
    digits      share of digits among letters and digits.     amounts  share of the lines that end like a price: 3.50, 1,20.
    lefts       share of the lines that begin where the most begin (within 2 % of the width).
    word_area   text_area of the lines with three letters or more, read at a confidence of 0.8: detectors see text in leaves and bricks.
    drawn       share of what is not ground that lies outside all lines: little on a page, much in a chart, all in a photograph.
    """
    height, width = pixels.shape[:2]
    if not lines:
        return {**dict.fromkeys(TEXT, 0.0), "word_area": 0.0, "drawn": 1.0}
    corners = np.array([line["polygon"] for line in lines], dtype=np.float64).reshape(-1, 4, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)
    sides = high - low
    letters = [c for line in lines for c in line["text"] if c.isalnum()]
    words = [line["confidence"] >= 0.8 and sum(c.isalpha() for c in line["text"]) >= 3 for line in lines]
    span = high.max(axis=0) - low.min(axis=0)
    begins = low[:, 0]
    return {
        "lines": float(np.log1p(min(len(lines), _LINES)) / np.log1p(_LINES)),
        "text_area": float(min(sides.prod(axis=1).sum(), 1.0)),
        "word_area": float(min(sides[words].prod(axis=1).sum(), 1.0)),
        "line_height": float(np.median(sides[:, 1]) * height / max(height, width)),
        "line_width": float(np.median(sides[:, 0]) / max(span[0], 1e-6)),
        "line_chars": float(min(np.log1p(np.median([len(line["text"]) for line in lines])) / np.log1p(100), 1.0)),
        "text_span": float(span.prod()),
        "digits": sum(c.isdigit() for c in letters) / max(len(letters), 1),
        "amounts": float(np.mean([_AMOUNT.search(line["text"]) is not None for line in lines])),
        "lefts": float(max(np.mean(np.abs(begins - begin) <= 0.02) for begin in begins[:_LINES])),
        "drawn": _drawn(_small(pixels), low, high),
    }


def _small(pixels: np.ndarray) -> np.ndarray:
    """int16 (h, w, 3), 2 ≤ h, w ≤ 256, each pixel the mean of those it stands for."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(round(width * scale), 2), max(round(height * scale), 2))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)).astype(np.int16)


def _ground(small: np.ndarray) -> tuple[np.ndarray, int]:
    """bool (h, w): near the commonest colour; and how many colours of 5 bits a channel there are."""
    codes = (small >> 3) @ np.array([1024, 32, 1])
    values, counts = np.unique(codes, return_counts=True)
    commonest = small[codes == values[counts.argmax()]].mean(axis=0)
    return np.abs(small - commonest).max(axis=2) <= _GROUND, len(values)


def _drawn(small: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    ground, _ = _ground(small)
    height, width = ground.shape
    outside = np.ones_like(ground)
    for (left, top), (right, bottom) in zip(low, high, strict=True):
        rows = slice(max(int(top * height) - 1, 0), int(np.ceil(bottom * height)) + 1)
        outside[rows, max(int(left * width) - 1, 0) : int(np.ceil(right * width)) + 1] = False
    shown = np.count_nonzero(~ground)
    return float(np.count_nonzero(~ground & outside) / shown) if shown else 0.0


def _tint(small: np.ndarray, grey: np.ndarray) -> float:
    bins = (grey >> 4).ravel()
    counts = np.maximum(np.bincount(bins, minlength=16), 1)
    variance = 0.0
    for difference in (small[..., 0] - small[..., 1], (small[..., 0] + small[..., 1]) / 2 - small[..., 2]):
        values = difference.ravel().astype(np.float64)
        means = np.bincount(bins, weights=values, minlength=16) / counts
        variance += float(np.mean((values - means[bins]) ** 2))
    return float(np.sqrt(variance) / 255)


def _frame(white: np.ndarray) -> float:
    deep = max(1, round(0.03 * max(white.shape)))
    edge = np.ones_like(white)
    edge[deep:-deep, deep:-deep] = False
    return float(white[edge].mean())


def _seam(grey: np.ndarray) -> float:
    """The greatest share of a column, an eighth or more from the sides, along which the grey level jumps by 12 or more."""
    inner = np.abs(np.diff(grey, axis=1))
    margin = inner.shape[1] // 8
    inner = inner[:, margin : inner.shape[1] - margin]
    return float(np.mean(inner >= 12, axis=0).max()) if inner.size else 0.0


def _hues(small: np.ndarray) -> float:
    """Entropy of the hues in 12 sectors, weighted by saturation, as a share of the greatest; 0 without colours."""
    red, green, blue = (small[..., i].astype(np.float64) for i in range(3))
    a, b = red - (green + blue) / 2, (green - blue) * np.sqrt(3) / 2
    sector = np.floor((np.arctan2(b, a) / (2 * np.pi) + 0.5) * 12).astype(int).clip(0, 11)
    weights = np.hypot(a, b)
    sums = np.bincount(sector.ravel(), weights=np.where(weights > 16, weights, 0).ravel(), minlength=12)
    if sums.sum() == 0:
        return 0.0
    shares = sums / sums.sum()
    return float(-np.sum(shares * np.log(np.maximum(shares, 1e-12))) / np.log(12))


def _focus(grey: np.ndarray) -> float:
    """How unevenly detail lies: deviation of ln(1 + mean step) over an 8×8 grid."""
    steps = np.abs(np.diff(grey, axis=1)).astype(np.float64)
    rows = np.array_split(steps, min(8, steps.shape[0]), axis=0)
    cells = [cell.mean() for row in rows for cell in np.array_split(row, min(8, row.shape[1]), axis=1) if cell.size]
    return float(np.std(np.log1p(cells)))


def _parted(white: np.ndarray) -> bool:
    """Whether columns that are white all along lie between two parts of at least an eighth of the width, neither of them mostly white."""
    columns = white.mean(axis=0)
    width = len(columns)
    for at in np.flatnonzero(columns > 0.98):
        left, right = columns[:at], columns[at + 1 :]
        if all(np.count_nonzero(part < 0.5) * 8 >= width for part in (left, right)):
            return True
    return False

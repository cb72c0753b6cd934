"""How well a picture was taken and kept: blur, noise, exposure, compression, and one score of all four. No model, no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image
from skimage.measure import blur_effect
from skimage.restoration import estimate_sigma

from curation.step import Column, How, NoParameters, Result, Row, Step
from curation.view import MediaView, each

IMAGE = frozenset({"image"})
WORKING = 1024  # pixels, longer side: blur and noise are judged as the picture is used, not by the pixel pitch of its camera
_TILE = 128
_TILES = 8
_FLAT = 1.5  # grey levels: standard deviation below which a tile shows nothing
_NATIVE = 1024  # pixels, longer side of the native crop in which blocks are looked for; shrinking would wipe them out
_BLOCK = 8
_WINDOW = 11  # pixels, over which Crete smooths
_NOISE_UNIT = 10.0  # grey levels

# From where a defect counts to where the picture is worthless. Known ranges, not fitted: docs/steps/quality.md argues each.
BLUR_RAMP = (0.30, 0.90)
NOISE_RAMP = (0.5, 20.0)
BLOCKS_RAMP = (0.05, 0.75)
BRIGHTEST_RAMP = (110.0, 10.0)
DARKEST_RAMP = (130.0, 250.0)
RANGE_RAMP = (48.0, 4.0)


def open_quality(what: NoParameters, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    return lambda views: each(views, lambda view: quality(view.image()))


def quality(pixels: np.ndarray) -> Row:
    """The row of uint8 H×W×3, H, W ≥ 1."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    tiles = _tiles(_working(grey))
    blurred, sigma, excess = _blur(tiles), _noise(tiles), block_excess(_centre(grey))
    low, bright, high = np.percentile(grey[:: _stride(grey), :: _stride(grey)], [0.1, 99, 99.9])
    exposure = min(_good(bright, BRIGHTEST_RAMP), _good(low, DARKEST_RAMP), _good(high - low, RANGE_RAMP))
    score = _good(blurred, BLUR_RAMP) * _good(sigma, NOISE_RAMP) * _good(excess, BLOCKS_RAMP) * exposure
    return {
        "blur": 1.0 - blurred,
        "noise": float(np.exp(-sigma / _NOISE_UNIT)),
        "exposure": exposure,
        "compression": 1.0 - excess,
        "score": score,
    }


def block_excess(grey: np.ndarray) -> float:
    """How much more often grey steps stand at every eighth pixel than elsewhere, 0..1; the greater of rows and columns.

    After the block edge difference of Wang, Sheikh and Bovik ("No-reference perceptual quality assessment of JPEG compressed images",
    ICIP 2002), but by counting: of the neighbouring pixels across a column border that differ at all, the share that differ more than the
    pairs on both sides; the median of these shares over the borders of each of the eight phases; the greatest phase less the median one.
    Counts do not mind contrast, medians no single line of a drawing, and phases do not mind where the grid begins.
    """
    return max(_phase_excess(grey), _phase_excess(grey.T))


def _phase_excess(grey: np.ndarray) -> float:
    steps = np.abs(np.diff(grey.astype(np.int16), axis=1))
    before, here, after = steps[:, :-2], steps[:, 1:-1], steps[:, 2:]
    peaks = np.count_nonzero((here > before) & (here > after), axis=0)
    active = np.count_nonzero(before | here | after, axis=0)
    phases = []
    for phase in range(_BLOCK):
        borders = np.arange(phase, len(active), _BLOCK)
        borders = borders[active[borders] >= _BLOCK]
        if len(borders) < max(2, len(active) // (4 * _BLOCK)):
            return 0.0
        phases.append(float(np.median(peaks[borders] / active[borders])))
    return float(max(phases) - np.median(phases))


def _working(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    scale = WORKING / max(height, width)
    if scale >= 1:
        return grey
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS))


def _centre(grey: np.ndarray) -> np.ndarray:
    height, width = (min(side, _NATIVE) for side in grey.shape)
    top, left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    return grey[top : top + height, left : left + width]


def _stride(grey: np.ndarray) -> int:
    return max(1, max(grey.shape) // (2 * WORKING))


def _tiles(grey: np.ndarray) -> list[np.ndarray]:
    """Tiles that show something, of at most 128×128, from the plainest to the busiest."""
    height, width = grey.shape
    tall, wide = min(_TILE, height), min(_TILE, width)
    tops = np.linspace(0, height - tall, -(-height // tall)).astype(int)
    lefts = np.linspace(0, width - wide, -(-width // wide)).astype(int)
    tiles = [grey[top : top + tall, left : left + wide] for top in tops for left in lefts]
    spread = [float(tile.std()) for tile in tiles]
    return [tiles[i] for i in np.argsort(spread, kind="stable") if spread[i] > _FLAT]


def _blur(tiles: Sequence[np.ndarray]) -> float:
    """Crete et al. 2007, 0 sharp .. 1 blurred, of the sharper of the busiest tiles: what is out of focus on purpose is no fault."""
    with np.errstate(invalid="ignore"):  # stripes have no steps along one axis, and then the other one alone tells
        found = [_crete(tile) for tile in tiles[-_TILES:] if min(tile.shape) > _WINDOW]
    known = [value for value in found if np.isfinite(value)]
    return float(np.clip(np.percentile(known, 25), 0, 1)) if known else 0.0


def _crete(tile: np.ndarray) -> float:
    along = blur_effect(tile.astype(np.float32) / 255, h_size=_WINDOW, reduce_func=None)
    return float(np.fmax.reduce(along))


def _noise(tiles: Sequence[np.ndarray]) -> float:
    """Standard deviation of the noise in grey levels (wavelets, Donoho and Johnstone 1994), of the plainer tiles: texture is no noise."""
    some = tiles[: _TILES * 2 : 2] if len(tiles) >= 2 * _TILES else tiles[:_TILES]
    found = [float(estimate_sigma(tile.astype(np.float32))) for tile in some if min(tile.shape) >= 8]
    return float(np.percentile(found, 25)) if found else 0.0


def _good(value: float, ramp: tuple[float, float]) -> float:
    """1 up to where a defect begins to count, 0 from where it is total, a straight line between."""
    start, end = ramp
    return float(np.clip((value - end) / (start - end), 0, 1))


def _columns(what: NoParameters) -> list[Column]:
    return [
        Column("blur", pa.float64(), IMAGE, doc="1 - Crete's blur of the sharper parts: 0 all smooth, 1 sharp"),
        Column("noise", pa.float64(), IMAGE, doc="exp(-σ / 10), σ the noise in grey levels: 1 none, 0.37 at 10"),
        Column("exposure", pa.float64(), IMAGE, doc="0..1: the brightest, the darkest and the range between them"),
        Column("compression", pa.float64(), IMAGE, doc="1 - excess of steps at every eighth pixel: 1 no blocks"),
        Column("score", pa.float64(), IMAGE, doc="0..1, the product of the four, each 1 within its known good range"),
    ]


STEP = Step(version=1, columns=_columns, reads=lambda what: ("media",), level="medium", applies=IMAGE, prefix="quality_", open=open_quality)

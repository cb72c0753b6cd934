"""What is seen of a clip as it goes by: how much moves, when nothing does, when it is black, and what its frames look like."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation.probe import phash

GRID = 8  # looks a second at motion, stillness and black
CELLS = 8  # a side: cells of the picture in which a change is looked for
MEANS = 4  # a side: means of pixels in each cell
DARK = 0.1 * 255  # at or below it a pixel is black: FFmpeg's blackdetect, pixel_black_th 0.1
DARK_SHARE = 0.98  # of the pixels of a black picture: its picture_black_ratio_th
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601, as Pillow's "L"


@dataclass(slots=True)
class Looks:
    """Looks at a clip, in order. Where `i` is a look:

    times    seconds. black: whether the picture is black.
    change   from the look before it, in grey levels: `largest_change`; 0 of the first.
    """

    times: list[float] = field(default_factory=list)
    black: list[bool] = field(default_factory=list)
    change: list[float] = field(default_factory=list)

    def add(self, at: float, grey: np.ndarray, before: np.ndarray | None) -> None:
        self.times.append(at)
        self.black.append(bool(np.mean(grey <= DARK) >= DARK_SHARE))
        self.change.append(0.0 if before is None else largest_change(before, grey))

    def still(self, level: float, tail: bool) -> list[bool]:
        """Whether nothing changes from each look to the next by more than `level`. tail: of the last look, of which nothing is known,
        whether it is as the one before."""
        moved = [change > level for change in self.change[1:]]
        return [*(not m for m in moved), (not moved[-1] if moved else True) if tail else False]


class Watch:
    """A clip as it goes by. Feed `see` with every frame, then `end`.

    keys      only key frames come, each with a burst behind it: they are the looks, and motion is that within the bursts.
    hash_fps  frame hashes a second, at the times k / hash_fps; where these would be more than `most`, every other one is dropped, again
              and again, so that the times of a longer clip are among those of a shorter one.
    """

    def __init__(self, keys: bool, hash_fps: float, most: int) -> None:
        self.looks = Looks()
        self.motion: list[tuple[float, float, float]] = []  # (from, to, seconds) → shares of the longer side that the picture moves
        self.hashes: list[int] = []
        self.step = 1 / hash_fps
        self._keys, self._most = keys, most
        self._flow: Any = None
        self._at = 0.0  # when the frame on screen began
        self._pixels: np.ndarray | None = None  # of it
        self._grey: np.ndarray | None = None
        self._looked: np.ndarray | None = None  # grey levels at the last look
        self._burst: tuple[float, np.ndarray] | None = None
        self._within: tuple[float, np.ndarray] | None = None
        self._hash: int | None = None  # of the frame on screen, once it was asked for
        self._ticks = self._hashed = 0

    def see(self, at: float, pixels: np.ndarray, first: bool) -> None:
        """A frame that begins at `at` seconds; uint8 H×W×3 RGB. first: it is a key frame, and a burst begins."""
        if self._keys and not first:
            self._within = (at, _grey(pixels))
            return
        self._until(at)
        self._at, self._pixels, self._grey, self._hash = at, pixels, _grey(pixels), None
        if self._keys:
            self._end_burst()
            self._look(at)
            self._burst, self._within = (at, self._grey), None

    def end(self, at: float) -> None:
        """The clip ends at `at` seconds."""
        if self._pixels is None:
            return
        self._until(at)
        if not self.hashes:  # a clip without a length
            self.hashes.append(phash(self._pixels))
        self._end_burst()
        if not self.looks.times or (not self._keys and self._at > self.looks.times[-1]):
            self._look(self._at)

    def _until(self, at: float) -> None:
        """The times of the grid and of hashes before `at`, at which the frame of before is on screen."""
        if self._pixels is None:
            return
        last = math.ceil((at - 1e-6) * GRID) - 1  # of a frame that stands for long the first and the last look tell all
        for tick in sorted({self._ticks, last}) if not self._keys and last >= self._ticks else ():
            self._look(tick / GRID)
            self._ticks = last + 1
        while self._hashed * self.step < at - 1e-6:
            if self._hash is None:
                self._hash = phash(self._pixels)
            self.hashes.append(self._hash)
            self._hashed += 1
            if len(self.hashes) > self._most:
                self.hashes, self.step, self._hashed = self.hashes[::2], 2 * self.step, (self._hashed + 1) // 2

    def _look(self, at: float) -> None:
        assert self._grey is not None
        if self._looked is not None and not self._keys:
            self.motion.append((self.looks.times[-1], at, self._moved(self._looked, self._grey)))
        self.looks.add(at, self._grey, self._looked)
        self._looked = self._grey

    def _end_burst(self) -> None:
        if self._burst is not None and self._within is not None:
            (since, before), (until, after) = self._burst, self._within
            self.motion.append((since, until, self._moved(before, after)))
        self._burst = self._within = None

    def _moved(self, before: np.ndarray, after: np.ndarray) -> float:
        """How far the picture moves on the average, in shares of its longer side: dense inverse search (Kroeger et al., ECCV 2016)."""
        if before is after or np.array_equal(before, after):
            return 0.0
        if self._flow is None:
            import cv2

            create: Any = getattr(cv2, "DISOpticalFlow_create")  # noqa: B009 - its stubs leave it out
            self._flow = create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        flow = self._flow.calc(before, after, None)
        return float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64)) / max(before.shape)


def largest_change(before: np.ndarray, after: np.ndarray) -> float:
    """Of the 8×8 cells of uint8 H×W grey pictures the largest mean absolute difference, in grey levels, between the 4×4 means within each:
    noise is averaged away, and what moves in a corner counts."""
    apart = np.abs(_means(before) - _means(after)).reshape(CELLS, MEANS, CELLS, MEANS)
    return float(apart.mean(axis=(1, 3), dtype=np.float64).max())


def _means(grey: np.ndarray) -> np.ndarray:
    import cv2

    found: np.ndarray = cv2.resize(grey.astype(np.float32), (CELLS * MEANS, CELLS * MEANS), interpolation=cv2.INTER_AREA)
    return found


def mean_motion(motion: list[tuple[float, float, float]], cuts: list[float]) -> float:
    """Shares of the longer side a second, over the time that was looked at but for where a cut lies; 0 where nothing was."""
    moved = seconds = 0.0
    for since, until, distance in motion:
        if not any(since < cut <= until for cut in cuts):
            moved, seconds = moved + distance, seconds + until - since
    return moved / seconds if seconds else 0.0


def _grey(pixels: np.ndarray) -> np.ndarray:
    grey: np.ndarray = (pixels @ _GREY + 0.5).astype(np.uint8)
    return grey

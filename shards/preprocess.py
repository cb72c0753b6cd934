"""The one preprocessing: RGB bytes to normalised patches, and the grid they lie on. Measure, loader and evaluation all call it.

A change of any pixel or grid is a new `shards.profile.PREPROCESS_VERSION`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from shards.profile import Profile

# (x/255 - 0.5) / 0.5 (mean and std of VideoLLaMA3's vision encoder), rounded to float32 once.
_NORMALISED = (np.arange(256, dtype=np.float64) / 127.5 - 1.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class MediumSize:
    """t frames (1 for an image) of h × w patches, merge × merge of which become one visual token."""

    t: int
    h: int
    w: int
    merge: int

    @property
    def patches(self) -> int:
        return self.t * self.h * self.w

    @property
    def tokens(self) -> int:
        return self.patches // self.merge**2


def image_grid(height: int, width: int, profile: Profile, media_count: int = 1) -> tuple[int, int]:
    """(h, w) patches of an image of height × width pixels that shares its item's budget with media_count - 1 other images or frames.

    h and w are multiples of profile.image_merge; h·w/merge² ≤ max(max_visual_tokens // media_count, min_visual_tokens), and at least
    min_visual_tokens. The arithmetic is `smart_resize` of VideoLLaMA3's processor (report §3.3 for the budget), except where that leaves
    the budget (very long or very small shares): then the grid of nearest aspect ratio within it. Any aspect ratio has a grid.
    """
    return _grid(height, width, profile, profile.image_merge, media_count)


def frame_grid(height: int, width: int, frames: int, profile: Profile, media_count: int) -> tuple[int, int]:
    """(h, w) patches of each of a video's frames, as `image_grid` with profile.video_merge. media_count counts all images and frames of
    the item, these `frames` among them. Raises ValueError if it is less than `frames`."""
    if media_count < frames:
        raise ValueError(f"media_count {media_count} does not count all {frames} frames")
    return _grid(height, width, profile, profile.video_merge, media_count)


def medium_size(width: int, height: int, frames: int, profile: Profile, kind: Literal["image", "video"], count: int) -> MediumSize:
    """Size of a medium from header numbers alone: width × height pixels, `frames` sampled frames (1 for an image), `count` images and
    frames in its item."""
    if kind == "image":
        return MediumSize(1, *image_grid(height, width, profile, count), profile.image_merge)
    return MediumSize(frames, *frame_grid(height, width, frames, profile, count), profile.video_merge)


def preprocess_image(rgb: np.ndarray, grid: tuple[int, int], profile: Profile) -> np.ndarray:
    """uint8 (H, W, 3) to float32 (h·w, 3·patch²) in [-1, 1]: patches in the order of `patchify`, values channel by channel."""
    return normalise(patchify(resize(rgb, grid, profile.patch)[None], profile.patch, profile.image_merge))


def preprocess_frames(frames: np.ndarray, grid: tuple[int, int], profile: Profile) -> np.ndarray:
    """uint8 (T, H, W, 3) to float32 (T·h·w, 3·patch²) in [-1, 1]; frames that have the grid's size already are taken as they are."""
    return normalise(patchify(resize_frames(frames, grid, profile.patch), profile.patch, profile.video_merge))


def resize(rgb: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (h·patch, w·patch, 3): bicubic with antialiasing in Pillow's integer arithmetic, equal on every machine."""
    height, width = grid[0] * patch, grid[1] * patch
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def resize_frames(frames: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """`resize` for uint8 (T, H, W, 3)."""
    if frames.shape[1:3] == (grid[0] * patch, grid[1] * patch):
        return frames
    return np.stack([resize(frame, grid, patch) for frame in frames])


def patchify(frames: np.ndarray, patch: int, merge: int) -> np.ndarray:
    """(T, h·patch, w·patch, 3) to (T·h·w, 3·patch²), dtype kept, in transformers' VideoLlama3 order: the merge × merge patches of a
    visual token stand together, tokens row by row, frames one after another; a patch is channel, row, column."""
    t, height, width, channels = frames.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    blocks = frames.reshape(t, rows, merge, patch, columns, merge, patch, channels)
    return np.ascontiguousarray(blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6)).reshape(t * rows * columns * merge**2, channels * patch**2)


def normalise(values: np.ndarray) -> np.ndarray:
    """uint8 to float32: value/127.5 - 1."""
    return _NORMALISED[values]


def _grid(height: int, width: int, profile: Profile, merge: int, media_count: int) -> tuple[int, int]:
    if height < 1 or width < 1 or media_count < 1:
        raise ValueError(f"no grid for {width}×{height} pixels, {media_count} media")
    side = profile.patch * merge
    least = profile.min_visual_tokens
    most = max(profile.max_visual_tokens // media_count, least)
    rows, columns = round(height / side), round(width / side)
    if rows * columns > most:
        shrink = math.sqrt(height * width / (most * side * side))
        rows, columns = max(1, math.floor(height / shrink / side)), max(1, math.floor(width / shrink / side))
    elif rows * columns < least:
        grow = math.sqrt(least * side * side / (height * width))
        rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
    if not least <= rows * columns <= most:
        rows, columns = _nearest_aspect(height / width, least, most)
    return rows * merge, columns * merge


def _nearest_aspect(aspect: float, least: int, most: int) -> tuple[int, int]:
    """The (rows, columns) with least ≤ rows·columns ≤ most whose ratio is nearest to `aspect`; of equal ones the one with most tokens."""
    best: tuple[float, int] | None = None
    chosen = (1, most)
    for rows in range(1, most + 1):
        low, high = -(-least // rows), most // rows
        if low > high:
            continue
        ideal = min(max(rows / aspect, low), high)
        for columns in {math.floor(ideal), math.ceil(ideal)} & set(range(low, high + 1)):
            rank = (round(abs(math.log(rows / columns / aspect)), 9), -rows * columns)
            if best is None or rank < best:
                best, chosen = rank, (rows, columns)
    return chosen

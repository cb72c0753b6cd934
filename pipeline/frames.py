"""What compression would keep of a video under a profile: masks at some thresholds, drawn, and the share that is kept at any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.frames_sheet import curve, sheet
from shards.compression import Method, compressed, stand_in_errors
from shards.errors import InfrastructureError
from shards.media import Limits
from shards.preprocess import medium_size, patchify
from shards.profile import Profile
from shards.video import Frames, frame_times, sample_frames, video_header
from shards.video_frames import LAST_FRAME_STANDS

log = logging.getLogger("fovea")

CURVE = tuple(float(x) for x in np.geomspace(0.05, 16, 13).round(3))  # thresholds of the curve, grey levels


@dataclass(frozen=True, slots=True)
class Setting:
    """A method at a threshold in grey levels; `budget`: of that method, kept tokens at most."""

    method: Method
    threshold: float
    budget: int | None = None

    @property
    def label(self) -> str:
        return f"{self.method}-{self.budget if self.budget is not None else f'{self.threshold:g}'}"


@dataclass(frozen=True, slots=True)
class Look:
    """What a setting keeps. worst: the farthest that a dropped block is from the last kept one at its place, grey levels."""

    setting: Setting
    kept: int
    tokens: int
    worst: float
    sheet: Path

    @property
    def share(self) -> float:
        return self.kept / self.tokens


Curves = dict[str, tuple[Sequence[float], Sequence[float]]]  # by method: thresholds, and the shares that are kept


def look(video: Path, folder: Path, profile: Profile, methods: Sequence[Method], settings: Sequence[Setting]) -> tuple[list[Look], Curves]:
    """Writes a sheet for each of `settings`, and `curve.png` of `methods`, into `folder`, which is made.

    The video is seen as `measure` sees it alone in its item. Raises DecodeError and LimitError of the video, InfrastructureError where
    files cannot be read or written.
    """
    frames, grid = _sampled(video, profile)
    pixels = patchify(frames.pixels, profile.patch, grid[3])
    found = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for setting in settings:
            mask = compressed(pixels, *grid, setting.method, setting.threshold, setting.budget)[0]
            worst, path = float(stand_in_errors(pixels, *grid, mask).max()), folder / f"{setting.label}.png"
            blocks = mask.reshape(grid[0], grid[1] // grid[3], grid[2] // grid[3])
            title = f"{video.name}, {setting.label}: {int(mask.sum()):,} of {mask.size:,} tokens kept"
            sheet(frames.pixels, frames.times, blocks, title).save(path)
            found.append(Look(setting, int(mask.sum()), int(mask.size), worst, path))
        shares: Curves = {name: (CURVE, compressed(pixels, *grid, name, 0.0, None, CURVE)[1]) for name in methods}
        marks = sorted({setting.threshold for setting in settings if setting.budget is None})
        curve(shares, marks, f"{video.name}, {grid[0]} frames, profile {profile.name}", folder / "curve.png")
    except OSError as error:
        raise InfrastructureError(f"{folder} cannot be written: {error.strerror or error}") from error
    return found, shares


def _sampled(video: Path, profile: Profile) -> tuple[Frames, tuple[int, int, int, int]]:
    """(frames, (t, h, w, merge))."""
    try:
        file = video.open("rb")
    except OSError as error:
        raise InfrastructureError(f"{video} cannot be read: {error.strerror or error}") from error
    with file:
        header = video_header(file, Limits())
        count = len(frame_times(header.good, profile.fps, profile.max_frames))
        size = medium_size(header.width, header.height, count, profile, "video", count)
        target = size.h * profile.patch, size.w * profile.patch
        frames = sample_frames(file, profile.fps, profile.max_frames, Limits(), lambda height, width, t: target)
    if frames.good < header.duration - LAST_FRAME_STANDS:
        log.warning("%s: %.1f of %.1f s are there%s", video.name, frames.good, header.duration, f" ({frames.tear})" if frames.tear else "")
    return frames, (len(frames.pixels), size.h, size.w, size.merge)

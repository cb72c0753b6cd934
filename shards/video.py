"""Videos through PyAV: what the container says, and frames chosen before they are held. Whatever av raises becomes DecodeError."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shards import video_turn
from shards.errors import DecodeError
from shards.media import Limits
from shards.video_file import Clock, VideoData, opened
from shards.video_frames import NO_KEYS, Unsure, frames_at
from shards.video_survey import Survey, survey

log = logging.getLogger("fovea")

TargetSize = Callable[[int, int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """codec by FFmpeg's name; width and height in pixels as shown (rotation metadata applied); frames of the stream; fps their average
    rate; duration in seconds as the container tells it (counted where it does not).

    good   seconds from the first frame for which the file has packets: `duration`, unless they end more than a second before or behind
           it, as in a torn file or one that lies. Frames are sampled over these.
    """

    codec: str
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    good: float


@dataclass(frozen=True, slots=True)
class Frames:
    """pixels uint8 (T, H, W, 3) RGB; times float32 (T), seconds from the start of the clip.

    good   seconds up to which all frames that were looked at decode: the header's, or where the video tore.
    tear   what ended it there, in words; None where nothing did.
    """

    pixels: np.ndarray
    times: np.ndarray
    good: float
    tear: str | None = None


def frame_times(duration: float, fps: float, max_frames: int, until: float | None = None) -> np.ndarray:
    """Where a clip is sampled: float64 (T) seconds, T ≥ 1.

    The times k/fps for k = 0, 1, … below `duration`, and with `until` (≥ 0) not after it (in float32, in which times are stored); if these
    are more than `max_frames`, then `max_frames` of them, spread evenly from the first to the last (the places
    floor(linspace(0, n-1, max_frames)), as VideoLLaMA3's processor chooses).
    """
    count = max(int(np.ceil(round(duration * fps, 6))), 1)
    if until is not None and until < duration:
        count = min(count, int(until * fps) + 2)
        while np.float32((count - 1) / fps) > np.float32(until):
            count -= 1
    places = np.arange(count) if count <= max_frames else np.linspace(0, count - 1, max_frames, dtype=int)
    return places / fps


def video_header(file: VideoData, limits: Limits) -> VideoHeader:
    """The container's word where it gives one, and where its packets really end. One frame is decoded, for the rotation; the last packets
    are read, all of them (undecoded) where they are not what was told. Raises LimitError (bytes, pixels, cpu_seconds) and DecodeError."""
    found = survey(file, limits)
    return VideoHeader(found.codec, found.width, found.height, found.frames, found.fps, found.duration, found.good)


def sample_frames(
    file: VideoData, fps: float, max_frames: int, limits: Limits, size: TargetSize | None = None, until: float | None = None
) -> Frames:
    """The frames on screen at `frame_times` of the good part (up to `until`), each turned as the rotation metadata says and resized
    (bicubic, Pillow) as soon as it is chosen to `size(height, width, T)` → (height, width), so that T × target size is all that is held.

    The frame at time t is the last one that begins at or before t; the last frame of a clip stands for at most one second beyond its own
    duration. Groups of pictures without a chosen frame are passed over, and so are pictures that no other refers to; the frames are those
    of decoding everything. A video that cannot be decoded any further gives the frames before that: fewer times than asked for, at least
    one.
    Raises LimitError (bytes, pixels, decoded_frames, cpu_seconds), and DecodeError where not even the first frame decodes.
    """
    found = survey(file, limits)
    return _picked(file, found, frame_times(found.good, fps, max_frames, until), limits, size)


def pick_frames(file: VideoData, times: np.ndarray, limits: Limits, size: TargetSize | None = None) -> Frames:
    """The same at `times`: float64 (T) seconds from the start, T ≥ 1, none before the one ahead of it. Raises as `sample_frames` does."""
    return _picked(file, survey(file, limits), times, limits, size)


def _picked(file: VideoData, found: Survey, times: np.ndarray, limits: Limits, size: TargetSize | None) -> Frames:
    clock = Clock(limits)
    try:
        return _sampled(file, found, times, clock, size, skip=True)
    except Unsure:
        log.debug("key frames are not where the file says: all frames are decoded")
        clock.tear = None
        return _sampled(file, found, times, clock, size, skip=False)


def _sampled(file: VideoData, found: Survey, times: np.ndarray, clock: Clock, size: TargetSize | None, skip: bool) -> Frames:
    held: np.ndarray | None = None
    count = 0
    with opened(file, clock.limits, clock) as film:
        for shown in frames_at(film, times, found.keys if skip else NO_KEYS, skip):
            try:
                picture = _picture(shown.frame)
            except Exception as error:
                clock.tear, clock.reached = f"the frame at {shown.at:.2f} s does not convert to RGB: {error}", shown.at
                break
            if held is None:
                shape = (picture.height, picture.width)
                held = np.empty((len(times), *(size(*shape, len(times)) if size is not None else shape), 3), dtype=np.uint8)
            if (picture.height, picture.width) != held.shape[1:3]:
                picture = picture.resize((held.shape[2], held.shape[1]), Image.Resampling.BICUBIC)
            held[count] = np.asarray(picture)
            count += 1
            clock.check()
    if held is None:
        raise DecodeError(clock.tear or "a video stream without a frame that decodes")
    if count == len(times):
        return Frames(held, times.astype(np.float32), found.good)
    return Frames(held[:count], times[:count].astype(np.float32), min(clock.reached, found.good), clock.tear)


def _picture(frame: Any) -> Image.Image:
    """RGB, turned as the display matrix says."""
    picture: Image.Image = frame.to_image(threads=1)  # with swscale's own choice of threads, equal frames gave unequal pixels
    return picture if video_turn.upright(frame) else Image.fromarray(video_turn.shown(np.asarray(picture), frame))

"""A clip watched from its first frame to its last: every frame made small as it is decoded, and shown to a function; nothing is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation

from shards import video_turn
from shards.errors import DecodeError
from shards.media import Limits
from shards.video_file import Film, VideoData, opened, reason
from shards.video_frames import needed_frames
from shards.video_survey import survey, told_seconds

BURST = 0.125  # seconds of a clip that are decoded behind a key frame
APART = 1.0  # seconds between two key frames that are looked at
SHORTEST = 16  # pixels of the smaller side, however narrow a picture is

# With the accurate, C-equal rounding that swscale has, so that one machine's small picture is another's.
_AREA = int(Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT)

See = Callable[[float, np.ndarray, bool], None]


@dataclass(frozen=True, slots=True)
class Scanned:
    """end: seconds from the first frame's beginning to the last one's end. frames: that were shown; keys: of these, key frames that a
    burst began with (0 where all frames were decoded)."""

    end: float
    frames: int
    keys: int


def told_frames(file: VideoData, limits: Limits) -> int:
    """How many frames the container says that the clip has, by its count or by rate × duration; 0 where it says neither."""
    with opened(file, limits) as film:
        stream, duration = film.stream, told_seconds(film)
        rate = stream.average_rate or stream.guessed_rate
        return int(stream.frames) or (round(float(rate) * duration) if rate and duration else 0)


def scan(file: VideoData, limits: Limits, side: int, see: See, keys_only: bool = False) -> Scanned:
    """Calls `see(seconds since the first frame, uint8 H×W×3 RGB, whether a key frame's burst begins)` for each frame in display order.

    side       the longer side of the picture as shown (turned by its rotation metadata), in pixels; the first frame's shape holds for all.
    keys_only  only key frames at least APART seconds apart, and what can be decoded in the BURST behind each; the rest is not decoded.

    One frame is held at a time. What `see` computes counts as CPU time of the clip. A clip that tears is shown up to the tear.
    Raises LimitError (bytes, pixels, decoded_frames, cpu_seconds), and DecodeError where not even the first frame decodes.
    """
    good = survey(file, limits).good if keys_only else 0.0
    shape: tuple[int, int] | None = None
    frames = keys = 0
    end = last = 0.0
    origin: float | None = None
    final: Any = None
    with opened(file, limits) as film:
        clock = film.clock
        for frame, seconds, first in _bursts(film) if keys_only else _all(film):
            if origin is None:
                origin, shape = seconds, _shape(frame, side)
            at = seconds - origin
            if frames and at <= last:
                continue  # containers that repeat a time, or tell times that go back
            assert shape is not None
            try:
                small = _small(frame, shape)
            except DecodeError as error:
                clock.tear = f"{error} at {at:.2f} s"
                break
            clock.reached = last = at
            end, final = at + float((frame.duration or 0) * film.stream.time_base), frame
            see(at, small, first and keys_only)
            frames, keys = frames + 1, keys + (first and keys_only)
            clock.check()
        hidden, begun, told = film.seconds(film.over), film.seconds(final.pts) if frames else None, told_seconds(film)
        if hidden is not None and begun is not None and clock.tear is None:
            end = max(last, min(last + hidden - begun, told or float("inf")))
    if not frames:
        raise DecodeError(clock.tear or "a video stream without a frame that decodes")
    if keys_only and clock.tear is None:
        end = max(end, good)
    return Scanned(max(end, last), frames, keys)


def _all(film: Film) -> Iterator[tuple[Any, float, bool]]:
    for shown in needed_frames(film, lambda: 0.0, skip=False):
        yield shown.frame, shown.at, False


def _bursts(film: Film) -> Iterator[tuple[Any, float, bool]]:
    """(frame, its time in seconds, whether it is the first of a burst), up to a tear.

    A burst is decoded by itself: the decoder starts at its key frame and is emptied at its end. Frames that come before their key frame in
    time refer to what was not decoded, and are left out.
    """
    since: float | None = None  # when the key frame of the burst that is being gathered is shown; begun: when it is decoded
    begun = before = float("-inf")
    burst: list[Any] = []
    for packet in film.packets():
        decoded, shown = (film.seconds(stamp) for stamp in _stamps(packet))
        if since is not None and (decoded is None or decoded >= begun + BURST or packet.is_keyframe):
            yield from _burst(film, burst, since)
            if film.clock.tear is not None:
                return
            burst, before, since = [], since, None
        if since is None and shown is not None and decoded is not None and packet.is_keyframe and shown >= before + APART:
            since, begun = shown, decoded
        if since is not None:
            burst.append(packet)
    if since is not None:
        yield from _burst(film, burst, since)


def _stamps(packet: Any) -> tuple[int | None, int | None]:
    """When a packet is decoded and when its frame is shown."""
    return (packet.pts if packet.dts is None else packet.dts), (packet.dts if packet.pts is None else packet.pts)


def _burst(film: Film, packets: list[Any], since: float) -> Iterator[tuple[Any, float, bool]]:
    context, clock = film.stream.codec_context, film.clock
    first = True
    for packet in (*packets, None):  # None: what the decoder still holds
        try:
            frames = context.decode(packet)
        except Exception as error:
            clock.tear = f"{film.name}: {reason(error)}"
            return
        for frame in frames:
            clock.frame(frame)
            if (seconds := film.seconds(frame.pts)) is None:
                raise DecodeError(f"{film.name}: a frame without a time")
            if since - 1e-6 <= seconds <= since + 2 * BURST:
                yield frame, seconds, first
                first = False
    context.flush_buffers()


def _shape(frame: Any, side: int) -> tuple[int, int]:
    """(height, width) of the small picture before it is turned."""
    scale = side / max(frame.height, frame.width)
    height, width = (max(SHORTEST, round(length * scale)) for length in (frame.height, frame.width))
    return height, width


def _small(frame: Any, shape: tuple[int, int]) -> np.ndarray:
    """uint8 H×W×3 RGB, turned as the display matrix says."""
    if frame.is_corrupt:
        raise DecodeError("a damaged frame")
    try:
        small = frame.reformat(width=shape[1], height=shape[0], format="rgb24", interpolation=_AREA, threads=1).to_ndarray()
    except Exception as error:
        raise DecodeError(f"a frame that does not convert to RGB ({error})") from error
    return video_turn.shown(small, frame)

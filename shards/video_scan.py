"""A clip watched from its first frame to its last: every frame made small as it is decoded, and shown to a function; nothing is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from shards.errors import DecodeError
from shards.media import Limits
from shards.video import VideoData, _Clock, _decode, _opened, _packets, _told_duration

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
    with _opened(file, limits) as (container, stream):
        rate, duration = stream.average_rate or stream.guessed_rate, _told_duration(container, stream)
        return int(stream.frames) or (round(float(rate) * duration) if rate and duration else 0)


def scan(file: VideoData, limits: Limits, side: int, see: See, keys_only: bool = False) -> Scanned:
    """Calls `see(seconds since the first frame, uint8 H×W×3 RGB, whether a key frame's burst begins)` for each frame in display order.

    side       the longer side of the picture as shown (turned by its rotation metadata), in pixels; the first frame's shape holds for all.
    keys_only  only key frames at least APART seconds apart, and what can be decoded in the BURST behind each; the rest is not decoded.

    One frame is held at a time. What `see` computes counts as the clip's CPU time.
    Raises LimitError (bytes, pixels, decoded_frames, cpu_seconds) and DecodeError.
    """
    clock = _Clock(limits)
    shape: tuple[int, int] | None = None
    frames = keys = 0
    end = last = 0.0
    origin: float | None = None
    with _opened(file, limits) as (container, stream):
        shown = _bursts(container, stream, clock) if keys_only else _all(container, stream, clock)
        for frame, first in shown:
            if origin is None:
                origin, shape = frame.time, _shape(frame, side)
            at = frame.time - origin
            if frames and at <= last:
                continue  # containers that repeat a time, or tell times that go back
            clock.reached = last = at
            end = max(end, at + float((frame.duration or 0) * stream.time_base))
            assert shape is not None
            see(at, _small(frame, shape), first and keys_only)
            frames, keys = frames + 1, keys + (first and keys_only)
            clock.check()
        told = _told_duration(container, stream)
    if not frames:
        raise DecodeError("a video stream without a frame that decodes")
    if keys_only and told is not None:
        end = max(end, told)
    return Scanned(max(end, last), frames, keys)


def _all(container: Any, stream: Any, clock: _Clock) -> Iterator[tuple[Any, bool]]:
    for packet in _packets(container, stream, clock):
        for frame in _decode(container, packet, clock):
            yield frame, False


def _bursts(container: Any, stream: Any, clock: _Clock) -> Iterator[tuple[Any, bool]]:
    """(frame, whether it is the first of a burst). A burst is decoded by itself: the decoder starts at its key frame and is emptied at its
    end. Frames that come before their key frame in time refer to what was not decoded, and are left out."""
    since: float | None = None  # when the key frame of the burst that is being gathered is shown; begun: when it is decoded
    begun = before = float("-inf")
    burst: list[Any] = []
    for packet in _packets(container, stream, clock):
        decoded, shown = (None if stamp is None else float(stamp * stream.time_base) for stamp in _stamps(packet))
        if since is not None and (decoded is None or decoded >= begun + BURST or packet.is_keyframe):
            yield from _burst(container, stream, burst, since, clock)
            burst, before, since = [], since, None
        if since is None and shown is not None and decoded is not None and packet.is_keyframe and shown >= before + APART:
            since, begun = shown, decoded
        if since is not None:
            burst.append(packet)


def _stamps(packet: Any) -> tuple[int | None, int | None]:
    """When a packet is decoded and when its frame is shown; None for the empty one at the end."""
    return (packet.pts if packet.dts is None else packet.dts), (packet.dts if packet.pts is None else packet.pts)


def _burst(container: Any, stream: Any, packets: list[Any], since: float, clock: _Clock) -> Iterator[tuple[Any, bool]]:
    found = [frame for packet in packets for frame in _decode(container, packet, clock)]
    found += _emptied(container, stream, clock)
    first = True
    for frame in found:
        if since - 1e-6 <= frame.time <= since + 2 * BURST:
            yield frame, first
            first = False


def _emptied(container: Any, stream: Any, clock: _Clock) -> list[Any]:
    """What the decoder still holds of a burst; it can begin anew then."""
    nothing = av.Packet()
    nothing.stream, nothing.time_base = stream, stream.time_base
    frames = _decode(container, nothing, clock)
    stream.codec_context.flush_buffers()
    return frames


def _shape(frame: Any, side: int) -> tuple[int, int]:
    """(height, width) of the small picture before it is turned."""
    scale = side / max(frame.height, frame.width)
    height, width = (max(SHORTEST, round(length * scale)) for length in (frame.height, frame.width))
    return height, width


def _small(frame: Any, shape: tuple[int, int]) -> np.ndarray:
    """uint8 H×W×3 RGB, turned as the display matrix says (its rotation counts counter-clockwise)."""
    if frame.is_corrupt:
        raise DecodeError(f"the frame at {frame.time:.2f} s is damaged")
    try:
        small = frame.reformat(width=shape[1], height=shape[0], format="rgb24", interpolation=_AREA, threads=1).to_ndarray()
    except Exception as error:
        raise DecodeError(f"the frame at {frame.time:.2f} s does not convert to RGB: {error}") from error
    return np.ascontiguousarray(np.rot90(small, round(frame.rotation / 90) % 4))

"""What is known of a video before its frames are chosen: its container's word, one decoded frame, and where its packets really end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from shards import video_turn
from shards.errors import DecodeError
from shards.media import Limits
from shards.video_file import Film, VideoData, opened, stamp_of_packet
from shards.video_frames import LAST_FRAME_STANDS, NO_KEYS, Keys, needed_frames

_INDEXED = ("mov", "matroska", "avi")  # demuxers whose index says where key frames lie
_SEEKABLE = (*_INDEXED, "mpegts")  # demuxers that find a place near a time without reading up to it
_TAIL = 2.0  # seconds before the told end that are read to see whether it is there


@dataclass(frozen=True, slots=True)
class Survey:
    """codec by FFmpeg's name; width and height in pixels as shown; frames as the stream tells them, or counted; fps their average rate.

    duration  seconds as the container tells them; where it does not, as the packets have them.
    good      seconds from the first frame for which there are packets: `duration` where they end within a second of it, else their end.
    keys      the file's index.
    """

    codec: str
    width: int
    height: int
    frames: int
    fps: float
    duration: float
    good: float
    keys: Keys


def survey(file: VideoData, limits: Limits) -> Survey:
    """Opens the file, decodes its first frame, reads its last packets. Where the container tells no length, or its packets end more than a
    second before or behind it, all of them are read, none decoded. Raises LimitError and DecodeError."""
    with opened(file, limits) as film:
        stream, told = film.stream, told_seconds(film)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        codec, frames, offset = film.codec, int(stream.frames), film.seconds(stream.start_time) or 0.0
        first = next(needed_frames(film, lambda: 0.0), None)
        if first is None:
            raise DecodeError(film.clock.tear or f"{codec}: a video stream without a frame that decodes")
        size, start = _size(first.frame), film.seconds(first.frame.pts) or 0.0
        end = _tail_end(film, start, told) if told is not None else None
        keys = _keys(film)
    good = told
    if told is None or end is None or abs(end - told) > LAST_FRAME_STANDS or (frames == 0 and fps == 0):
        counted, length = _counted(file, limits, start, told)
        frames = frames or counted
        if told is None or abs(length - told) > LAST_FRAME_STANDS:
            good = length
            # a length that is counted from zero, where the clip is not
            told = length if told is None or abs(told - offset - length) <= LAST_FRAME_STANDS else told
    assert told is not None
    assert good is not None
    frames = max(frames or round(told * fps), 1)
    return Survey(codec, *size, frames, fps or frames / max(told, 1e-3), told, good, keys)


def _size(frame: Any) -> tuple[int, int]:
    """(width, height) as shown."""
    return (frame.height, frame.width) if video_turn.lies(frame) else (frame.width, frame.height)


def told_seconds(film: Film) -> float | None:
    """Seconds as the video track tells them, else the container; None where neither does."""
    stream, container = film.stream, film.container
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska writes one for each track
    if tag and (length := float(tag[1]) * 3600 + float(tag[2]) * 60 + float(tag[3])) > 0:
        return length
    if container.duration and container.duration > 0:
        return float(container.duration) / av.time_base
    return None


def _tail_end(film: Film, start: float, told: float) -> float | None:
    """Where the last packets end, seconds from the first frame, having read near the told end only; None where that cannot be."""
    if not film.name.startswith(_SEEKABLE):
        return None
    try:
        place = int((start + max(told - _TAIL, 0.0)) / film.stream.time_base)
        film.container.seek(place, stream=film.stream, any_frame=True)
    except Exception:  # exception: a place that the demuxer cannot find; then all packets are read
        return None
    count, end = _ends(film, start, told)
    return end if count and film.clock.tear is None else None


def _counted(file: VideoData, limits: Limits, start: float, told: float | None) -> tuple[int, float]:
    """(packets, seconds) of the stream by reading through the file, bounded by its length; nothing is decoded."""
    with opened(file, limits) as film:
        return _ends(film, start, told)


def _ends(film: Film, start: float, told: float | None) -> tuple[int, float]:
    """(packets, where the last of them ends in seconds from `start`) from here on; torn ones and those that are never shown count not.

    Where an edit list hides what follows, the last one ends where that would begin, or at the told end before it."""
    count, end = 0, 0.0
    for packet in film.packets():
        stamp = stamp_of_packet(packet)
        if stamp is None or packet.is_corrupt or packet.is_discard:
            continue
        count += 1
        end = max(end, float((stamp + (packet.duration or 0)) * film.stream.time_base) - start)
    over = film.seconds(film.over)
    if count and over is not None and film.latest is not None:
        last = float(film.latest * film.stream.time_base) - start
        end = max(last, min(over - start, told if told is not None else float("inf")))
    return count, end


def _keys(film: Film) -> Keys:
    """Read last: Matroska's index is loaded by the first seek."""
    if not film.name.startswith(_INDEXED):
        return NO_KEYS
    found = [(entry.timestamp, entry.pos) for entry in film.stream.index_entries if entry.is_keyframe]
    table = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
    return Keys(table[:, 0], table[:, 1])

"""Videos through PyAV: what the container says, and frames chosen before they are held. Whatever av raises becomes DecodeError."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from shards.errors import DecodeError, LimitError
from shards.image import looks_like
from shards.media import Limits

# Demuxers that only ever read the bytes they are given; playlists (HLS, DASH, concat) would open other files and addresses.
_DEMUXERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg"
_LAST_FRAME_STANDS = 1.0  # seconds that a clip's last frame may stand beyond its own duration, as where the sound ends later

VideoData = bytes | BinaryIO
TargetSize = Callable[[int, int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """codec by FFmpeg's name; width and height in pixels as shown (rotation metadata applied); frames of the stream; fps their average
    rate; duration in seconds."""

    codec: str
    width: int
    height: int
    frames: int
    fps: float
    duration: float


@dataclass(frozen=True, slots=True)
class Frames:
    """pixels uint8 (T, H, W, 3) RGB; times float32 (T), seconds from the start of the clip."""

    pixels: np.ndarray
    times: np.ndarray


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
    """The container's word where it gives one. One frame is decoded for the rotation; where frames or duration are not told, packets are
    counted without decoding them. Raises LimitError (bytes, pixels) and DecodeError."""
    with _opened(file, limits) as (container, stream):
        frames, duration = int(stream.frames), _told_duration(container, stream)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        codec = stream.codec_context.name
        first = next(_needed_frames(container, stream, lambda: 0.0, _Clock(limits)), None)
        if first is None:
            raise DecodeError(f"{codec}: a video stream without a frame that decodes")
        size = _turned(first[0].width, first[0].height, first[0])
    if duration is None or (frames == 0 and fps == 0):
        counted, length = _count_packets(file, limits)
        frames, duration = frames or counted, duration or length
    frames = frames or round(duration * fps)
    return VideoHeader(codec, *size, max(frames, 1), fps or frames / max(duration, 1e-3), duration)


def sample_frames(
    file: VideoData, fps: float, max_frames: int, limits: Limits, size: TargetSize | None = None, until: float | None = None
) -> Frames:
    """The frames on screen at `frame_times`, each turned as the rotation metadata says and resized (bicubic, Pillow) as soon as it is
    chosen to `size(height, width, T)` → (height, width), so that T × target size is all that is held.

    Groups of pictures without a chosen frame are skipped undecoded. The frame at time t is the last one that begins at or before t; the
    last frame of a clip stands for at most one second beyond its own duration.
    Raises LimitError (bytes, pixels, decoded_frames, cpu_seconds) and DecodeError, which names how far a torn video got.
    """
    with _opened(file, limits) as (container, stream):
        duration = _told_duration(container, stream)
    times = frame_times(_count_packets(file, limits)[1] if duration is None else duration, fps, max_frames, until)
    return pick_frames(file, times, limits, size)


def pick_frames(file: VideoData, times: np.ndarray, limits: Limits, size: TargetSize | None = None) -> Frames:
    """The same at `times`: float64 (T) seconds from the start, T ≥ 1, none before the one ahead of it. Raises as `sample_frames` does."""
    clock = _Clock(limits)
    held: np.ndarray | None = None
    with _opened(file, limits) as (container, stream):
        for index, frame in enumerate(_frames_at(container, stream, times, clock)):
            picture = _picture(frame)
            if held is None:
                shape = (picture.height, picture.width)
                held = np.empty((len(times), *(size(*shape, len(times)) if size is not None else shape), 3), dtype=np.uint8)
            if (picture.height, picture.width) != held.shape[1:3]:
                picture = picture.resize((held.shape[2], held.shape[1]), Image.Resampling.BICUBIC)
            held[index] = np.asarray(picture)
            clock.check()
    if held is None:
        raise DecodeError("a video stream without a frame that decodes")
    return Frames(held, times.astype(np.float32))


class _Clock:
    """CPU time of this thread (the decoder runs in it) and frames decoded so far, against the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.start = time.thread_time()
        self.frames = 0
        self.reached = 0.0  # seconds of the clip

    def frame(self, frame: Any) -> None:
        _check_pixels(frame.width, frame.height, self.limits)
        self.frames += 1
        if self.frames > self.limits.decoded_frames:
            raise LimitError(f"more than video.decoded_frames = {self.limits.decoded_frames:,} frames would have to be decoded")
        self.check()

    def check(self) -> None:
        if time.thread_time() - self.start > self.limits.cpu_seconds:
            raise LimitError(f"decoding took more than video.cpu_seconds = {self.limits.cpu_seconds:g} s ({self.frames} frames so far)")


@contextmanager
def _opened(file: VideoData, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream) under limits, one decoder thread."""
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    length = source.seek(0, io.SEEK_END)
    source.seek(0)
    if length > limits.video_bytes:
        raise LimitError(f"video of {length:,} bytes exceeds the limit video.bytes = {limits.video_bytes:,}")
    if length == 0:
        raise DecodeError("not a video: an empty file")
    try:
        # Hostile metadata need not be UTF-8, and is not needed.
        container = av.open(source, mode="r", options={"format_whitelist": _DEMUXERS}, metadata_errors="replace")
    except Exception as error:
        source.seek(0)
        raise DecodeError(f"not a readable video ({_reason(error)}): looks like {looks_like(source.read(1024))}") from error
    try:
        yield container, _video_stream(container, limits)
    finally:
        container.close()


def _video_stream(container: Any, limits: Limits) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(f"no video stream ({container.format.name} with {len(container.streams)} other streams)")
    context = streams[0].codec_context
    if context is None:
        raise DecodeError(f"{container.format.name}: no decoder for its codec")
    _check_pixels(context.width, context.height, limits)
    context.thread_count = 1
    context.thread_type = "NONE"
    context.options = {**context.options, "max_pixels": str(limits.video_pixels)}
    return streams[0]


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.video_pixels:
        raise LimitError(
            f"video of {width}×{height} = {width * height:,} pixels a frame exceeds the limit video.pixels = {limits.video_pixels:,}"
        )


def _told_duration(container: Any, stream: Any) -> float | None:
    """Seconds as the video track tells them, else the container; None where neither does."""
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska writes one for each track
    if tag and (length := float(tag[1]) * 3600 + float(tag[2]) * 60 + float(tag[3])) > 0:
        return length
    if container.duration and container.duration > 0:
        return float(container.duration) / av.time_base
    return None


def _count_packets(file: VideoData, limits: Limits) -> tuple[int, float]:
    """(packets, seconds) of the stream by reading through the file, bounded by its length; nothing is decoded."""
    count, start, end = 0, None, 0.0
    with _opened(file, limits) as (container, stream):
        for packet in _packets(container, stream, _Clock(limits)):
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None:
                continue
            count += 1
            start = at if start is None else min(start, at)
            end = max(end, float((at - start + (packet.duration or 0)) * stream.time_base))
    return count, end


def _packets(container: Any, stream: Any, clock: _Clock) -> Iterator[Any]:
    """The stream's packets, and at last the empty one that makes a decoder give what it still holds."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except Exception as error:
            raise _torn(container, error, clock) from error
        if packet is None:
            return
        clock.check()
        yield packet


def _torn(container: Any, error: Exception, clock: _Clock) -> DecodeError:
    return DecodeError(f"{container.format.name}: {_reason(error)} (got as far as {clock.reached:.2f} s, {clock.frames} frames decoded)")


def _reason(error: Exception) -> str:
    """Without the path that av appends: a medium is known by its uid."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _frames_at(container: Any, stream: Any, times: np.ndarray, clock: _Clock) -> Iterator[Any]:
    """For each of `times` the frame on screen, in order; each is chosen when a later frame, or the end, confirms it."""
    index, shown, shown_at, ends = 0, None, 0.0, 0.0

    def wanted() -> float | None:
        return float(times[index]) if index < len(times) else None

    for frame, at, span in _needed_frames(container, stream, wanted, clock):
        while index < len(times) and shown is not None and at > times[index] + 1e-6:
            yield shown
            index += 1
        if index == len(times):
            return
        if shown is None or at >= shown_at:
            shown, shown_at, ends = frame, at, at + span
    while index < len(times) and shown is not None and times[index] <= ends + _LAST_FRAME_STANDS:
        yield shown
        index += 1
    if shown is not None and index < len(times):
        raise DecodeError(
            f"the video ends at {ends:.2f} s, before its frame at {times[index]:.2f} s ({index} of {len(times)} frames could be sampled)"
        )


def _needed_frames(container: Any, stream: Any, wanted: Callable[[], float | None], clock: _Clock) -> Iterator[tuple[Any, float, float]]:
    """(frame, seconds since the first frame, its duration) in display order, until nothing is wanted; groups of pictures that end before
    the time `wanted()` are not decoded.

    Packets wait undecoded until one at or after the wanted time comes (then all are decoded), or a key frame at or before it does (then
    what waited is dropped, for a decoder can start anew there).
    """
    waiting: list[Any] = []
    live, dropped = True, False
    origin: float | None = None
    for packet in _packets(container, stream, clock):
        if (goal := wanted()) is None:
            return
        stamp = packet.pts if packet.pts is not None else packet.dts
        at = None if stamp is None or origin is None else float(stamp * stream.time_base) - origin
        if not live and at is not None and packet.is_keyframe and at <= goal:
            dropped, waiting = dropped or bool(waiting), []
        waiting.append(packet)
        if not live and at is not None and at < goal:
            continue
        if dropped:
            stream.codec_context.flush_buffers()
            dropped = False
        ready, waiting = waiting, []
        for one in ready:
            for frame in _decode(container, one, clock):
                origin = frame.time if origin is None else origin
                clock.reached = frame.time - origin
                yield frame, clock.reached, float((frame.duration or 0) * stream.time_base)
        goal = wanted()
        live = goal is None or at is None or at >= goal


def _decode(container: Any, packet: Any, clock: _Clock) -> list[Any]:
    try:
        frames = packet.decode()
    except Exception as error:
        raise _torn(container, error, clock) from error
    for frame in frames:
        clock.frame(frame)
        if frame.time is None:
            raise DecodeError(f"{container.format.name}: a frame without a time")
    return frames


def _turned(width: int, height: int, frame: Any) -> tuple[int, int]:
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


def _picture(frame: Any) -> Image.Image:
    """RGB, turned as the display matrix says (its rotation counts counter-clockwise)."""
    if frame.is_corrupt:
        raise DecodeError(f"the frame at {frame.time:.2f} s is damaged")
    try:
        picture = frame.to_image(threads=1)  # with swscale's own choice of threads, equal frames gave unequal pixels
    except Exception as error:
        raise DecodeError(f"the frame at {frame.time:.2f} s does not convert to RGB: {error}") from error
    turns = round(frame.rotation / 90) % 4
    if turns:
        picture = picture.transpose((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[turns - 1])
    return picture

"""A video file opened under limits: its one stream, its packets up to the end or the tear, what was spent on the way."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
from av.stream import Discard, Disposition

from shards.errors import DecodeError, LimitError
from shards.image import looks_like
from shards.media import Limits

# Demuxers that only ever read the bytes they are given; playlists (HLS, DASH, concat) would open other files and addresses.
_DEMUXERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg"

VideoData = bytes | BinaryIO


class Clock:
    """CPU time of this thread (the decoder runs in it) and frames decoded so far, against the limits.

    tear     what ended the reading of the file before its end, in words; None: nothing did.
    reached  seconds of the clip up to which frames came out well.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.start = time.thread_time()
        self.frames = 0
        self.tear: str | None = None
        self.reached = 0.0

    def frame(self, frame: Any) -> None:
        check_pixels(frame.width, frame.height, self.limits)
        self.frames += 1
        if self.frames > self.limits.decoded_frames:
            raise LimitError(
                f"more than video.decoded_frames = {self.limits.decoded_frames:,} frames would have to be decoded; "
                "raise that limit, or cut the video into clips first"
            )
        self.check()

    def check(self) -> None:
        if time.thread_time() - self.start > self.limits.cpu_seconds:
            raise LimitError(
                f"decoding took more than video.cpu_seconds = {self.limits.cpu_seconds:g} s ({self.frames} frames so far); "
                "raise that limit, or cut the video into clips first"
            )


@dataclass(slots=True)
class Film:
    """container and stream are PyAV's.

    latest  of the packets read, when the last that is shown is shown; over: when the first behind it would be, that an edit list hides.
            In the stream's time base.
    """

    container: Any
    stream: Any
    clock: Clock
    latest: int | None = None
    over: int | None = None

    @property
    def name(self) -> str:
        return str(self.container.format.name)

    @property
    def codec(self) -> str:
        """The codec's name, whichever decoder reads it: av1, not libdav1d."""
        return str(self.stream.codec_context.codec.canonical_name)

    @property
    def guessed(self) -> bool:
        """Whether the file does not say when a picture is shown, and the codec shows them in another order than they are decoded in."""
        return self.name == "avi" and self.codec in ("h264", "hevc")

    def seconds(self, stamp: int | None) -> float | None:
        return None if stamp is None else float(stamp * self.stream.time_base)

    def packets(self) -> Iterator[Any]:
        """The stream's packets up to its end. One that cannot be read ends them, and the clock has the tear."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception as error:
                self.clock.tear = f"{self.name}: {reason(error)}"
                return
            if packet is None or (not packet.size and packet.pts is None and packet.dts is None):  # the one that flushes a decoder
                return
            self.clock.check()
            self._note(packet)
            yield packet

    def _note(self, packet: Any) -> None:
        stamp = stamp_of_packet(packet)
        if stamp is None:
            return
        if not packet.is_discard:
            self.latest = stamp if self.latest is None else max(self.latest, stamp)
            self.over = None if self.over is not None and self.over <= self.latest else self.over
        elif self.latest is None or stamp > self.latest:
            self.over = stamp if self.over is None else min(self.over, stamp)


def stamp_of_packet(packet: Any) -> int | None:
    """When it is shown, or where the container does not say, when it is decoded; in the stream's time base."""
    return packet.pts if packet.pts is not None else packet.dts


@contextmanager
def opened(file: VideoData, limits: Limits, clock: Clock | None = None) -> Iterator[Film]:
    """The film with its first video stream, one decoder thread; other streams are not read. Raises LimitError (bytes, pixels) and
    DecodeError."""
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
        raise DecodeError(f"not a readable video ({reason(error)}): looks like {looks_like(source.read(1024))}") from error
    try:
        yield Film(container, _video_stream(container, limits), clock or Clock(limits))
    finally:
        container.close()


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raises LimitError."""
    if width * height > limits.video_pixels:
        raise LimitError(
            f"video of {width}×{height} = {width * height:,} pixels a frame exceeds the limit video.pixels = {limits.video_pixels:,}"
        )


def reason(error: Exception) -> str:
    """Without the path that av appends: a medium is known by its uid."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _video_stream(container: Any, limits: Limits) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(f"no video stream ({container.format.name} with {len(container.streams)} other streams)")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise DecodeError(f"{container.format.name}: no decoder for its codec")
    check_pixels(context.width, context.height, limits)
    context.thread_count = 1
    context.thread_type = "NONE"
    context.options = {**context.options, "max_pixels": str(limits.video_pixels)}
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream

"""One clip of a video: its packets copied from the key frame before it, the offset kept as an MP4 edit list; or its frames encoded anew."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from shards import video_turn
from shards.errors import DecodeError
from shards.media import Limits
from shards.video_file import Film, VideoData, opened, reason
from shards.video_frames import Shown, Unsure, needed_frames, stands_until

COPIED = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mpeg1video"})  # what MP4 holds
_CONTAINER = {"fflags": "+bitexact"}  # no name of a muxer, no time of day
_EPSILON = 1e-6
_RATE = 25  # frames a second where a file tells none
_RGB = 0  # FFmpeg's AVCOL_SPC_RGB


class NotCopied(Exception):
    """The packets do not say enough to be copied."""


def copied(file: VideoData, start: float, end: float, limits: Limits) -> tuple[bytes, float]:
    """(an MP4, its seconds) with the frames on screen in [start, end) of the video, seconds from its first frame, without its sound.

    It holds the packets from the last key frame at or before `start` on. Its edit list says which of the frames are shown: the first is
    the one on screen at `start`, and time counts from it. Raises NotCopied where packets have no times or the codec is none of MP4's,
    DecodeError where the part cannot be read.
    """
    with opened(file, limits) as film:
        if film.codec not in COPIED or film.name == "avi":
            raise NotCopied
        base = film.stream.time_base
        origin = _origin(film)
        packets, torn = _packets(film, origin + start, origin + end)
        wanted = [p.pts for p in packets if p.pts * base < origin + end - _EPSILON]
        if not packets or not wanted or not packets[0].is_keyframe:
            raise DecodeError(f"no key frame at or before {start:.2f} s: {torn or 'the video cannot be cut there'}")
        shown = max((pts for pts in wanted if pts * base <= origin + start + _EPSILON), default=None)
        if shown is None:
            raise NotCopied
        after = min((p.pts for p in packets if p.pts * base >= origin + end - _EPSILON), default=None)
        last = max(packets, key=lambda p: p.pts)
        over = after if after is not None else last.pts + (last.duration or 0)
        data = _muxed(film.stream, packets, shown)
    length = float((over - shown) * base)
    return _shown_for(data, length), length


def encoded(file: VideoData, start: float, end: float, limits: Limits, crf: int, preset: str) -> tuple[bytes, float]:
    """As `copied`, decoded and encoded by x264 in one thread, turned upright, in the colours it had. Raises LimitError, DecodeError."""
    try:
        try:
            return _encoded(file, start, end, limits, crf, preset, skip=True)
        except Unsure:
            return _encoded(file, start, end, limits, crf, preset, skip=False)
    except av.error.FFmpegError as error:
        raise DecodeError(f"what lies between {start:.2f} and {end:.2f} s cannot be encoded: {reason(error)}") from error


def _encoded(file: VideoData, start: float, end: float, limits: Limits, crf: int, preset: str, skip: bool) -> tuple[bytes, float]:
    buffer = io.BytesIO()
    stream: Any = None
    begin = length = 0.0
    with opened(file, limits) as film, av.open(buffer, "w", format="mp4", options=_CONTAINER | {"use_editlist": "1"}) as out:
        for shown, over in _shown(film, start, end, skip):
            # One thread: with swscale's own choice of them, equal frames gave unequal pixels.
            frame = _upright(shown.frame)
            odd = frame.width % 2 or frame.height % 2
            shape = (stream.width, stream.height) if stream is not None else (frame.width, frame.height)
            frame = frame.reformat(*shape, format=("yuv444p" if odd else "yuv420p") if stream is None else stream.pix_fmt, threads=1)
            if stream is None:
                begin = shown.at
                # mbtree is off: with it the same frames gave other bytes from run to run, in one thread too.
                options = {"crf": str(crf), "preset": preset, "x264-params": "mbtree=0"}
                stream = out.add_stream("libx264", rate=film.stream.average_rate or _RATE, options=options)
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = frame.format.name
                stream.codec_context.color_range = frame.color_range
                if frame.colorspace != _RGB:  # which is what it was converted from; readers take it rightly if nothing is told
                    stream.codec_context.colorspace = frame.colorspace
                stream.codec_context.time_base = Fraction(1, 90_000)
                stream.codec_context.thread_count = 1
            frame.pict_type = PictureType.NONE  # the encoder's to choose
            frame.pts, frame.time_base = round((shown.at - begin) * 90_000), Fraction(1, 90_000)
            out.mux(stream.encode(frame))
            length = over - begin
        if stream is None:
            raise DecodeError(film.clock.tear or f"no frame decodes between {start:.2f} and {end:.2f} s")
        # A frame that stands for long has its end told by one behind it, which is never shown.
        frame.pts = round(length * 90_000)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return _shown_for(buffer.getvalue(), length), length


def _upright(frame: Any) -> Any:
    if video_turn.upright(frame):
        return frame
    return av.VideoFrame.from_ndarray(video_turn.shown(np.asarray(frame.to_image(threads=1)), frame), format="rgb24")


def _origin(film: Film) -> float:
    """Seconds at which the first frame stands, as the container counts."""
    first = next(needed_frames(film, lambda: 0.0), None)
    if first is None:
        raise DecodeError(film.clock.tear or "a video stream without a frame that decodes")
    return float(first.frame.pts * film.stream.time_base)


def _packets(film: Film, start: float, end: float) -> tuple[list[Any], str | None]:
    """Packets from the last key frame at or before `start` to the last that a frame before `end` needs, and what tore them off.

    Sought by the container, a little earlier where it lands too late; where that fails, read from the beginning.
    """
    stamp = int(start / film.stream.time_base)
    for back in (0.0, 1.0, 10.0, None):
        place = stamp - int(back / film.stream.time_base) if back is not None else None
        try:
            film.container.seek(place if place is not None else min(film.stream.start_time or 0, 0), stream=film.stream, backward=True)
        except Exception as error:
            if back is None:
                raise DecodeError(f"the video cannot be cut: {reason(error)}") from error
            continue
        found: list[Any] = []
        film.clock.tear = None
        for packet in film.packets():
            if packet.pts is None:
                raise NotCopied
            at = packet.pts * film.stream.time_base
            if packet.is_keyframe and at <= start + _EPSILON:
                found = []
            if not found and not (packet.is_keyframe and at <= start + _EPSILON):
                if packet.is_keyframe and back is not None:
                    break  # it landed behind the start
                continue
            if packet.dts is not None and packet.dts * film.stream.time_base >= end - _EPSILON and at >= end - _EPSILON:
                found.append(packet)  # tells where the last frame ends
                break
            found.append(packet)
        if found:
            return found, film.clock.tear
    return [], film.clock.tear


def _decoding_times(packets: list[Any]) -> list[int]:
    """When each packet is decoded: as the container says, else (Matroska, after a jump) as early as the order of showing asks for."""
    told = [p.dts for p in packets]
    if None not in told:
        return told
    ordered = sorted(p.pts for p in packets)
    delay = max(shown - p.pts for shown, p in zip(ordered, packets, strict=True))
    return [shown - delay for shown in ordered]


def _muxed(stream: Any, packets: list[Any], shown: int) -> bytes:
    buffer = io.BytesIO()
    options = {**_CONTAINER, "avoid_negative_ts": "disabled", "use_editlist": "1"}
    try:
        with av.open(buffer, "w", format="mp4", options=options) as out:
            target = out.add_stream_from_template(stream, opaque=True)  # else an encoder of the decoder's name is sought: of libdav1d's
            for packet, decoding in zip(packets, _decoding_times(packets), strict=True):
                packet.pts, packet.dts, packet.stream = packet.pts - shown, decoding - shown, target
                out.mux(packet)
    except av.error.FFmpegError as error:
        raise NotCopied from error
    return buffer.getvalue()


def _shown_for(data: bytes, seconds: float) -> bytes:
    """The MP4 whose edit list ends after so many seconds: packets that others need may be shown later than that."""
    out = bytearray(data)
    moov = out.rindex(b"moov")
    scale = struct.unpack_from(">I", out, out.index(b"mvhd", moov) + 16)[0]
    length = int(seconds * scale + _EPSILON)
    edits = out.find(b"elst", moov)
    if edits >= 0 and out[edits + 4] == 0:
        count = struct.unpack_from(">I", out, edits + 8)[0]
        struct.pack_into(">I", out, edits + 12 + (count - 1) * 12, max(length, 1))
    for name, ahead in ((b"mvhd", 20), (b"tkhd", 24)):
        at = out.index(name, moov)
        if out[at + 4] == 0:
            struct.pack_into(">I", out, at + ahead, max(length, 1))
    return bytes(out)


def _shown(film: Film, start: float, end: float, skip: bool) -> Iterator[tuple[Shown, float]]:
    """The frame on screen at `start`, and those that begin before `end`, each with the second at which it goes; of frames at one time the
    first. Raises Unsure with `skip`."""
    now = [start]
    before: Shown | None = None
    over: float | None = None
    for one in needed_frames(film, lambda: now[0] if now[0] < end else None, skip=skip):
        if before is not None and one.at <= before.at + _EPSILON:
            continue  # containers that repeat a time, or tell times that go back
        if one.at >= end - _EPSILON:
            over = end
            break
        now[0] = max(start, one.at)
        if one.at > start + _EPSILON and before is not None:
            yield before, one.at
        before = one
    if before is not None and before.at < end:
        told = stands_until(film, before)
        if told <= before.at:  # FLV, for one, does not say
            told = before.at + float(1 / (film.stream.average_rate or _RATE))
        yield before, over if over is not None else min(told, end)

"""Clips made by PyAV for tests of decoding: a scene that moves, in any container and codec; frames of a file by decoding everything."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

CLOSED = {"x264-params": "bframes=3:keyint=48:min-keyint=24:scenecut=0"}
OPEN = {"x264-params": "open-gop=1:bframes=4:keyint=24:min-keyint=24:scenecut=0:b-adapt=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=48"}
OPEN_HEVC = {"x265-params": "open-gop=1:keyint=24:min-keyint=24:scenecut=0:log-level=none"}


def scene(width: int = 64, height: int = 48, length: int = 1200) -> np.ndarray:
    """uint8 (height, length, 3): what the camera moves along."""
    noise = np.random.default_rng(0).integers(0, 256, (6, length // 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((length + width, height), Image.Resampling.BICUBIC))


def moving(
    format: str = "mp4",
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    *,
    frames: int = 240,
    rate: int = 24,
    stamps: Sequence[int] | None = None,
    first: int = 0,
    size: tuple[int, int] = (64, 48),
    muxer: Mapping[str, str] | None = None,
    pixels: str = "yuv420p",
) -> bytes:
    """A clip of `frames` pictures, each four pixels further along the scene; numbered from `first`, or shown at `stamps` milliseconds."""
    ground = scene(*size, length=max(1200, frames * 4))
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=format, options=dict(muxer or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(ground[:, index * 4 : index * 4 + size[0]]), format="rgb24")
            frame.pts, frame.time_base = (index + first, Fraction(1, rate)) if stamps is None else (stamps[index], Fraction(1, 1000))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return Path(file.name).read_bytes()


def decoded(data: bytes, times: Sequence[float] | None = None) -> np.ndarray:
    """uint8 (T, H, W, 3): the frame that each of `times` shows (every frame, without them), by decoding everything in one thread."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        shown: list[np.ndarray] = []
        begin, last = None, None
        for frame in container.decode(stream):
            at = float(frame.pts * stream.time_base)
            begin = at if begin is None else begin
            while times is not None and len(shown) < len(times) and at - begin > times[len(shown)] + 1e-6:
                shown.append(np.asarray(last.to_image(threads=1)))
            if times is None:
                shown.append(np.asarray(frame.to_image(threads=1)))
            last = frame
        for _ in range(len(shown), len(times or ())):
            shown.append(np.asarray(last.to_image(threads=1)))
    return np.stack(shown)


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 of one track whose pictures are shown where (x, y) → (a·x + c·y, b·x + d·y) puts them."""
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) + data[at + 36 :]

"""Clips made of pictures for tests: cuts, fades, flashes and still stretches at known times, in any codec and container."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (160, 96)  # width, height

Frames = list[np.ndarray]


def film(
    frames: Iterable[np.ndarray],
    rate: int | Fraction = 10,
    format: str = "matroska",
    codec: str = "ffv1",
    times: Sequence[float] | None = None,
    **options: str,
) -> bytes:
    """A clip of uint8 H×W×3 RGB frames. ffv1 keeps every pixel. times: seconds of each frame, else k / rate."""
    buffer = io.BytesIO()
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, one in enumerate(frames):
            if not number:
                stream.height, stream.width = one.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = round(1000 * (times[number] if times else number / rate)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def recoded(
    path: Path,
    size: tuple[int, int] | None = None,
    every: int = 1,
    start: float = 0.0,
    end: float = 1e9,
    format: str = "mp4",
    codec: str = "libx264",
    **options: str,
) -> bytes:
    """A real clip decoded and encoded anew: of another size, with every n-th of its frames, from `start` to `end` seconds of it."""
    frames, times = [], []
    with av.open(str(path)) as container:
        first = None
        for number, frame in enumerate(container.decode(video=0)):
            first = frame.time if first is None else first
            at = frame.time - first
            if number % every == 0 and start <= at < end:
                small = frame.reformat(width=size[0], height=size[1]) if size else frame
                frames.append(small.to_ndarray(format="rgb24"))
                times.append(at - start)
    return film(frames, 30, format, codec, [at - times[0] for at in times], **options)


def scene(number: int, frames: int, size: tuple[int, int] = SIZE, speed: float = 1.0) -> Frames:
    """A made scene over which the camera pans by `speed` pixels a frame: colours and shapes drawn from `number` alone."""
    width, height = size
    coarse = np.random.default_rng(number).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
    return [wide[:, round(speed * k) % width : round(speed * k) % width + width] for k in range(frames)]


def still(picture: np.ndarray, frames: int) -> Frames:
    return [picture] * frames


def plain(level: int, frames: int, size: tuple[int, int] = SIZE) -> Frames:
    return [np.full((size[1], size[0], 3), level, np.uint8)] * frames


def faded(before: np.ndarray, after: np.ndarray, frames: int) -> Frames:
    """From one picture to another, in even steps, the ends left out."""
    shares = np.linspace(0, 1, frames + 2)[1:-1]
    return [(before * (1 - share) + after * share).astype(np.uint8) for share in shares]


def photograph(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))

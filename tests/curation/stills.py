"""Films made of pictures, each shown for a while: lossless, so that a frame has the very pixels of its picture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def film(path: Path, shown: Sequence[tuple[np.ndarray, float]], rate: int = 10) -> Path:
    """shown: (uint8 H×W×3, seconds). FFV1 in Matroska, `rate` frames a second."""
    height, width = shown[0][0].shape[:2]
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        stream.time_base = Fraction(1, rate)
        number = 0
        for pixels, seconds in shown:
            for _ in range(round(seconds * rate)):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, number = number, number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(level: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full((size[1], size[0], 3), level, np.uint8)

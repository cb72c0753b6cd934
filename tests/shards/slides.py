"""Lossless clips of slides: pictures that stand still for some frames, so that these decode to the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def slide_clip(frames: Sequence[np.ndarray], rate: int = 1) -> bytes:
    """A Matroska of FFV1 in RGB, `rate` frames a second: every frame decodes to the bytes it was made from (uint8 [H, W, 3] each)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
    return buffer.getvalue()

"""probe: what a medium is. Decodes it, so that a broken body is noticed before any dear model sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.step import MEDIA_KINDS, Column, How, NoParameters, Result, Row, Step
from curation.view import MediaView, each
from shards.video import sample_frames

_IMAGE = frozenset({"image"})
_VIDEO = frozenset({"video"})
_HASH_SIDE, _GREY_SIDE = 8, 32
_DECIMALS = 6  # of values up to 2·10⁶; the noise is below 10⁻⁸
_VIDEO_FRAMES = 8  # decoded of a video, spread from its first to its last second
_THUMBNAIL = 32


def columns(what: NoParameters) -> Sequence[Column]:
    return (
        Column("width", pa.int32(), MEDIA_KINDS, doc="pixels as shown, after EXIF orientation or rotation"),
        Column("height", pa.int32(), MEDIA_KINDS, doc="pixels as shown"),
        Column("aspect_ratio", pa.float64(), MEDIA_KINDS, doc="width / height"),
        Column("format", pa.string(), MEDIA_KINDS, doc="image format by Pillow's name, video codec by FFmpeg's"),
        Column("mode", pa.string(), _IMAGE, doc="pixel mode by Pillow's name"),
        Column("frames", pa.int32(), MEDIA_KINDS, doc="1 for a still picture"),
        Column("duration", pa.float64(), _VIDEO, doc="seconds as the container tells them; counted where it does not"),
        Column("good_seconds", pa.float64(), _VIDEO, doc="seconds from the start that are there and decode; all of a sound clip's"),
        Column("bytes", pa.int64(), MEDIA_KINDS, doc="of the encoded medium"),
        Column("sha256", pa.string(), MEDIA_KINDS, doc="64 hex digits over the encoded bytes"),
        Column("phash", pa.uint64(), _IMAGE, doc="perceptual hash, 64 bits, row by row from the highest bit"),
    )


def open_probe(what: NoParameters, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    return lambda views: each(views, _probe)


def phash(pixels: np.ndarray) -> int:
    """64-bit perceptual hash of uint8 H×W×3: the 8×8 lowest frequencies of a DCT-II over the 32×32 grey picture, each against their median.

    Bit for bit `imagehash.phash` (Krawetz, "Looks Like It", 2011). The constant term takes part in the median.
    """
    grey = Image.fromarray(pixels).convert("L").resize((_GREY_SIDE, _GREY_SIDE), Image.Resampling.LANCZOS)
    matrix = _dct_matrix()
    low = (matrix @ np.asarray(grey, dtype=np.float64) @ matrix.T)[:_HASH_SIDE, :_HASH_SIDE]
    low = low.round(_DECIMALS)  # a plain surface has zeros there: the noise of one machine's arithmetic must not become bits
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _probe(view: MediaView) -> Row:
    return _probe_video(view) if view.ref.kind == "video" else _probe_image(view)


def _probe_image(view: MediaView) -> Row:
    header = view.image_header()
    pixels = view.image()
    height, width = pixels.shape[:2]
    own = {
        "format": header.format,
        "mode": header.mode,
        "frames": header.frames,
        "duration": None,
        "good_seconds": None,
        "phash": phash(pixels),
    }
    return _row(view, width, height, len(view.data()), own)


def _probe_video(view: MediaView) -> Row:
    header = view.video_header()
    with view.open() as file:
        size = file.seek(0, 2)
        file.seek(0)
        fps = _VIDEO_FRAMES / header.good if header.good > 0 else 1.0
        with view.decoding():
            found = sample_frames(file, fps, _VIDEO_FRAMES, view.limits, lambda height, width, count: (_THUMBNAIL, _THUMBNAIL))
    told = {"frames": header.frames, "duration": header.duration, "good_seconds": found.good}
    own = {"format": header.codec, "mode": None, "phash": None, **told}
    return _row(view, header.width, header.height, size, own)


def _row(view: MediaView, width: int, height: int, size: int, own: dict[str, Any]) -> Row:
    return {"width": width, "height": height, "aspect_ratio": width / height, "bytes": size, "sha256": view.sha256(), **own}


@cache
def _dct_matrix() -> np.ndarray:
    """DCT-II, unnormalised, as a 32×32 matrix: row k, column n holds 2·cos(π·k·(2n+1) / 64). float64."""
    k, n = np.mgrid[0:_GREY_SIDE, 0:_GREY_SIDE]
    return 2.0 * np.cos(np.pi * k * (2 * n + 1) / (2 * _GREY_SIDE))


STEP = Step(version=3, columns=columns, reads=lambda what: ("media",), level="medium", applies=MEDIA_KINDS, open=open_probe)

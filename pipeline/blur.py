"""Faces made unrecognisable as a picture is written: the boxes of a step averaged to a few colours, re-encoded, recorded as a transform."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.operations import RuleOp, StepOp
from shards.errors import SourceError
from shards.image import decode_image, image_header
from shards.media import Limits
from shards.writer import ShardMedium

OPERATOR, VERSION = "blur", 1
MARGIN = 0.2  # of a box's sides, on each side: detectors cut foreheads and chins
CELLS = 4  # along either side of a box; 16 averages hold no face, whatever is done to them afterwards
QUALITY = 95
LIKE_JPEG = frozenset({"JPEG", "MPO"})


@dataclass(frozen=True, slots=True)
class Blur:
    """column: of the boxes.   step: digest of the step that found them, for the record."""

    column: str
    step: str

    @property
    def key(self) -> str:
        """What a written picture depends on beside its bytes."""
        return f"{OPERATOR}:{VERSION}:{self.step}"


def blur_of(ops: Sequence[StepOp | RuleOp], name: str) -> Blur | None:
    """The blur by the step of that name; None if there is none with boxes."""
    for op in ops:
        if isinstance(op, StepOp) and op.name == name:
            column = next((c.name for c, stored in zip(op.columns, op.stored, strict=True) if stored == "boxes" and c.wide), None)
            return Blur(column, op.digest) if column is not None else None
    return None


def blurred(medium: ShardMedium, blur: Blur, faces: Sequence[Mapping[str, Any]], limits: Limits) -> ShardMedium:
    """The picture with `faces` (each with `box`: left, top, right, bottom as shares) wiped out; as it is if there are none.

    JPEG stays JPEG (quality 95, no subsampling of colour), everything else becomes PNG; EXIF orientation is applied, metadata is gone, the
    size in pixels is the same. Raises SourceError if the bytes are no longer those the boxes were found in, DecodeError, LimitError.
    """
    if not faces:
        return medium
    assert isinstance(medium.data, bytes)
    original = hashlib.sha256(medium.data).hexdigest()
    if medium.sha256 and medium.sha256 != original:
        raise SourceError(f"{medium.name}: its bytes changed since its faces were found; run again")
    boxes = [[round(float(side), 6) for side in face["box"]] for face in faces]
    pixels = wiped(decode_image(medium.data, limits), boxes)
    form = "JPEG" if image_header(medium.data, limits).format in LIKE_JPEG else "PNG"
    parameters = {"step": blur.step, "boxes": boxes, "margin": MARGIN, "cells": CELLS, "format": form}
    if form == "JPEG":
        parameters["quality"] = QUALITY
    if medium.transform is not None:
        parameters["after"] = dict(medium.transform)
    return ShardMedium(
        kind=medium.kind,
        name=medium.name,
        data=_encoded(pixels, form),
        original_sha256=medium.original_sha256 or original,
        transform={"operator": OPERATOR, "version": VERSION, "parameters": parameters},
        format=form,
    )


def wiped(pixels: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """A copy of uint8 H×W×3 in which each box and a margin around it are 4×4 averages, smoothed together."""
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels).copy()
    for left, top, right, bottom in boxes:
        wide, tall = MARGIN * (right - left), MARGIN * (bottom - top)
        x0, x1 = _span(left - wide, right + wide, width)
        y0, y1 = _span(top - tall, bottom + tall, height)
        place = (x0, y0, x1, y1)
        cells = (min(CELLS, x1 - x0), min(CELLS, y1 - y0))
        few = picture.resize(cells, Image.Resampling.BOX, box=place)
        picture.paste(few.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR), place[:2])
    return np.asarray(picture)


def _span(start: float, end: float, length: int) -> tuple[int, int]:
    first = min(max(int(np.floor(start * length)), 0), length - 1)
    return first, max(min(int(np.ceil(end * length)), length), first + 1)


def _encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    if form == "JPEG":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=False, progressive=False)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()

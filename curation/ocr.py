"""Reads the text in a picture, or in frames of a video, with PaddleOCR (detection, then recognition of each line) on ONNX Runtime: lines,
boxes, confidences; of videos the time in which each line stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.models import Model
from curation.moments import check_moments, moments_identity, of_videos
from curation.ocr_engine import Engine, open_engine
from curation.ocr_languages import recogniser_for
from curation.ocr_models import PACKAGE, check_model, listed_model, model_identity, prepare_model
from curation.ocr_read import Line, Settings, read_picture
from curation.ocr_video import frames_read, standing, told_once
from curation.step import MEDIA_KINDS, Column, How, Result, Row, Step
from curation.view import MediaView, each
from curation.weights import existing_path

IMAGE, VIDEO = frozenset({"image"}), frozenset({"video"})
_LINE = [
    pa.field("text", pa.string(), nullable=False),
    pa.field("confidence", pa.float64(), nullable=False),
    pa.field("polygon", pa.list_(pa.float32()), nullable=False),
]
LINE_TYPE = pa.struct(_LINE)
TIMED_LINE_TYPE = pa.struct([*_LINE, pa.field("start", pa.float32(), nullable=False), pa.field("end", pa.float32(), nullable=False)])


@dataclass(frozen=True, slots=True)
class What:
    """Without `frames`, `at` and `every` it looks at pictures, with one of them at frames of videos (curation/moments.py).

    det, rec  detection and recognition model, each "package:rapidocr" (PP-OCRv6 small: Latin, Chinese, Japanese), a folder with
                 inference.onnx and inference.yml, an id of the hub, or PaddleOCR's name of a model, whose ONNX files are on the hub.
    det_revision, rec_revision  of models on the hub.
    language     ISO 639 code: takes PaddleOCR's recogniser for it in the place of `rec`; "" = `rec` as it is.
    longest      a picture's longer side, pixels, as the detector sees it; larger ones are shrunk for it. Lines are read at full size.
    tiles        "off", "auto" (the detector looks at tiles where the text it sees is too small) or the side of a tile in pixels.
    rotate       "auto" (pages that lie on a side or stand on their head are turned before they are read) or "off".
    whole        a small picture in which no line is found is read as one line; taken from this confidence on, 0 = never. Never of frames:
                 they are not cut out of anything, and letters would be seen in leaves and faces.
    """

    det: str = PACKAGE
    rec: str = PACKAGE
    det_revision: str = ""
    rec_revision: str = ""
    language: str = ""
    longest: int = 960
    tiles: str | int | bool = "auto"
    rotate: str | bool = "auto"
    whole: float = 0.8
    frames: int = 0
    at: str = ""
    every: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "det", existing_path(self.det))
        object.__setattr__(self, "rec", existing_path(self.rec))
        for name in ("tiles", "rotate"):  # YAML reads a bare `off` as false
            if getattr(self, name) is False:
                object.__setattr__(self, name, "off")


@dataclass(frozen=True, slots=True)
class OcrHow(How):
    """device: "cpu" or "gpu:0" (wants onnxruntime-gpu).   threads: of ONNX Runtime, of one actor.

    lines   of one width that are recognised at once: 1 is fastest on a CPU, 16 or more on a GPU.
    """

    batch: int = 8
    device: str = "cpu"
    threads: int = 1
    lines: int = 1


def _open(what: What, how: OcrHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    engine = engine_of(what, how)
    settings = settings_of(what)
    if of_videos(what):
        return lambda views: each(views, lambda view: read_video(engine, settings, what, view))
    return lambda views: each(views, lambda view: read(engine, settings, view))


def engine_of(what: What, how: OcrHow) -> Engine:
    """Both models loaded. Raises InfrastructureError with the mend."""
    det = prepare_model("det", what.det, what.det_revision)
    rec = prepare_model("rec", _recogniser(what), what.rec_revision)
    return open_engine(det, rec, how.device, how.threads, how.lines)


def settings_of(what: What) -> Settings:
    return Settings(what.longest, what.tiles, what.rotate == "auto", 0.0 if of_videos(what) else what.whole)


def read(engine: Engine, settings: Settings, view: MediaView) -> Row:
    """The row of one picture. Raises DecodeError, LimitError, SourceError."""
    found = read_picture(engine, settings, view.image())
    lines = [_line(line) for line in found.lines]
    return {
        "text": "\n".join(line.text for line in found.lines),
        "confidence": float(np.mean([line.confidence for line in found.lines])) if lines else 0.0,
        "n_lines": len(lines),
        "rotation": found.rotation,
        "coverage": _coverage(found.lines),
        "lines": lines,
    }


def read_video(engine: Engine, settings: Settings, what: What, view: MediaView) -> Row:
    """The row of one video. Raises DecodeError, LimitError, SourceError, and what `moments.stretches` raises."""
    frames = list(frames_read(what, view, lambda pixels: read_picture(engine, settings, pixels).lines))
    lines = standing(frames)
    return {
        "text": told_once(lines),
        "confidence": float(np.mean([one.line.confidence for one in lines])) if lines else 0.0,
        "n_lines": len(lines),
        "coverage": float(np.mean([_coverage(found) for _, found in frames])),
        "lines": [{**_line(one.line), "start": one.start, "end": one.end} for one in lines],
    }


def _line(line: Line) -> dict[str, Any]:
    return {"text": line.text, "confidence": line.confidence, "polygon": line.polygon.astype(np.float32).reshape(8).tolist()}


def _coverage(lines: Sequence[Line]) -> float:
    """Share of a picture's area that lies under lines, 0..1; what lies under several counts once."""
    import shapely

    polygons = np.array([line.polygon for line in lines]).reshape(-1, 4, 2)
    return min(float(shapely.area(shapely.union_all(shapely.convex_hull(shapely.polygons(polygons))))), 1.0)


def _recogniser(what: What) -> str:
    return (recogniser_for(what.language) if what.language else None) or what.rec


def _identity(what: What) -> dict[str, Any]:
    det = model_identity("det", what.det, what.det_revision)
    rec = model_identity("rec", _recogniser(what), what.rec_revision)
    own = {"det": det, "rec": rec, "longest": what.longest, "tiles": what.tiles, "rotate": what.rotate, "whole": what.whole}
    return {**own, **moments_identity(what)}


def _models(what: What) -> list[Model]:
    return [listed_model("det", what.det, what.det_revision), listed_model("rec", _recogniser(what), what.rec_revision)]


def _columns(what: What) -> list[Column]:
    if of_videos(what):
        return [
            Column("text", pa.string(), VIDEO, doc="the lines as they appear, a line break between them, none told twice"),
            Column("confidence", pa.float64(), VIDEO, doc="mean over the lines, 0..1; 0 without any"),
            Column("n_lines", pa.int32(), VIDEO, doc="lines read; one that stands in several frames on end counts once"),
            Column("coverage", pa.float64(), VIDEO, doc="share of a frame's area that lies under lines, 0..1: mean over the frames"),
            Column("lines", pa.list_(TIMED_LINE_TYPE), VIDEO, wide=True, doc="as of pictures, with start, end: seconds"),
        ]
    return [
        Column("text", pa.string(), IMAGE, doc="the lines in reading order, a line break between them"),
        Column("confidence", pa.float64(), IMAGE, doc="mean over the lines, 0..1; 0 without any"),
        Column("n_lines", pa.int32(), IMAGE, doc="lines read"),
        Column("rotation", pa.int32(), IMAGE, doc="degrees clockwise that the picture was turned by to be read: 0, 90, 180 or 270"),
        Column("coverage", pa.float64(), IMAGE, doc="share of the picture's area that lies under lines, 0..1"),
        Column("lines", pa.list_(LINE_TYPE), IMAGE, wide=True, doc="each line: polygon x, y of 4 corners as shares of width and height"),
    ]


def _check(what: What) -> None:
    if what.language and what.rec != PACKAGE:
        raise ValueError(f"language: {what.language} would take another recogniser than rec: {what.rec}; write one of the two")
    check_moments(what)
    check_model("det", what.det)
    check_model("rec", _recogniser(what))
    if not 64 <= what.longest <= 4000:
        raise ValueError(f"longest: {what.longest} is outside 64..4000 pixels")
    if what.tiles not in ("off", "auto") and (isinstance(what.tiles, str | bool) or not 256 <= what.tiles <= 4000):
        raise ValueError(f"tiles: {what.tiles} is none of off, auto and 256..4000 pixels")
    if what.rotate not in ("off", "auto"):
        raise ValueError(f"rotate: {what.rotate} is neither off nor auto")
    if not 0 <= what.whole <= 1:
        raise ValueError(f"whole: {what.whole} is no confidence, 0..1; 0 = never")


STEP = Step(
    version=2,
    level="medium",
    applies=MEDIA_KINDS,
    prefix="ocr_",
    what=What,
    how=OcrHow,
    columns=_columns,
    reads=lambda what: ("media", *([what.at] if what.at else [])),
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
)

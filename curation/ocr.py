"""Reads the text in a picture with PaddleOCR (detection, then recognition of each line) on ONNX Runtime: lines, boxes, confidences."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.ocr_models import PACKAGE, check_model, model_identity, prepare_model
from curation.step import Column, How, Result, Row, Step
from curation.view import MediaView, each
from curation.weights import existing_path
from shards.errors import InfrastructureError

IMAGE = frozenset({"image"})
LINE_TYPE = pa.struct(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("polygon", pa.list_(pa.float32()), nullable=False),
    ]
)
# Lines recognised at once are padded to the widest of them, which shows in the last digits: a constant, and never over two pictures.
LINES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class What:
    """det, rec  detection and recognition model, each "package:rapidocr" (PP-OCRv6 small: Latin, Chinese, Japanese), a folder with
              inference.onnx and inference.yml, or a model's name, which PaddleOCR downloads.
    longest   a picture's longer side, pixels, as the detector sees it; larger ones are shrunk for it. Lines are read at full size.
    """

    det: str = PACKAGE
    rec: str = PACKAGE
    longest: int = 960

    def __post_init__(self) -> None:
        object.__setattr__(self, "det", existing_path(self.det))
        object.__setattr__(self, "rec", existing_path(self.rec))


@dataclass(frozen=True, slots=True)
class OcrHow(How):
    """device: "cpu" or "gpu:0" (wants onnxruntime-gpu).   threads: of ONNX Runtime, of one actor."""

    batch: int = 8
    device: str = "cpu"
    threads: int = 1


def _open(what: What, how: OcrHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    reader = _reader(what, how)
    return lambda views: each(views, lambda view: read(reader, what, view))


def _reader(what: What, how: OcrHow) -> Any:
    os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")  # else importing it asks the network which hub is near
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
    from paddleocr import PaddleOCR

    logging.getLogger("paddlex").setLevel(logging.ERROR)
    det, rec = prepare_model("det", what.det), prepare_model("rec", what.rec)
    try:
        return PaddleOCR(
            text_detection_model_name=det.name,
            text_detection_model_dir=None if det.folder is None else str(det.folder),
            text_recognition_model_name=rec.name,
            text_recognition_model_dir=None if rec.folder is None else str(rec.folder),
            text_recognition_batch_size=LINES_AT_ONCE,
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            engine="onnxruntime",
            engine_config={"intra_op_num_threads": how.threads, "inter_op_num_threads": 1},
            device=how.device,
        )
    except (OSError, RuntimeError, ValueError, Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise InfrastructureError(f"OCR models {what.det} and {what.rec} cannot be loaded: {error}") from error


def read(reader: Any, what: What, view: MediaView) -> Row:
    """The row of one picture. Raises DecodeError, LimitError, SourceError."""
    pixels = view.image()
    height, width = pixels.shape[:2]
    [found] = reader.predict(
        np.ascontiguousarray(pixels[:, :, ::-1]),  # BGR
        text_det_limit_side_len=what.longest,
        text_det_limit_type="max",
        text_rec_score_thresh=0.0,
    )
    polygons = np.array([np.asarray(p, dtype=np.float64).reshape(4, 2) for p in found["rec_polys"]]).reshape(-1, 4, 2)
    shares = np.clip(polygons / (width, height), 0, 1).astype(np.float32).reshape(-1, 8)
    lines = [
        {"text": found["rec_texts"][i], "confidence": float(found["rec_scores"][i]), "polygon": shares[i].tolist()}
        for i in reading_order(polygons)
        if found["rec_texts"][i].strip()
    ]
    return {
        "text": "\n".join(line["text"] for line in lines),
        "confidence": float(np.mean([line["confidence"] for line in lines])) if lines else 0.0,
        "n_lines": len(lines),
        "lines": lines,
    }


def reading_order(polygons: np.ndarray) -> list[int]:
    """Places of the polygons (n, 4, 2: x, y in pixels) from top to bottom, within a row from left to right.

    A row is opened by the highest polygon left and takes those whose middle height lies within it. Columns of text are not told apart.
    """
    tops, bottoms, lefts = polygons[:, :, 1].min(1), polygons[:, :, 1].max(1), polygons[:, :, 0].min(1)
    waiting = sorted(range(len(polygons)), key=lambda i: (tops[i], lefts[i]))
    order: list[int] = []
    while waiting:
        first = waiting[0]
        row = [i for i in waiting if i == first or tops[first] <= (tops[i] + bottoms[i]) / 2 < bottoms[first]]
        order += sorted(row, key=lambda i: (lefts[i], tops[i]))
        waiting = [i for i in waiting if i not in row]
    return order


def _identity(what: What) -> dict[str, Any]:
    return {"det": model_identity("det", what.det), "rec": model_identity("rec", what.rec), "longest": what.longest}


def _columns(what: What) -> list[Column]:
    return [
        Column("text", pa.string(), IMAGE, doc="the lines in reading order, a line break between them"),
        Column("confidence", pa.float64(), IMAGE, doc="mean over the lines, 0..1; 0 without any"),
        Column("n_lines", pa.int32(), IMAGE, doc="lines read"),
        Column("lines", pa.list_(LINE_TYPE), IMAGE, wide=True, doc="each line: polygon x, y of 4 corners as shares of width and height"),
    ]


def _check(what: What) -> None:
    check_model("det", what.det)
    check_model("rec", what.rec)
    if not 64 <= what.longest <= 4000:
        raise ValueError(f"longest: {what.longest} is outside 64..4000 pixels")


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="ocr_",
    what=What,
    how=OcrHow,
    columns=_columns,
    reads=lambda what: ("media",),
    open=_open,
    identity=_identity,
    check=_check,
)

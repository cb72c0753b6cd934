"""The two models of OCR at work on one picture: PaddleOCR's detector finds lines, its recogniser reads them, on ONNX Runtime."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.ocr_models import OcrModel, device_of
from shards.errors import InfrastructureError

LINE_HEIGHT = 48  # pixels, as the recogniser sees a line
WIDEST = 3200  # pixels of a line at that height; a longer one is squeezed
STRIDE = 32  # lines are padded to a multiple of it, so that lines of one width can be read together and none depends on another
_SHORTEST = 64  # pixels: a picture whose shorter side is less is enlarged to it for the detector, as PaddleOCR does
_TALL = 1.5  # height to width from which a line is taken as turned
_GREY = 127  # what the recogniser was taught to see behind the end of a line


@dataclass(frozen=True, slots=True)
class Engine:
    """detect   (BGR uint8 H×W×3, longer side the detector may see) -> polygons float64 (n, 4, 2), x and y in pixels of that picture.
    recognise   pictures of lines (BGR uint8 h×w×3) -> text and confidence 0..1 of each. A line's answer depends on that line alone.
    """

    detect: Callable[[np.ndarray, int], np.ndarray]
    recognise: Callable[[Sequence[np.ndarray]], list[tuple[str, float]]]


def open_engine(det: OcrModel, rec: OcrModel, device: str, threads: int, lines: int) -> Engine:
    """Loads both models. `lines`: recognised at once. Raises InfrastructureError with the mend."""
    where = device_of(device)
    os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")  # else importing it asks the network which hub is near
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
    from paddleocr import TextDetection, TextRecognition

    logging.getLogger("paddlex").setLevel(logging.ERROR)
    common = {
        "engine": "onnxruntime",
        "engine_config": {"intra_op_num_threads": threads, "inter_op_num_threads": 1},
        "device": where,
    }
    try:
        detector = TextDetection(model_name=det.name, model_dir=str(det.folder), thresh=0.3, box_thresh=0.6, unclip_ratio=1.5, **common)
        recogniser = TextRecognition(model_name=rec.name, model_dir=str(rec.folder), **common)
    except (OSError, RuntimeError, ValueError, KeyError, Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise InfrastructureError(f"OCR models {det.folder} and {rec.folder} cannot be loaded: {error}") from error
    return Engine(
        detect=lambda picture, longest: _detect(detector, picture, longest),
        recognise=lambda pictures: _recognise(recogniser, pictures, lines),
    )


def _detect(detector: Any, picture: np.ndarray, longest: int) -> np.ndarray:
    small = min(picture.shape[:2]) < _SHORTEST
    [found] = detector.predict(picture, batch_size=1, limit_side_len=_SHORTEST if small else longest, limit_type="min" if small else "max")
    polygons = np.asarray(found["dt_polys"], dtype=np.float64).reshape(-1, 4, 2)
    sides = np.linalg.norm(np.roll(polygons, -1, axis=1) - polygons, axis=2)  # (n, 4)
    return polygons[sides.min(axis=1, initial=np.inf) >= 1]


def cut_line(picture: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """The line in a polygon (4, 2) as an upright strip; a tall one is turned counter-clockwise, as if it ran from the top down."""
    import cv2

    corners = clockwise(polygon)
    width = max(int(max(_distance(corners[0], corners[1]), _distance(corners[3], corners[2]))), 1)
    height = max(int(max(_distance(corners[0], corners[3]), _distance(corners[1], corners[2]))), 1)
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    strip = cv2.warpPerspective(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC)
    return np.rot90(strip) if height >= _TALL * width else strip


def clockwise(polygon: np.ndarray) -> np.ndarray:
    """The four corners from the top left one on: the two leftmost, the upper first, begin and end the walk."""
    by_x = polygon[np.lexsort((polygon[:, 1], polygon[:, 0]))]
    left, right = by_x[:2], by_x[2:]
    left, right = left[np.argsort(left[:, 1], kind="stable")], right[np.argsort(right[:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]], dtype=np.float64)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.hypot(a[0] - b[0], a[1] - b[1])


def _recognise(recogniser: Any, pictures: Sequence[np.ndarray], at_once: int) -> list[tuple[str, float]]:
    strips = [_strip(picture) for picture in pictures]
    answers: list[tuple[str, float]] = [("", 0.0)] * len(strips)
    widths = np.array([strip.shape[1] for strip in strips])
    for width in np.unique(widths):
        places = np.flatnonzero(widths == width)
        found = recogniser.predict([strips[i] for i in places], batch_size=at_once)
        for place, line in zip(places, found, strict=True):
            answers[place] = (str(line["rec_text"]), float(line["rec_score"]))
    return answers


def _strip(picture: np.ndarray) -> np.ndarray:
    import cv2

    height, width = picture.shape[:2]
    wanted = min(max(math.ceil(LINE_HEIGHT * width / height), 1), WIDEST)
    resized = cv2.resize(np.ascontiguousarray(picture), (wanted, LINE_HEIGHT))
    padded = np.full((LINE_HEIGHT, -(-wanted // STRIDE) * STRIDE, 3), _GREY, np.uint8)
    padded[:, :wanted] = resized
    return padded

"""Where faces are: MTCNN with the weights of its package, or OpenCV's YuNet from a file. For rules, and for a blur at write time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.models import Model
from curation.step import Column, How, Result, Row, Step
from curation.view import MediaView, each
from curation.weights import existing_path, file_sha256, package_file
from shards.errors import InfrastructureError

IMAGE = frozenset({"image"})
PACKAGE = "package:facenet-pytorch"
INSTALL = "pip install --no-deps -r requirements-nodeps.txt (facenet-pytorch 2.6.0; with its dependencies it would bring another torch)"
NETS = ("pnet", "rnet", "onet")
BOX_TYPE = pa.struct(
    [
        pa.field("box", pa.list_(pa.float32()), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
    ]
)
MTCNN_THRESHOLDS = [0.6, 0.7, 0.7]  # of its three nets: Zhang et al. 2016, as the package has them
MTCNN_LEAST = 12  # pixels: its first net sees no less
BORDER = 16  # pixels: a box that the second net moves off the picture would end it; around a border none can be off wholly

Box = tuple[float, float, float, float, float]  # left, top, right, bottom in pixels, confidence
Detector = Callable[[np.ndarray], list[Box]]


@dataclass(frozen=True, slots=True)
class What:
    """model       "package:facenet-pytorch" (MTCNN) or the path of a YuNet model, face_detection_yunet_….onnx of OpenCV's model zoo.
    confidence  0..1 below which a box is no face. MTCNN is sure of much: 0.95 there; YuNet's own default is 0.9.
    longest     a picture's longer side, pixels, as the detector sees it; larger ones are shrunk for it.
    smallest    a face's shorter side, pixels as the detector sees it, from which it is looked for.
    """

    model: str = PACKAGE
    confidence: float = 0.95
    longest: int = 1024
    smallest: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", existing_path(self.model))


@dataclass(frozen=True, slots=True)
class FacesHow(How):
    """device: of MTCNN: "auto" (CUDA where there is one), "cpu", "cuda:1"; YuNet runs on the CPU."""

    batch: int = 16
    device: str = "auto"


def _open(what: What, how: FacesHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    detect = _mtcnn(what, how) if what.model == PACKAGE else _yunet(what)
    return lambda views: each(views, lambda view: faces(detect, what, view.image()))


def faces(detect: Detector, what: What, pixels: np.ndarray) -> Row:
    """The row of uint8 H×W×3."""
    height, width = pixels.shape[:2]
    scale = min(1.0, what.longest / max(height, width))
    if scale < 1:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    seen_height, seen_width = pixels.shape[:2]
    found = []
    for left, top, right, bottom, confidence in detect(pixels):
        corners = np.clip([left / seen_width, top / seen_height, right / seen_width, bottom / seen_height], 0, 1).astype(np.float32)
        if confidence >= what.confidence and corners[2] > corners[0] and corners[3] > corners[1]:
            found.append({"box": corners.tolist(), "confidence": confidence})
    found.sort(key=lambda face: (-_area(face["box"]), face["box"]))
    return {"n": len(found), "largest": _area(found[0]["box"]) if found else 0.0, "boxes": found}


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _mtcnn(what: What, how: FacesHow) -> Detector:
    import torch

    for net in NETS:
        _weights(net)
    from facenet_pytorch import MTCNN  # loads its weights by torch.load, which takes tensors only

    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if how.device == "auto" else how.device)
    net = MTCNN(keep_all=True, min_face_size=what.smallest, thresholds=MTCNN_THRESHOLDS, post_process=False, device=device).eval()

    def detect(pixels: np.ndarray) -> list[Box]:
        if math.floor(min(pixels.shape[:2]) * MTCNN_LEAST / what.smallest) < MTCNN_LEAST:
            return []  # smaller than the smallest face; the package fails on an empty pyramid
        framed = np.pad(pixels, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)))
        try:
            with torch.inference_mode():
                boxes, confidences = net.detect(framed)
        except torch.OutOfMemoryError as error:
            raise InfrastructureError("faces: a picture does not fit the device: lower `longest`") from error
        if boxes is None:
            return []
        found = np.column_stack([boxes - BORDER, confidences]).tolist()
        return [(left, top, right, bottom, sure) for left, top, right, bottom, sure in found]

    return detect


def _yunet(what: What) -> Detector:
    import cv2

    path = _file(what)
    try:
        net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), what.confidence, 0.3, 5000)
    except cv2.error as error:
        raise InfrastructureError(f"faces: {path} is no YuNet model that this OpenCV reads: {error}") from error

    def detect(pixels: np.ndarray) -> list[Box]:
        height, width = pixels.shape[:2]
        if min(height, width) < what.smallest:
            return []
        net.setInputSize((width, height))
        _, found = net.detect(np.ascontiguousarray(pixels[:, :, ::-1]))
        rows = [] if found is None else found.tolist()
        return [(x, y, x + w, y + h, row[-1]) for row in rows for x, y, w, h in [row[:4]] if min(w, h) >= what.smallest]

    return detect


def _weights(net: str) -> Path:
    return package_file("facenet_pytorch", f"data/{net}.pt", INSTALL)


def _file(what: What) -> Path:
    path = Path(what.model)
    if not path.is_file():
        raise InfrastructureError(f"model {path} is not there; give {PACKAGE} or the path of a YuNet .onnx that every node can read")
    return path


def _identity(what: What) -> dict[str, Any]:
    """Weights by content: the same ones elsewhere give the same rows."""
    files = [_weights(net) for net in NETS] if what.model == PACKAGE else [_file(what)]
    detector = "mtcnn" if what.model == PACKAGE else "yunet"
    return {
        "model": [detector, *map(file_sha256, files)],
        "confidence": what.confidence,
        "longest": what.longest,
        "smallest": what.smallest,
    }


def _columns(what: What) -> list[Column]:
    return [
        Column("n", pa.int32(), IMAGE, doc="faces"),
        Column("largest", pa.float64(), IMAGE, doc="share of the picture that the largest face's box covers; 0 without any"),
        Column("boxes", pa.list_(BOX_TYPE), IMAGE, wide=True, doc="largest first: box = left, top, right, bottom as shares 0..1"),
    ]


def _check(what: What) -> None:
    if what.model == PACKAGE:
        for net in NETS:
            _weights(net)
    else:
        _file(what)
    if not 0 < what.confidence <= 1:
        raise ValueError(f"confidence: {what.confidence:g} is outside 0..1")
    if not 64 <= what.longest <= 4096:
        raise ValueError(f"longest: {what.longest} is outside 64..4096 pixels")
    if not MTCNN_LEAST <= what.smallest <= what.longest:
        raise ValueError(f"smallest: {what.smallest} is outside {MTCNN_LEAST}..{what.longest} pixels (`longest`)")


def _models(what: What) -> list[Model]:
    return [] if what.model == PACKAGE else [Model(what.model, "file")]


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="faces_",
    what=What,
    how=FacesHow,
    columns=_columns,
    reads=lambda what: ("media",),
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
)

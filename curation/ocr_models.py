"""OCR models as PaddleOCR wants them: a folder each with inference.onnx and inference.yml, from a package, a folder, or by name."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from curation.weights import file_sha256, package_file
from shards.errors import InfrastructureError
from shards.sample import digest_of

Part = Literal["det", "rec"]

PACKAGE = "package:rapidocr"
INSTALL = "pip install --no-deps -r requirements-nodeps.txt (rapidocr 3.10.0; with its dependencies two opencv wheels would clash)"
_NAMES: dict[Part, str] = {"det": "PP-OCRv6_small_det", "rec": "PP-OCRv6_small_rec"}
_FILES: dict[Part, str] = {"det": "models/PP-OCRv6_det_small.onnx", "rec": "models/PP-OCRv6_rec_small.onnx"}
_FORMAT = 1  # of the inference.yml written here


@dataclass(frozen=True, slots=True)
class Model:
    """name: PaddleOCR's name of the model.   folder: where it lies; None = PaddleOCR finds or downloads it by name."""

    name: str
    folder: Path | None


def check_model(part: Part, model: str) -> None:
    """Raises ValueError for an empty value, InfrastructureError for files that are not there."""
    if not model:
        raise ValueError(f"{part}: empty; write {PACKAGE}, a folder with inference.onnx and inference.yml, or a model's name")
    if model == PACKAGE:
        _packaged(part)
    elif _is_folder(model):
        _name_in(Path(model))


def model_identity(part: Part, model: str) -> list[Any]:
    """By content for files, by name for what PaddleOCR downloads."""
    if model == PACKAGE:
        return ["package", _FORMAT, file_sha256(_packaged(part))]
    if _is_folder(model):
        return ["folder", *([file.name, file_sha256(file)] for file in sorted(Path(model).iterdir()) if file.name.startswith("inference."))]
    return ["name", model]


def prepare_model(part: Part, model: str) -> Model:
    """The model ready for PaddleOCR. Raises InfrastructureError.

    The package's files get their folder in the cache ($FOVEA_CACHE, else the user's), whole or not at all.
    """
    if model == PACKAGE:
        return Model(_NAMES[part], _cached(part, _packaged(part)))
    if _is_folder(model):
        return Model(_name_in(Path(model)), Path(model))
    return Model(model, None)


def cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("FOVEA_CACHE") or Path(home) / "fovea")


def _is_folder(model: str) -> bool:
    return os.sep in model or Path(model).is_dir()


def _packaged(part: Part) -> Path:
    return package_file("rapidocr", _FILES[part], INSTALL)


def _name_in(folder: Path) -> str:
    try:
        name = yaml.safe_load((folder / "inference.yml").read_text("utf-8"))["Global"]["model_name"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InfrastructureError(f"OCR model folder {folder}: no readable inference.yml with Global.model_name: {error}") from error
    if not (folder / "inference.onnx").is_file():
        raise InfrastructureError(f"OCR model folder {folder}: inference.onnx is not there; export the model with paddle2onnx")
    return str(name)


def _cached(part: Part, onnx: Path) -> Path:
    folder = cache_dir() / "ocr" / digest_of(_FORMAT, file_sha256(onnx)) / _NAMES[part]
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            shutil.copyfile(onnx, made / "inference.onnx")
            (made / "inference.yml").write_text(yaml.safe_dump(_config(part, onnx), allow_unicode=True, sort_keys=False), "utf-8")
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first, with the same files
                    raise
    except OSError as error:
        raise InfrastructureError(f"the OCR models' folder {folder} cannot be written: {error}; set FOVEA_CACHE to one that can") from error
    return folder


def _config(part: Part, onnx: Path) -> dict[str, Any]:
    """PP-OCRv6's own settings (PaddleOCR's inference.yml of these models)."""
    if part == "det":
        normalise = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
        operators: list[dict[str, Any]] = [
            {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
            {"DetResizeForTest": {"resize_long": 960}},
            {"NormalizeImage": normalise},
            {"ToCHWImage": None},
        ]
        decode: dict[str, Any] = {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5}
    else:
        operators = [{"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}, {"RecResizeImg": {"image_shape": [3, 48, 320]}}]
        decode = {"name": "CTCLabelDecode", "character_dict": _characters(onnx)}
    return {"Global": {"model_name": _NAMES[part]}, "PreProcess": {"transform_ops": operators}, "PostProcess": decode}


def _characters(onnx: Path) -> list[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    characters: str = session.get_modelmeta().custom_metadata_map["character"]
    return characters.split("\n")

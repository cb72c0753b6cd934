"""OCR models as PaddleOCR wants them: a folder each with inference.onnx and inference.yml, from a package, a folder, or the model hub."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from curation.models import Model, cache_dir, kind_of, local_folder
from curation.weights import file_sha256, package_file
from shards.errors import InfrastructureError
from shards.sample import digest_of

Part = Literal["det", "rec"]

PACKAGE = "package:rapidocr"
INSTALL = "pip install --no-deps -r requirements-nodeps.txt (rapidocr 3.10.0; with its dependencies two opencv wheels would clash)"
NEEDS = ("inference.onnx", "inference.yml")
_NAMES: dict[Part, str] = {"det": "PP-OCRv6_small_det", "rec": "PP-OCRv6_small_rec"}
_FILES: dict[Part, str] = {"det": "models/PP-OCRv6_det_small.onnx", "rec": "models/PP-OCRv6_rec_small.onnx"}
_MODULES: dict[Part, str] = {"det": "text_detection", "rec": "text_recognition"}
_FORMAT = 1  # of the inference.yml written here


@dataclass(frozen=True, slots=True)
class OcrModel:
    """name: PaddleOCR's name of the model, which says how it is run.   folder: where it lies."""

    name: str
    folder: Path


def check_model(part: Part, model: str) -> None:
    """Raises ValueError for words that mean nothing, InfrastructureError for files that are not there or cannot be right."""
    if not model:
        raise ValueError(f"{part}: empty; write {PACKAGE}, a folder with {' and '.join(NEEDS)}, an id of the hub, or a name of PaddleOCR's")
    if model == PACKAGE:
        _packaged(part)
    elif _is_folder(model):
        _checked_folder(part, Path(model))
    elif kind_of(model) != "hub" and model not in paddle_names(part):
        raise ValueError(
            f"{part}: {model!r} is no folder, no id of the hub (org/name), and no {_MODULES[part]} model that PaddleOCR knows; it knows "
            + ", ".join(sorted(paddle_names(part)))
        )


def listed_model(part: Part, model: str, revision: str) -> Model:
    """The model as a step lists it (`Step.models`): one of PaddleOCR's names is a repository of its organisation on the hub."""
    if model == PACKAGE:
        return Model(PACKAGE, "package", needs=(_FILES[part],), wants=(_FILES[part],))
    if _is_folder(model):
        return Model(model, "folder", needs=NEEDS, wants=NEEDS)
    return Model(_hub_id(model), "hub", revision, field=f"{part}_revision", needs=NEEDS, wants=NEEDS)


def model_identity(part: Part, model: str, revision: str = "") -> list[Any]:
    """By content for files, by id and commit for what the hub has."""
    if model == PACKAGE:
        return ["package", _FORMAT, file_sha256(_packaged(part))]
    if _is_folder(model):
        return ["folder", *([name, file_sha256(Path(model) / name)] for name in NEEDS)]
    return ["hub", _hub_id(model), revision]


def prepare_model(part: Part, model: str, revision: str = "") -> OcrModel:
    """The model ready for PaddleOCR. Raises InfrastructureError.

    The package's files get their folder in the cache ($FOVEA_CACHE, else the user's), whole or not at all.
    """
    if model == PACKAGE:
        return OcrModel(_NAMES[part], _cached(part, _packaged(part)))
    folder = Path(model) if _is_folder(model) else local_folder(_hub_id(model), revision, NEEDS, needs=NEEDS)
    name = _checked_folder(part, folder)
    if part == "rec":
        _check_characters(folder)
    return OcrModel(name, folder)


def paddle_names(part: Part) -> frozenset[str]:
    """The models PaddleOCR can run, as its installed package lists them (a file each); none of it is imported."""
    spec = importlib.util.find_spec("paddlex")
    places = (spec.submodule_search_locations or []) if spec else []
    return frozenset(path.stem for place in places for path in Path(place, "configs", "modules", _MODULES[part]).glob("*.yaml"))


def device_of(device: str) -> str:
    """ "cpu" or "gpu:<n>", checked. Raises InfrastructureError for a device that is none, or that the installed ONNX Runtime cannot use."""
    import onnxruntime

    if not re.fullmatch(r"cpu|gpu(:\d+)?", device):
        raise InfrastructureError(f"device: {device!r} is none that OCR runs on; write cpu, gpu or gpu:<number>")
    if device != "cpu" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise InfrastructureError(
            f"device: {device} wants onnxruntime-gpu, installed is an ONNX Runtime for {', '.join(onnxruntime.get_available_providers())}: "
            f"pip uninstall onnxruntime, pip install onnxruntime-gpu=={onnxruntime.__version__}; or write `device: cpu`"
        )
    return "gpu:0" if device == "gpu" else device


def _is_folder(model: str) -> bool:
    return kind_of(model) == "folder"


def _hub_id(model: str) -> str:
    return model if kind_of(model) == "hub" else f"PaddlePaddle/{model}_onnx"


def _packaged(part: Part) -> Path:
    return package_file("rapidocr", _FILES[part], INSTALL)


def _checked_folder(part: Part, folder: Path) -> str:
    """The model's name in PaddleOCR, from a folder that has all that it needs. Raises InfrastructureError."""
    for name in NEEDS:
        if not (folder / name).is_file():
            raise InfrastructureError(f"OCR model folder {folder}: {name} is not there; export the model with paddle2onnx, copy both files")
    try:
        config = yaml.safe_load((folder / "inference.yml").read_text("utf-8"))
        name = str(config["Global"]["model_name"])
        characters = config["PostProcess"].get("character_dict")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InfrastructureError(
            f"OCR model folder {folder}: no readable inference.yml with Global.model_name and PostProcess: {error}"
        ) from error
    if name not in paddle_names(part):
        raise InfrastructureError(
            f"OCR model folder {folder}: Global.model_name {name!r} is no {_MODULES[part]} model that PaddleOCR knows; it knows "
            + ", ".join(sorted(paddle_names(part)))
        )
    if part == "rec" and (not isinstance(characters, list) or not all(isinstance(c, str) for c in characters) or not characters):
        raise InfrastructureError(f"OCR model folder {folder}: inference.yml has no list of texts PostProcess.character_dict")
    return name


def _check_characters(folder: Path) -> None:
    """Raises InfrastructureError where the recogniser has another number of classes than the list of characters with blank and space."""
    config = yaml.safe_load((folder / "inference.yml").read_text("utf-8"))
    classes = _session(folder / "inference.onnx").get_outputs()[0].shape[-1]
    wanted = len(config["PostProcess"]["character_dict"]) + 2
    if isinstance(classes, int) and classes != wanted:
        raise InfrastructureError(
            f"OCR model folder {folder}: inference.onnx tells {classes} characters apart, inference.yml lists {wanted} with blank and "
            "space; take both files from one model"
        )


def _session(onnx: Path) -> Any:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile

    try:
        return onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise InfrastructureError(f"OCR model {onnx} cannot be loaded: {error}; copy it again") from error


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
        decode = {"name": "CTCLabelDecode", "character_dict": _session(onnx).get_modelmeta().custom_metadata_map["character"].split("\n")}
    return {"Global": {"model_name": _NAMES[part]}, "PreProcess": {"transform_ops": operators}, "PostProcess": decode}

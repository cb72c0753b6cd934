"""Sizes of a model, read from config.json or from configs/shapes, by which costs and memory are predicted. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from shards.errors import ConfigError
from training.stages import ModelConfig, close_to

QWEN_TOKENS = 151_665  # of Qwen2.5's tokenizer: the vocabulary of a tiny model, where the tokenizer is not known


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the encoder, in transformers' words. The defaults are those of SigLIP's, transformers' and the authors' config classes
    alike: what a config.json leaves out is this."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class TextShape:
    """Sizes of the language model; the defaults are those of transformers' Qwen2Config."""

    vocab_size: int = 151_936
    hidden_size: int = 4096
    intermediate_size: int = 22_016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    tie_word_embeddings: bool = False
    head_dim: int | None = None


S = TypeVar("S", VisionShape, TextShape)


@dataclass(frozen=True, slots=True)
class Shape:
    """What training.flops.model_flops and the memory of training are computed from."""

    vision_config: VisionShape
    text_config: TextShape


def shape_of(config: ModelConfig, tokens: int | None = None) -> Shape:
    """Of the model that `config` describes: from the config.json of its directories, else by the name in `model.sizes`.

    tokens: vocabulary of the tokenizer, which the tiny preset takes its own from (default: Qwen2.5's).
    Raises ConfigError where neither the directories nor `sizes` say it, and for a config.json of another architecture.
    """
    if config.preset == "tiny":
        return _tiny(config, tokens or QWEN_TOKENS)
    folders = [Path(str(folder)) for folder in ((config.vision, config.llm) if config.preset == "parts" else (config.path,))]
    absent = [str(folder) for folder in folders if not (folder / "config.json").is_file()]
    if not absent:
        return Shape(vision_shape(folders[0]), text_shape(folders[-1]))
    if config.sizes is not None:
        return named_shape(config.sizes)
    raise ConfigError(
        f"the sizes of the model are not known: no config.json in {', '.join(absent)}; get the checkpoint (its config.json is enough to "
        f"plan), or name them under model.sizes: {', '.join(_known_shapes())}"
    )


def named_shape(name: str) -> Shape:
    """configs/shapes/<name>.json. Raises ConfigError for a name that is not there."""
    known = _known_shapes()
    if name not in known:
        raise ConfigError(f"model.sizes: no shape {name!r}{close_to(name, known)}; there are {', '.join(known)}")
    value = json.loads((resources.files("configs.shapes") / f"{name}.json").read_text("utf-8"))
    return Shape(VisionShape(**value["vision_config"]), TextShape(**value["text_config"]))


def vision_shape(folder: Path) -> VisionShape:
    """Sizes of the encoder in a checkpoint: a SigLIP, an encoder alone, or a whole VideoLLaMA3 in either layout. Raises ConfigError."""
    values = config_json(folder)
    kind = values.get("model_type")
    if kind in ("siglip", "video_llama_3"):
        return _taken(VisionShape, values.get("vision_config") or {})
    if kind in ("siglip_vision_model", "video_llama_3_vision", "videollama3_vision_encoder"):
        return _taken(VisionShape, values)
    if kind == "videollama3_qwen2":
        return _taken(VisionShape, original_encoder(folder, values))
    raise ConfigError(f"{folder}: a model of type {kind!r} has no encoder for VideoLLaMA3; wanted is a SigLIP or a VideoLLaMA3")


def text_shape(folder: Path) -> TextShape:
    """Sizes of the language model in a checkpoint: a Qwen2 or a whole VideoLLaMA3 in either layout. Raises ConfigError."""
    values = config_json(folder)
    kind = values.get("model_type")
    if kind == "video_llama_3":
        tied = {"tie_word_embeddings": True} if values.get("tie_word_embeddings") else {}
        return _taken(TextShape, {**(values.get("text_config") or {}), **tied})
    if kind in ("qwen2", "videollama3_qwen2"):
        return _taken(TextShape, values)
    raise ConfigError(f"{folder}: a model of type {kind!r}; wanted is a qwen2 language model or a VideoLLaMA3")


def original_encoder(folder: Path, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The encoder's config of an original checkpoint: in its config.json (released ones), or in the local directory named there (those that
    the authors' trainer writes). Raises ConfigError where neither is there."""
    inline = values.get("vision_encoder_config")
    if isinstance(inline, Mapping):
        return inline
    named = values.get("vision_encoder") or values.get("mm_vision_encoder")
    for place in (folder / str(named), Path(str(named))) if named else ():
        if (place / "config.json").is_file():
            return config_json(place)
    raise ConfigError(
        f"{folder / 'config.json'}: it has no vision_encoder_config and names its encoder only as {named!r}; "
        "put the config.json of that encoder there under the key vision_encoder_config"
    )


def config_json(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises ConfigError."""
    path = folder / "config.json"
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; download the checkpoint, and set its path under `model:`") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object; download the checkpoint again")
    return value


def _tiny(config: ModelConfig, tokens: int) -> Shape:
    tiny = config.tiny
    vision = VisionShape(tiny.vision_hidden, tiny.vision_hidden * 4, tiny.vision_layers, tiny.vision_heads, patch_size=tiny.patch)
    text = TextShape(tokens, tiny.hidden, tiny.hidden * 4, tiny.llm_layers, tiny.heads, tiny.kv_heads, tie_word_embeddings=True)
    return Shape(vision, text)


def _taken(kind: type[S], values: Mapping[str, Any]) -> S:
    return kind(**{field.name: values[field.name] for field in fields(kind) if values.get(field.name) is not None})


def _known_shapes() -> list[str]:
    return sorted(entry.name.removesuffix(".json") for entry in resources.files("configs.shapes").iterdir() if entry.name.endswith(".json"))

"""Whole models from checkpoints: SigLIP and Qwen2.5 joined by a new projector, or a VideoLLaMA3 in transformers' or its authors' layout.

Every parameter comes from a named key of a checkpoint, or is new by design (the projector of joined parts); training.tensors.fill keeps
the account. Nothing touches the network and no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shards.errors import ConfigError, InfrastructureError
from training.original import text_config as original_text_config
from training.original import transformers_name
from training.shapes import VisionShape, config_json, vision_shape
from training.tensors import DROPPED, Source, fill

if TYPE_CHECKING:
    from transformers import Qwen2Config, VideoLlama3Config

VISION, PROJECTOR = "model.vision_model.", "model.projector."
_REST = (PROJECTOR, "model.language_model.", "lm_head.")  # of a whole model of which the encoder alone is taken
# The encoder's 2D-RoPE replaces SigLIP's absolute positions, and nothing pools (VideoLLaMA3 report §3.1).
_OF_SIGLIP_ONLY = ("embeddings.position_embedding.", "embeddings.position_ids", "head.")
_BESIDE_SIGLIP = ("text_model.", "logit_scale", "logit_bias")


def from_parts(vision: Path, llm: Path, ids: Mapping[str, int], seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A VideoLlama3ForConditionalGeneration from two local directories; sdpa, weights in `dtype`.

    vision  a SigLIP (the whole or its vision half), an encoder that VideoLLaMA3's authors released alone, or a whole VideoLLaMA3 in either
            layout, the end of a stage included: its encoder is taken. SigLIP's absolute positions and pooling head are left out.
    llm     a Qwen2 or Qwen2.5 causal language model, copied whole.
    ids     image_token_id, video_token_id of the tokenizer; they must lie within the language model's vocabulary.
    seed    of the projector's random numbers (2 layers, GELU; normal, Qwen's initializer_range; biases 0).
    Raises InfrastructureError for a directory that is not there or files that are torn; ConfigError for another architecture and for
    parameters that are missing, left over or of another shape.
    """
    from transformers import Qwen2Config

    for folder in (vision, llm):
        refuse_absent(folder)
    shape = vision_shape(vision)
    if config_json(llm).get("model_type") != "qwen2":
        raise ConfigError(f"{llm}: a model of type {config_json(llm).get('model_type')!r}; wanted is qwen2")
    text = Qwen2Config.from_pretrained(llm, local_files_only=True)
    beyond = [name for name in ("image_token_id", "video_token_id") if ids[name] >= text.vocab_size]
    if beyond:
        raise ConfigError(f"{llm}: its vocabulary of {text.vocab_size} has no room for {', '.join(beyond)} of the tokenizer")
    model = _empty(_joined(shape, text, ids), dtype)
    _draw_projector(model, text.initializer_range, seed)
    fill(model, [_encoder_of(vision), Source(llm, _under_language_model)], new=(PROJECTOR,))
    return _finished(model, llm)


def from_hf(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A checkpoint in transformers' layout: a released VideoLLaMA3, the end of a stage, or an export. Weights in `dtype`; sdpa."""
    from transformers import VideoLlama3Config

    refuse_absent(path)
    kind = config_json(path).get("model_type")
    if kind != "video_llama_3":
        mend = "; set preset: original" if kind == "videollama3_qwen2" else ""
        raise ConfigError(f"{path}: a model of type {kind!r}; wanted is video_llama_3{mend}")
    model = _empty(VideoLlama3Config.from_pretrained(path, local_files_only=True), dtype)
    fill(model, [Source(path, str)])
    return _finished(model, path)


def from_original(path: Path, ids: Mapping[str, int], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A checkpoint in the layout of VideoLLaMA3's authors. Weights in `dtype`; sdpa.

    ids: image_token_id and video_token_id of the tokenizer. The authors' own placeholder (image_token_index) is another id; a placeholder's
    embedding is never read, for visual tokens take its place, so that any id will do.
    """
    refuse_absent(path)
    text = original_text_config(path)
    model = _empty(_joined(vision_shape(path), text, ids), dtype)
    fill(model, [Source(path, transformers_name)])
    return _finished(model, path)


def refuse_absent(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InfrastructureError(f"no model at {folder}: there is no config.json; download the checkpoint and set its path under `model:`")


def _joined(vision: VisionShape, text: Qwen2Config, ids: Mapping[str, int]) -> VideoLlama3Config:
    from transformers import VideoLlama3Config
    from transformers.models.video_llama_3 import VideoLlama3VisionConfig

    return VideoLlama3Config(
        text_config=text,
        vision_config=VideoLlama3VisionConfig(**asdict(vision)),
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _empty(config: VideoLlama3Config, dtype: torch.dtype) -> nn.Module:
    """The model with memory that nothing has been written to: initialising billions of weights that are replaced takes minutes.

    Its rotary frequencies stay float32 whatever the dtype: rounded to bfloat16 they turn far positions by whole radians.
    """
    from transformers import VideoLlama3ForConditionalGeneration
    from transformers.initialization import no_init_weights

    config._attn_implementation = "sdpa"
    for each in (config, config.text_config, config.vision_config):
        each.dtype = dtype  # a part is built in the dtype its own checkpoint was saved in, whatever the default
    with no_init_weights(), _default_dtype(dtype):
        model: Any = VideoLlama3ForConditionalGeneration(config)
    model.tie_weights()
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _draw_projector(model: nn.Module, std: float, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.startswith(PROJECTOR):
                if parameter.ndim >= 2:
                    # drawn in float32, so that a seed means the same weights in every precision
                    parameter.copy_(torch.empty_like(parameter, dtype=torch.float32).normal_(std=std))
                else:
                    parameter.zero_()


def _encoder_of(folder: Path) -> Source:
    """The encoder in a checkpoint of any kind that shapes.vision_shape knows."""
    kind = config_json(folder)["model_type"]

    def of_siglip(key: str) -> str:
        if kind == "siglip" and not key.startswith("vision_model."):
            return DROPPED if key.startswith(_BESIDE_SIGLIP) else key
        inner = key.removeprefix("vision_model.")
        return DROPPED if inner.startswith(_OF_SIGLIP_ONLY) else VISION + inner

    def of_whole(key: str) -> str:
        name = transformers_name(key) if kind == "videollama3_qwen2" else key
        return DROPPED if name.startswith(_REST) else name

    def alone(key: str) -> str:
        return VISION + key

    ways = {"siglip": of_siglip, "siglip_vision_model": of_siglip, "video_llama_3": of_whole, "videollama3_qwen2": of_whole}
    return Source(folder, ways.get(kind, alone))


def _under_language_model(key: str) -> str:
    return "model.language_model." + key.removeprefix("model.") if key.startswith("model.") else key


def _finished(model: Any, folder: Path) -> nn.Module:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model

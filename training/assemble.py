"""The model that the paper's stage 1 starts from: a SigLIP encoder and a Qwen2.5 language model, joined by a new projector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from shards.errors import ConfigError, InfrastructureError


def from_parts(vision: Path, llm: Path, ids: Mapping[str, int], seed: int) -> nn.Module:
    """A VideoLlama3ForConditionalGeneration from two local directories in Hugging Face layout; float32, sdpa; never touches the network.

    vision  a SigLIP (the whole or its vision half). Its absolute position embeddings are left out: the encoder's 2D-RoPE replaces them;
            so is its pooling head (VideoLLaMA3 report §3.1). Everything else is copied.
    llm     a Qwen2 or Qwen2.5 causal language model, copied whole.
    ids     image_token_id, video_token_id of the tokenizer; they must lie within the language model's vocabulary.
    seed    of the projector's random numbers (2 layers, GELU).
    Raises InfrastructureError for a directory that is not there and ConfigError for one of another architecture.
    """
    from transformers import Qwen2ForCausalLM, SiglipVisionModel, VideoLlama3Config, VideoLlama3ForConditionalGeneration
    from transformers.models.video_llama_3 import VideoLlama3VisionConfig

    _refuse_other(vision, {"siglip", "siglip_vision_model"})
    _refuse_other(llm, {"qwen2"})
    encoder = SiglipVisionModel.from_pretrained(vision, local_files_only=True, dtype=torch.float32, use_safetensors=True)
    language = Qwen2ForCausalLM.from_pretrained(llm, local_files_only=True, dtype=torch.float32, use_safetensors=True)
    beyond = [name for name in ("image_token_id", "video_token_id") if ids[name] >= language.config.vocab_size]
    if beyond:
        raise ConfigError(f"{llm}: its vocabulary of {language.config.vocab_size} has no room for {', '.join(beyond)} of the tokenizer")
    shape = encoder.config
    copied = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "patch_size", "hidden_act")
    config = VideoLlama3Config(
        text_config=language.config,
        vision_config=VideoLlama3VisionConfig(**{name: getattr(shape, name) for name in copied}, layer_norm_eps=shape.layer_norm_eps),
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlama3ForConditionalGeneration(config).float()
    weights = {name.removeprefix("vision_model."): value for name, value in encoder.state_dict().items()}
    left_out = [name for name in weights if name.startswith(("head.", "embeddings.position_embedding."))]
    model.model.vision_model.load_state_dict({k: v for k, v in weights.items() if k not in left_out})
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config = language.generation_config
    return model


def _refuse_other(folder: Path, wanted: set[str]) -> None:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InfrastructureError(f"no model at {folder}: there is no config.json; download the checkpoint and set its path under `model:`")
    found = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if found not in wanted:
        raise ConfigError(f"{folder}: a model of type {found!r}; wanted is {' or '.join(sorted(wanted))}")

"""VideoLLaMA3 in the layout of its authors (model type videollama3_qwen2): what its keys and its config.json mean in transformers' terms.

Facts: github.com/DAMO-NLP-SG/VideoLLaMA3 (videollama3/model, inference/transformers_api, scripts/convert_hf_checkpoint.py) and the
config.json of the released VideoLLaMA3-2B and -7B. None of its code is run: config.json is read as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError
from training.shapes import config_json

if TYPE_CHECKING:
    from transformers import Qwen2Config

# The language model lies at the top. Released checkpoints have the encoder directly under its name; those that the authors' trainer writes
# have it once more inside a wrapper. The first prefix that fits counts.
_PREFIXES = (
    ("model.vision_encoder.vision_encoder.", "model.vision_model."),
    ("model.vision_encoder.", "model.vision_model."),
    ("model.mm_projector.", "model.projector."),
    ("model.", "model.language_model."),
)
_PROJECTOR = "mlp2x_gelu"
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def transformers_name(key: str) -> str:
    """What transformers' VideoLlama3ForConditionalGeneration calls the parameter that the authors call `key`."""
    for old, new in _PREFIXES:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def text_config(folder: Path) -> Qwen2Config:
    """The language model of an original checkpoint. Raises ConfigError for another architecture or projector."""
    from transformers import Qwen2Config

    values: Mapping[str, Any] = config_json(folder)
    if values.get("model_type") != "videollama3_qwen2":
        raise ConfigError(
            f"{folder}: a model of type {values.get('model_type')!r}; preset original wants videollama3_qwen2 "
            "(preset hf is for video_llama_3, the layout of transformers)"
        )
    if values.get("mm_projector_type") != _PROJECTOR:
        raise ConfigError(f"{folder}: its projector is {values.get('mm_projector_type')!r}; only {_PROJECTOR} is VideoLLaMA3's")
    return Qwen2Config(**{name: values[name] for name in _TEXT_FIELDS if name in values})

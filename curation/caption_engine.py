"""Which arguments of an engine a recipe may give (those that change how fast it is, none that changes what the model says), and what a
model without a chat template cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import InfrastructureError

if TYPE_CHECKING:
    from curation.caption import CaptionHow, What

_OTHER_MODEL = "makes another model of it, whose replies must not pass for this one's; give a model that is so already"
# Arguments of vLLM's engine that a recipe may not give, and why.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("model", "revision", "trust_remote_code"), "is said by `model`, `revision` and `remote_code`"),
    "dtype": "is said by `precision`",
    **dict.fromkeys(("tensor_parallel_size", "max_model_len"), "is a parameter of the step: write it beside `backend`"),
    **dict.fromkeys(("seed", "task_type", "limit_mm_per_prompt"), "is set by the step"),
    **dict.fromkeys(("tokenizer", "tokenizer_revision", "code_revision", "quantization", "hf_overrides", "hf_config_path"), _OTHER_MODEL),
    **dict.fromkeys(("mm_processor_kwargs", "rope_scaling", "kv_cache_dtype", "enable_lora", "override_generation_config"), _OTHER_MODEL),
    "hf_token": "is a secret: set HF_TOKEN in the environment",
}


TEMPLATES = ("chat_template.jinja", "chat_template.json")


def check_engine(how: CaptionHow) -> None:
    """Raises ValueError for settings of vllm that cannot work, or that are given to another backend."""
    if how.backend != "vllm" and (how.engine_kwargs or how.tensor_parallel_size != 1 or how.max_model_len):
        raise ValueError(f"tensor_parallel_size, max_model_len and engine_kwargs are of backend vllm, not of {how.backend}")
    if how.tensor_parallel_size < 1 or how.max_model_len < 0:
        raise ValueError("tensor_parallel_size is at least 1, max_model_len 0 or more")
    shared = how.tensor_parallel_size == 1 and how.gpus <= 1
    if how.backend == "vllm" and not shared and how.gpus not in (0, how.tensor_parallel_size):
        raise ValueError(f"gpus: an engine takes tensor_parallel_size: {how.tensor_parallel_size} of them; drop `gpus`")
    for name in how.engine_kwargs:
        if (told := REFUSED.get(name)) is not None:
            raise ValueError(f"engine_kwargs: {name} {told}")


def has_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template. Raises InfrastructureError for files that are no JSON."""
    if any((folder / name).is_file() for name in TEMPLATES):
        return True
    for name in ("tokenizer_config.json", "processor_config.json"):
        try:
            if (folder / name).is_file() and json.loads((folder / name).read_text("utf-8")).get("chat_template"):
                return True
        except (OSError, ValueError, AttributeError) as error:
            raise InfrastructureError(f"model directory {folder}: {name} is not readable: {error}; copy the model again") from error
    return False


def refuse_plain(what: What) -> None:
    """Raises InfrastructureError for what a model without a chat template cannot be asked."""
    if what.system:
        raise InfrastructureError(f"model {what.model} has no chat template, so it takes no `system` message; write it into the prompt")
    if what.frames > 1:
        raise InfrastructureError(
            f"model {what.model} has no chat template, so it takes one picture a question, not `frames: {what.frames}`; write `frames: 1`, "
            "`at` or `every`, or take another model"
        )

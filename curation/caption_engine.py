"""Which arguments of an engine a recipe may give: those that change how fast it is, none that changes what the model says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.caption import CaptionHow

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

"""vLLM as the captioner, through `ray.data.llm`: its processor, how a question is put to it, and what its answer says.

Any processor of `ray.data.llm` may stand in its place that takes rows of `llm_pool.QUESTIONS` and gives back `llm_pool.REPLIES`; a row
that comes with an error already, such as PASSES, passes all its stages untouched.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from curation.caption import CaptionHow, What
from curation.models import local_folder
from shards.errors import InfrastructureError, RecipeError

ERROR = "__inference_error__"  # of ray.data.llm: a row that has one passes all stages; the engine gives one to a row it cannot answer
PASSES = "fovea: no question"
RESTARTS = 3  # of one engine, whatever kills it; Ray's own default is without end
SEQUENCES = 256  # that an engine has in hand at once by default: batches enough are sent to keep it so
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def require(where: str) -> None:
    """Raises RecipeError if vllm is not installed. where: file, line and step, for the message."""
    if importlib.util.find_spec("vllm") is None:
        raise RecipeError(
            f"{where}: backend vllm is not installed: pip install 'fovea-vlm[vllm]' (in an environment of its own, on every node: "
            "docs/install.md), or take another backend, which changes nothing that was computed"
        )


def engine_cpus(how: CaptionHow) -> int:
    """CPUs that the engines hold: one for each of their workers."""
    return engines(how) * how.tensor_parallel_size


def engine_gpus(how: CaptionHow) -> float:
    """GPUs that the engines hold."""
    return engines(how) * _gpus(how)


def engines(how: CaptionHow) -> int:
    """`actors`, or as many as the cluster's GPUs feed; at least 1."""
    return how.actors or max(1, int(ray.cluster_resources().get("GPU", 0) / _gpus(how)))


def vllm_config(what: What, how: CaptionHow, folder: Path, cpus: int, share: float) -> Any:
    """The `vLLMEngineProcessorConfig` of a step. cpus, share: up to so many actors of a stage without GPU, so much of a CPU each."""
    from ray.data.llm import vLLMEngineProcessorConfig

    stage = {"concurrency": (1, cpus), "num_cpus": share}
    templated = has_template(folder)
    loading = {"dtype": _DTYPES[what.precision], "trust_remote_code": what.remote_code}
    length = {"max_model_len": how.max_model_len} if how.max_model_len else {}
    return vLLMEngineProcessorConfig(
        model_source=str(folder),
        batch_size=how.batch,
        concurrency=(engines(how), engines(how)),
        max_concurrent_batches=max(8, -(-SEQUENCES // how.batch)),
        should_continue_on_error=True,
        log_engine_metrics=False,
        engine_kwargs={
            **how.engine_kwargs,
            **loading,
            **length,
            "tensor_parallel_size": how.tensor_parallel_size,
            "limit_mm_per_prompt": {"image": 1},
            "seed": 0,
        },
        prepare_multimodal_stage={**stage, "enabled": templated, "model_config_kwargs": loading, "chat_template_content_format": "openai"},
        chat_template_stage={**stage, "enabled": templated},
        tokenize_stage=False,  # the engine does both, pictures' places among the tokens
        detokenize_stage=False,
    )


def build_engine(what: What, how: CaptionHow, cpus: int, share: float) -> Any:
    """The `ray.data.llm` processor, ready to be put over a dataset. Raises InfrastructureError for a model that is not there or no use."""
    from ray.data.llm import build_processor

    folder = local_folder(what.model, what.revision, remote_code=what.remote_code)
    templated = has_template(folder)
    if what.system and not templated:
        raise InfrastructureError(f"model {what.model} has no chat template, so it takes no `system` message; write it into the prompt")
    tasks = {"num_cpus": share}
    processor = build_processor(
        vllm_config(what, how, folder, cpus, share),
        preprocess=partial(question, what=what, templated=templated),
        postprocess=partial(answer, most=what.max_new_tokens, length=how.max_model_len),
        preprocess_map_kwargs=tasks,
        postprocess_map_kwargs=tasks,
    )
    stage = processor.get_stage_by_name("vLLMEngineStage")
    stage.map_batches_kwargs |= {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    if how.tensor_parallel_size == 1 and how.gpus:
        stage.map_batches_kwargs["num_gpus"] = how.gpus
    return processor


def question(row: Mapping[str, Any], what: What, templated: bool) -> dict[str, Any]:
    """What the engine's stages want of a row of `llm_pool.QUESTIONS`; a row that passes gets nothing."""
    if row[ERROR]:
        return {}
    # one token more than allowed: an answer that has it did not end in time, one whose last allowed token is its end did
    sampling = {"temperature": what.temperature, "max_tokens": what.max_new_tokens + 1}
    if what.temperature > 0:
        sampling["seed"] = row["seed"]
    picture = Image.open(io.BytesIO(row["picture"]))
    picture.load()
    if not templated:
        return {"prompt": row["prompt"], "multimodal_data": {"image": picture}, "sampling_params": sampling, "picture": None}
    system = [{"role": "system", "content": what.system}] if what.system else []
    content = [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": row["prompt"]}]
    return {"messages": [*system, {"role": "user", "content": content}], "sampling_params": sampling, "picture": None}


def answer(row: Mapping[str, Any], most: int, length: int) -> dict[str, Any]:
    """The reply in the engine's row. most: tokens of a reply. length: of prompt and reply together; 0 = not said."""
    count = int(row["num_generated_tokens"])
    cut = count > most or (length > 0 and int(row["num_input_tokens"]) + count >= length)
    return {
        "task": row["task"],
        "key": row["key"],
        "text": row["generated_text"],
        "finish": "length" if cut else "stop",
        "tokens": min(count, most),
        "sent": row["sent"],
        "count": None,
    }


def has_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template. Raises InfrastructureError for files that are no JSON."""
    if any((folder / name).is_file() for name in _TEMPLATES):
        return True
    for name in ("tokenizer_config.json", "processor_config.json"):
        try:
            if (folder / name).is_file() and json.loads((folder / name).read_text("utf-8")).get("chat_template"):
                return True
        except (OSError, ValueError, AttributeError) as error:
            raise InfrastructureError(f"model directory {folder}: {name} is not readable: {error}; copy the model again") from error
    return False


def _gpus(how: CaptionHow) -> float:
    return how.gpus or float(how.tensor_parallel_size)

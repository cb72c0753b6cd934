"""vLLM as the captioner, through `ray.data.llm`: its processor, how a question is put to it, and what its answer says.

Any processor of `ray.data.llm` may stand in its place that takes rows of `llm_pool.QUESTIONS` and gives back `llm_pool.REPLIES`; a row
that comes with an error already, such as PASSES, passes all its stages untouched.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from curation.caption import CaptionHow, What
from curation.caption_engine import has_template, refuse_plain
from curation.models import local_folder
from shards.errors import RecipeError

ERROR = "__inference_error__"  # of ray.data.llm: a row that has one passes all stages; the engine gives one to a row it cannot answer
PASSES = "fovea: no question"
RESTARTS = 3  # of one engine, whatever kills it; Ray's own default is without end
SEQUENCES = 256  # that an engine has in hand at once by default: batches enough are sent to keep it so
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


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
            "limit_mm_per_prompt": {"image": max(what.frames, 1)},
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
    if not templated:
        refuse_plain(what)
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
    pictures = [Image.open(io.BytesIO(data)) for data in row["pictures"]]
    for picture in pictures:
        picture.load()
    if not templated:
        return {"prompt": row["prompt"], "multimodal_data": {"image": pictures[0]}, "sampling_params": sampling, "pictures": None}
    system = [{"role": "system", "content": what.system}] if what.system else []
    shown: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
    content = [*shown, {"type": "text", "text": row["prompt"]}]
    return {"messages": [*system, {"role": "user", "content": content}], "sampling_params": sampling, "pictures": None}


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


def _gpus(how: CaptionHow) -> float:
    return how.gpus or float(how.tensor_parallel_size)

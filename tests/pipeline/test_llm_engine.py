"""vLLM itself needs a GPU and is not run here: the processor that is built for it, what it is asked and what its answers mean."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from safetensors.numpy import save_file

from curation.caption import CaptionHow, What
from pipeline import cluster
from pipeline.curate import curate
from pipeline.llm_engine import ERROR, PASSES, RESTARTS, answer, build_engine, engine_cpus, has_template, question
from pipeline.llm_pool import QUESTIONS
from pipeline.recipe import load_recipe
from shards.errors import InfrastructureError, RecipeError
from tests.pipeline.small import pictures, recipe

MISSING = importlib.util.find_spec("vllm") is None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from transformers import Qwen2Config

    folder = tmp_path / "model"
    Qwen2Config(hidden_size=8, num_hidden_layers=1, architectures=["Qwen2ForCausalLM"]).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    return folder


def picture_of(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def asked(**values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(QUESTIONS.names), "task": 0, "sent": 1.5, ERROR: "", **values}


@pytest.mark.skipif(not MISSING, reason="VLLM IS INSTALLED: that it is missing cannot be tested")
def test_without_vllm_a_run_is_refused_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda *_: pytest.fail("Ray was started"))
    pictures(tmp_path / "pics", 1)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe", {"caption": {"model": "small", "backend": "vllm"}}])
    with pytest.raises(RecipeError, match=r"r\.yaml:\d+: step 'caption': .* pip install 'fovea-vlm\[vllm\]'"):
        curate(load_recipe(path), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"engine_kwargs": {"dtype": "float16"}}, "engine_kwargs: dtype is said by `precision`"),
        ({"engine_kwargs": {"quantization": "fp8"}}, "makes another model of it"),
        ({"engine_kwargs": {"trust_remote_code": True}}, "is said by `model`"),
        ({"engine_kwargs": {"max_model_len": 4096}}, "write it beside `backend`"),
        ({"tensor_parallel_size": 2, "gpus": 1}, "an engine takes tensor_parallel_size: 2 of them"),
        ({"gpus": 2}, "an engine takes tensor_parallel_size: 1 of them"),
        ({"backend": "transformers", "max_model_len": 4096}, "are of backend vllm, not of transformers"),
    ],
)
def test_settings_that_cannot_work_or_would_change_what_the_model_says(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 1)
    step = {"caption": {"model": "small", "backend": "vllm", **given}}
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, [step]))


def test_the_processor_that_is_built(one_ray: None, model: Path) -> None:
    what = What(str(model), max_new_tokens=20)
    how = CaptionHow(backend="vllm", batch=32, actors=2, max_model_len=4096, engine_kwargs={"gpu_memory_utilization": 0.8})
    built = build_engine(what, how, 3, 0.125)
    assert built.list_stage_names() == ["PrepareMultimodalStage", "ChatTemplateStage", "vLLMEngineStage"]
    stage = built.get_stage_by_name("vLLMEngineStage")
    assert stage.map_batches_kwargs["num_gpus"] == 1
    assert (stage.map_batches_kwargs["compute"].min_size, stage.map_batches_kwargs["compute"].max_size) == (2, 2)
    assert (stage.map_batches_kwargs["max_restarts"], stage.map_batches_kwargs["max_task_retries"]) == (RESTARTS, RESTARTS)
    told = stage.fn_constructor_kwargs
    assert (told["model"], told["batch_size"], told["should_continue_on_error"]) == (str(model), 32, True)
    wanted = {
        "dtype": "bfloat16",
        "trust_remote_code": False,
        "max_model_len": 4096,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.8,
    }
    assert wanted.items() <= told["engine_kwargs"].items()
    assert told["engine_kwargs"]["limit_mm_per_prompt"] == {"image": 1}
    for name in ("PrepareMultimodalStage", "ChatTemplateStage"):
        assert built.get_stage_by_name(name).map_batches_kwargs["num_cpus"] == 0.125
    two = replace(how, tensor_parallel_size=2)
    stage = build_engine(what, two, 3, 0.125).get_stage_by_name("vLLMEngineStage")
    assert stage.fn_constructor_kwargs["engine_kwargs"]["distributed_executor_backend"] == "ray"
    assert "ray_remote_args_fn" in stage.map_batches_kwargs
    assert (engine_cpus(how), engine_cpus(two)) == (2, 4)
    half = build_engine(what, replace(how, gpus=0.5), 3, 0.125).get_stage_by_name("vLLMEngineStage")
    assert half.map_batches_kwargs["num_gpus"] == 0.5
    # what its stages are given, over Ray Data: a picture in the message as they want it, and a row that passes as it was
    rows = [asked(key="k", prompt="Describe.", seed=5, pictures=[picture_of("red")]), asked(carry=b"rest", count=1, **{ERROR: PASSES})]
    first, second = (
        row["__data"] for row in ray.data.from_items(rows, override_num_blocks=1).map(built.preprocess, num_cpus=0.1).take_all()
    )
    ((image, text),) = (message["content"] for message in first["messages"])
    assert image["image_pil"].getpixel((0, 0)) == (255, 0, 0)
    assert (text, first["pictures"], first["sampling_params"]) == (
        {"type": "text", "text": "Describe."},
        None,
        {"temperature": 0.0, "max_tokens": 21},
    )
    assert (second["carry"], second["count"], second.get("messages")) == (b"rest", 1, None)
    passed = built.postprocess({"__data": second})
    assert (passed["carry"], passed[ERROR]) == (b"rest", PASSES)


def test_a_model_without_a_chat_template_is_asked_plainly(one_ray: None, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert not has_template(model)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert has_template(model)
    (model / "tokenizer_config.json").unlink()
    how = CaptionHow(backend="vllm")
    assert build_engine(What(str(model)), how, 1, 0.1).list_stage_names() == ["vLLMEngineStage"]
    with pytest.raises(InfrastructureError, match="no chat template"):
        build_engine(What(str(model), system="Be brief."), how, 1, 0.1)
    given = question(asked(prompt="a photo of", seed=9, pictures=[picture_of("blue")]), What(str(model), temperature=0.7), templated=False)
    assert (given["prompt"], given["sampling_params"]["seed"]) == ("a photo of", 9)
    assert given["multimodal_data"]["image"].size == (4, 3)


def test_a_system_message_comes_first() -> None:
    given = question(asked(prompt="Describe.", seed=1, pictures=[picture_of("blue")]), What("m", system="Be brief."), templated=True)
    assert [message["role"] for message in given["messages"]] == ["system", "user"]
    assert question(asked(**{ERROR: PASSES}), What("m"), templated=True) == {}


@pytest.mark.parametrize(
    ("tokens", "length", "finish"), [(19, 0, "stop"), (20, 0, "stop"), (21, 0, "length"), (10, 110, "length"), (10, 111, "stop")]
)
def test_an_answer_that_did_not_end(tokens: int, length: int, finish: str) -> None:
    """One token more than allowed is asked for: whoever needs it did not end in time. So did not who filled the engine's length."""
    row = asked(key="k") | {"generated_text": "grey", "num_generated_tokens": tokens, "num_input_tokens": 100}
    found = answer(row, most=20, length=length)
    assert (found["finish"], found["tokens"]) == (finish, min(tokens, 20))

"""A processor of `ray.data.llm` in vLLM's place, which needs no GPU: it puts the same questions to a server, over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray.data.llm import HttpRequestProcessorConfig, build_processor

from curation.caption import CaptionHow, What
from pipeline.llm_engine import ERROR


def build(url: str, what: What, how: CaptionHow, cpus: int, share: float) -> Any:
    """As `pipeline.llm_engine.build_engine`."""
    config = HttpRequestProcessorConfig(
        url=f"{url}/chat/completions",
        batch_size=how.batch,
        concurrency=(1, 1),
        qps=1000,  # without it the processor takes turns
        http_request_stage={"num_cpus": share},
    )
    tasks = {"num_cpus": share}
    return build_processor(
        config, preprocess=partial(question, what=what), postprocess=answer, preprocess_map_kwargs=tasks, postprocess_map_kwargs=tasks
    )


def question(row: Mapping[str, Any], what: What) -> dict[str, Any]:
    if row[ERROR]:
        return {}
    url = f"data:image/png;base64,{base64.b64encode(row['pictures'][0]).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": row["prompt"]}]
    body = {"model": "small", "max_tokens": what.max_new_tokens, "messages": [{"role": "user", "content": content}]}
    return {"payload": body, "pictures": None}


def answer(row: Mapping[str, Any]) -> dict[str, Any]:
    told = row["http_response"]
    if told.get("error") is not None:
        return {"task": row["task"], "key": row["key"], "sent": row["sent"], "count": None, ERROR: told["error"]["message"]}
    choice = told["choices"][0]
    return {
        "task": row["task"],
        "key": row["key"],
        "text": choice["message"]["content"],
        "finish": choice["finish_reason"],
        "tokens": told["usage"]["completion_tokens"],
        "sent": row["sent"],
        "count": None,
    }

"""A text about each picture, each video or each shot of it, from a vision-language model: in this process, or behind a URL. Every reply is
paid for once."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from curation.caption_cache import Cache, open_cache
from curation.caption_engine import check_engine, has_template, refuse_plain
from curation.caption_questions import ask, columns_of, rows_of, waves
from curation.caption_reply import REFUSALS_VERSION, Reply
from curation.caption_request import Request, places
from curation.models import Model, check_folder, kind_of, model_identity
from curation.moments import check_moments, moments_identity
from curation.own_texts import read_names
from curation.step import MEDIA_KINDS, How, Result, Step
from curation.view import MediaView
from curation.weights import existing_path
from shards.errors import InfrastructureError, SampleError
from shards.paths import has_credentials

OF_PICTURE = "Describe this picture in one sentence."
OF_VIDEO = "These are frames of one video, in their order. Describe the video in one sentence."
PRECISIONS = ("bf16", "fp32")
# Each has `open_backend(what, how) -> Backend`.
BACKENDS: Mapping[str, str] = {
    "transformers": "curation.caption_transformers",
    "openai": "curation.caption_openai",
    "vllm": "curation.caption_vllm",
}
SERVERS = ("openai",)  # backends that ask a server: nothing is loaded here

# Requests in, (place, answer) out as the answers come, each place once. The function given is called now and then while it waits or
# computes: the process is alive. Raises InfrastructureError for what is no picture's fault.
Backend = Callable[[Sequence[Request], Callable[[], None]], Iterator[tuple[int, Reply | SampleError]]]


@dataclass(frozen=True, slots=True)
class What:
    """Without `frames`, `at` and `every` it looks at pictures, with one of them at videos (curation/moments.py).

    model           an id of the model hub, a directory, "package:<name>", or the name that a server knows it by ("gpt-4.1-mini").
    revision        of a hub model: commit, branch or tag.
    prompt          may hold {column} places, filled with what earlier steps wrote or with the sample's own texts ({caption}).
                    The default speaks of a picture; where several frames are shown, of a video.
    system          the system message; "" = none but the model's own.
    max_new_tokens  of a reply; one that does not end by then is a runaway.
    temperature     0 = the likeliest words. Above: drawn, by a seed of picture and prompt.
    precision       bf16 or fp32: of weights and activations.
    max_pixels      larger pictures are shrunk to so many.
    max_chars       longer replies are errors. max_prompt_chars: so are longer prompts, places filled.
    refusals        further regular expressions for the beginning of a reply that refuses, besides those that come with the step.
    remote_code     whether a model may bring Python of its own, which is then run.
    frames          so many frames in one request: of the clip, or of each stretch.
    at              column of stretches, such as `video_shots`: a caption for each. every: seconds of a stretch, where no column tells them.
    """

    model: str = ""
    revision: str = ""
    prompt: str = OF_PICTURE
    system: str = ""
    max_new_tokens: int = 128
    temperature: float = 0.0
    precision: str = "bf16"
    max_pixels: int = 1_048_576
    max_chars: int = 4_000
    max_prompt_chars: int = 16_000
    refusals: tuple[str, ...] = ()
    remote_code: bool = False
    frames: int = 0
    at: str = ""
    every: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", existing_path(self.model))
        if self.frames > 1 and self.prompt == OF_PICTURE:
            object.__setattr__(self, "prompt", OF_VIDEO)


@dataclass(frozen=True, slots=True)
class CaptionHow(How):
    """backend      transformers: in this process · openai: any URL that speaks OpenAI's chat completions · vllm: docs/steps/caption.md.
    device       of transformers: "auto" (CUDA where there is one), "cpu", "cuda:1".
    url          of openai: up to and with /v1.
    served_as    the model's name there; "" = as `model` says.
    api_key_env  name of the environment variable that holds the key; "" = none.
    concurrency  requests at once, of one actor; of openai, `batch` is at least that.
    requests_per_minute  of all actors of one node together; 0 = no limit.
    timeout      seconds for one request.
    retries      further tries of one request. backoff: seconds before the first of them, doubled before each other.
    tensor_parallel_size  of vllm: GPUs of one engine. max_model_len: its longest prompt and reply together, in tokens; 0 = the model's own.
    engine_kwargs  of vllm: further arguments of its engine, such as gpu_memory_utilization. None that changes what the model says.
    cache        where replies are kept: "" = below $FOVEA_CACHE or ~/.cache/fovea · a file's path · "off" · a URL (s3://…, file://…): a
                 folder with one object a reply, for clusters.
    """

    batch: int = 16
    backend: str = "transformers"
    device: str = "auto"
    url: str = ""
    served_as: str = ""
    api_key_env: str = ""
    concurrency: int = 8
    requests_per_minute: float = 0.0
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    tensor_parallel_size: int = 1
    max_model_len: int = 0
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cache: str = ""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is {self.backend!r}; known are {', '.join(BACKENDS)}")
        if self.backend in SERVERS and not re.match(r"https?://[^/]+", self.url):
            raise ValueError(f"backend {self.backend} wants a `url`: http://host:8000/v1")
        if self.url and self.backend not in SERVERS:
            raise ValueError(f"backend {self.backend} asks no server; drop `url`, or write backend: openai")
        if has_credentials(self.url) or has_credentials(self.cache):
            raise ValueError("a URL holds credentials: take them out, and give the key by `api_key_env`")
        if self.concurrency < 1 or self.timeout <= 0 or min(self.retries, self.backoff, self.requests_per_minute) < 0:
            raise ValueError("concurrency is at least 1, timeout above 0; retries, backoff and requests_per_minute are 0 or more")
        check_engine(self)
        if self.backend in SERVERS:
            object.__setattr__(self, "batch", max(self.batch, self.concurrency))  # only requests of one batch are under way together


def load_backend(what: What, how: CaptionHow) -> Backend:
    """Raises InfrastructureError with the mend: weights or libraries missing, no key in the environment."""
    backend: Backend = importlib.import_module(BACKENDS[how.backend]).open_backend(what, how)
    return backend


def _open(what: What, how: CaptionHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    backend, cache, model = load_backend(what, how), open_cache(how.cache), model_of(what)
    return lambda views: answer(what, model, backend, cache, views)


def answer(what: What, model: Sequence[str], backend: Backend, cache: Cache, views: Sequence[MediaView]) -> list[Result]:
    """The rows of a batch. model: identity of the model, for the cache."""
    asked = ask(what, model, cache, views)
    found: dict[str, Reply | SampleError] = dict(asked.known)
    for requests in waves(what, asked, views):
        waiting = list(requests)
        for number, came in backend(list(requests.values()), views[0].alive):
            if isinstance(came, Reply):
                cache.put(waiting[number], came)
            found[waiting[number]] = came
    return rows_of(what, asked, found, len(views))


def model_of(what: What) -> list[str]:
    """Identity of the model, for the digest and the cache."""
    return model_identity(what.model, what.revision)


def _identity(what: What) -> dict[str, Any]:
    """A directory stands for its content: the same model elsewhere gives the same rows."""
    own = {name: value for name, value in asdict(what).items() if name not in ("frames", "at", "every")}
    return {**own, **moments_identity(what), "model": model_of(what), "revision": "", "refusals": [REFUSALS_VERSION, *what.refusals]}


def _models(what: What) -> list[Model]:
    return [Model(what.model, kind_of(what.model), what.revision, remote_code=what.remote_code)]


def _reads(what: What) -> list[str]:
    return ["media", *read_names([*places(what.prompt), *([what.at] if what.at else [])])]


def _check(what: What) -> None:
    if not what.model:
        raise ValueError("model: name one: an id of the model hub (org/name), a directory, or the name a server knows it by")
    if not what.prompt.strip() and what.system:
        raise ValueError("prompt: it is empty, but there is a `system` message; write what to ask")
    places(what.prompt)
    check_moments(what)
    if what.precision not in PRECISIONS:
        raise ValueError(f"precision: {what.precision!r}; known are {', '.join(PRECISIONS)}")
    if not 0 <= what.temperature <= 2:
        raise ValueError(f"temperature: {what.temperature}; it lies between 0 and 2")
    if min(what.max_new_tokens, what.max_chars, what.max_prompt_chars) < 1 or what.max_pixels < 1024:
        raise ValueError("max_new_tokens, max_chars and max_prompt_chars are at least 1, max_pixels at least 1024")
    for pattern in what.refusals:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"refusals: {pattern!r} is no regular expression: {error}") from error
    kind = kind_of(what.model)
    if kind in ("file", "url"):
        raise ValueError(f"model: {what.model} is a {kind}; give an id of the hub, a directory, or a server's name for it")
    if what.revision and kind != "hub":
        raise ValueError(f"revision: {what.model} is not on the model hub; its content tells it apart")
    if kind == "folder":
        folder = Path(what.model).expanduser()
        check_folder(folder, ("config.json",))
        _check_frames(what, folder)


def _check_frames(what: What, folder: Path) -> None:
    if what.frames > 1:
        try:
            if not has_template(folder):
                refuse_plain(replace(what, system=""))
        except InfrastructureError as error:
            raise ValueError(f"frames: {error}") from error


STEP = Step(
    version=1,
    level="medium",
    applies=MEDIA_KINDS,
    prefix="caption_",
    what=What,
    how=CaptionHow,
    columns=columns_of,
    reads=_reads,
    open=_open,
    identity=_identity,
    check=_check,
    models=_models,
    served=lambda how: how.backend in SERVERS,
)

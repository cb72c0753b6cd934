"""Captions by a model in this process: any that transformers knows as image-text-to-text, batched, one bad picture costing its own row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image

from curation.caption_engine import refuse_plain
from curation.caption_reply import Reply, ReplyError
from curation.caption_request import Request, seed_of
from curation.encoders import device_and_type
from curation.models import local_folder
from shards.errors import InfrastructureError, SampleError

if TYPE_CHECKING:
    import torch

    from curation.caption import Backend, CaptionHow, What

log = logging.getLogger("fovea")

# What a processor, a chat template or a model raises for a picture or prompt it cannot take, say one 300 times as long as wide.
FAULTS = (ValueError, RuntimeError, IndexError, TypeError, ZeroDivisionError, MemoryError, TemplateError)
TRIAL = np.full((96, 128, 3), 127, np.uint8)
TRIAL_TOKENS = 2


@dataclass(slots=True)
class Captioner:
    """A loaded model. template: whether prompts go through a chat template. ends: ids of tokens that end a reply.

    size   requests at once, halved when the device was out of memory.
    """

    model: Any
    processor: Any
    what: What
    device: torch.device
    dtype: torch.dtype
    template: bool
    ends: frozenset[int]
    size: int


def open_backend(what: What, how: CaptionHow) -> Backend:
    """Loads the model and tries it on a grey picture: what fails then is not a sample's fault. Raises InfrastructureError."""
    captioner = load(what, how)
    trial = Request("trial", "0" * 64, "Describe this picture.", np.stack([TRIAL] * what.frames) if what.frames > 1 else TRIAL)
    try:
        generate(captioner, [trial], lambda: None, TRIAL_TOKENS)
    except (*FAULTS, LookupError, AttributeError) as error:
        if _out_of_memory(error):
            raise InfrastructureError(f"{what.model}: one small picture does not fit the device: {_first_line(error)}") from error
        shown = "a grey picture" if what.frames <= 1 else f"{what.frames} grey pictures at once (frames: {what.frames})"
        raise InfrastructureError(
            f"{what.model}: it cannot even describe {shown}: {type(error).__name__}: {_first_line(error)}; "
            "is it an image-text-to-text model with its own processor beside it, and does its chat template take the step's messages?"
        ) from error
    return lambda requests, alive: answers(captioner, requests, alive)


def load(what: What, how: CaptionHow) -> Captioner:
    """Raises InfrastructureError with the mend: files missing or torn, an unknown kind of model, code of its own that is not allowed."""
    from tokenizers import AddedToken
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = local_folder(what.model, what.revision, remote_code=what.remote_code)
    place, dtype = device_and_type(how.device, what.precision)
    options = {"local_files_only": True, "trust_remote_code": what.remote_code}
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        ends = _ends(model, processor)
    except Exception as error:  # a field of the wrong type in any of the files may end as anything
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InfrastructureError(
            f"model {what.model} cannot be loaded from {folder}: {told}; copy or download it again, whole, or take another"
        ) from error
    _refuse_holes(folder, found)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise InfrastructureError(
            f"model {what.model}: {folder} holds no processor of pictures and texts; copy or download it again, whole"
        )
    template = bool(getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None))
    if not template:
        refuse_plain(what)
    if not template and isinstance(getattr(processor, "image_token", None), str) and hasattr(processor, "num_query_tokens"):
        processor.image_token = AddedToken(processor.image_token)  # BLIP-2's processor asks it for its `.content`
    processor.tokenizer.padding_side = "left"  # a reply begins right after the prompt
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    model = model.eval().requires_grad_(False).to(place)
    return Captioner(model, processor, what, place, dtype, template, ends, how.batch)


def answers(captioner: Captioner, requests: Sequence[Request], alive: Callable[[], None]) -> Iterator[tuple[int, Reply | SampleError]]:
    """(place, answer) for each request. A batch that fails is tried one by one, so that it is known whose fault it is.

    Raises InfrastructureError when not even one picture fits the device, or the device itself fails.
    """
    parts = [list(range(len(requests)))]
    while parts:
        part = parts.pop(0)
        if len(part) > captioner.size:
            parts[:0] = [part[: captioner.size], part[captioner.size :]]
            continue
        try:
            replies = generate(captioner, [requests[place] for place in part], alive, captioner.what.max_new_tokens)
        except FAULTS as error:
            if _out_of_memory(error):
                if len(part) == 1:
                    raise InfrastructureError(
                        f"{captioner.what.model}: one picture does not fit the device: {_first_line(error)}; "
                        "lower max_pixels, or take a larger device"
                    ) from error
                captioner.size = len(part) // 2
                log.warning("%d pictures at once do not fit the device; %d are tried from here on", len(part), captioner.size)
                parts.insert(0, part)
                continue
            if _device_failed(error):
                raise InfrastructureError(f"{captioner.what.model}: the device failed: {_first_line(error)}") from error
            if len(part) == 1:
                yield part[0], ReplyError(f"failed: the model cannot take this picture: {type(error).__name__}: {_first_line(error)}")
            else:
                parts[:0] = [[place] for place in part]
        else:
            yield from zip(part, replies, strict=True)


def generate(captioner: Captioner, requests: Sequence[Request], alive: Callable[[], None], most: int) -> list[Reply]:
    """One batch through the model: greedy, or drawn by each request's own seed. Raises what the processor or the model raises."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    inputs = prepare(captioner, requests).to(captioner.device, captioner.dtype)
    draw = [_draw(requests, captioner.what.temperature)] if captioner.what.temperature > 0 else []

    def step(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        alive()
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    with torch.inference_mode():
        output = captioner.model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=most,
            logits_processor=LogitsProcessorList(draw),
            stopping_criteria=StoppingCriteriaList([step]),
        )
    return [_reply(captioner, row, most) for row in _without_prompt(captioner, output, inputs).tolist()]


def prepare(captioner: Captioner, requests: Sequence[Request]) -> Any:
    """The processor's tensors for a batch, padded on the left."""
    pictures = [[Image.fromarray(picture) for picture in request.pictures] for request in requests]
    if not captioner.template:
        prompts = [request.prompt for request in requests]
        return captioner.processor(images=[one for (one,) in pictures], text=prompts, padding=True, return_tensors="pt")
    system = [{"role": "system", "content": [{"type": "text", "text": captioner.what.system}]}] if captioner.what.system else []
    contents = [
        [*({"type": "image", "image": one} for one in shown), {"type": "text", "text": request.prompt}]
        for shown, request in zip(pictures, requests, strict=True)
    ]
    talks = [[*system, {"role": "user", "content": content}] for content in contents]
    return captioner.processor.apply_chat_template(
        talks, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )


def _draw(requests: Sequence[Request], temperature: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Scores whose maximum is a draw from softmax(scores / temperature): the Gumbel-max trick, with a stream of noise for each row of its
    own, so that a row's words depend on nothing else in the batch."""
    import torch

    streams = [torch.Generator().manual_seed(seed_of(request)) for request in requests]

    def drawn(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=stream) for stream in streams]).clamp_(1e-20, 1 - 1e-7)
        return scores.float() / temperature - torch.log(-torch.log(uniform)).to(scores.device)

    return drawn


def _without_prompt(captioner: Captioner, output: torch.Tensor, inputs: Any) -> torch.Tensor:
    """Only what was written: some models give the prompt back before it, those with an encoder a token that starts the decoder."""
    import torch

    if captioner.model.config.is_encoder_decoder or getattr(captioner.model.config.get_text_config(), "is_encoder_decoder", False):
        return output[:, 1:]
    asked = inputs["input_ids"]
    length = asked.shape[1]
    return output[:, length:] if output.shape[1] >= length and torch.equal(output[:, :length], asked) else output


def _reply(captioner: Captioner, row: list[int], most: int) -> Reply:
    end = next((place for place, token in enumerate(row) if token in captioner.ends), None)
    text = captioner.processor.tokenizer.decode(row if end is None else row[:end], skip_special_tokens=True)
    if end is None:
        return Reply(text, "length" if len(row) >= most else "stop", len(row))
    return Reply(text, "stop", end + 1)


def _ends(model: Any, processor: Any) -> frozenset[int]:
    """Ids at which generation stops: of the model, of the language model inside it, of the tokenizer."""
    found: set[int] = set()
    configs = [getattr(part, "generation_config", None) for part in (model, getattr(model, "language_model", None))]
    tokenizer = getattr(processor, "tokenizer", None)
    for ids in [*(getattr(config, "eos_token_id", None) for config in configs), getattr(tokenizer, "eos_token_id", None)]:
        found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [int(ids)])
    return frozenset(found)


def _refuse_holes(folder: Path, found: Any) -> None:
    """transformers fills weights that a checkpoint lacks with random numbers, and only warns."""
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise InfrastructureError(
            f"model directory {folder}: its weights lack {len(lacking)} of the model's tensors, {lacking[0]} among them; "
            "copy or download it again, whole"
        )


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _device_failed(error: BaseException) -> bool:
    """After an error of the device itself every later call fails too: no picture is to blame."""
    import torch

    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

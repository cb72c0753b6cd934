"""Answers by greedy decoding: prompts as training saw them, transformers' own `generate` with its cache, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from shards.tokenizer import END, IMAGE, PAD, VIDEO, special_id
from training.collate import IGNORED, ItemName, LoadedItem, LoadedMedium, collate
from training.encode import visual_features
from training.savings import EXACT, Savings

if TYPE_CHECKING:
    from collections.abc import Callable

_NOBODY = ItemName("", "", 0)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything before an answer: input_ids int64 [length], to the end of the assistant's header; the media that stand in it, in order."""

    input_ids: np.ndarray
    media: tuple[LoadedMedium, ...] = ()

    @property
    def patches(self) -> int:
        return sum(m.t * m.h * m.w for m in self.media)


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of an answer without the one that ended it; `cut`: none did within the bound."""

    ids: tuple[int, ...]
    cut: bool


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a batch: prompts, (longest prompt + new tokens) × prompts, patches. A single prompt may exceed the last two.

    new_tokens  of an answer, at most.
    """

    prompts: int = 8
    tokens: int = 16_384
    patches: int = 40_960
    new_tokens: int = 256


def prompts_of(item: LoadedItem, tokenizer: Any) -> list[Prompt]:
    """A prompt for each assistant's turn, in order: the tokens of training up to its first label, the gold answers of earlier turns among
    them. A medium belongs to the prompts that come after it, a streamed video with the frames that were shown before."""
    places = {False: special_id(tokenizer, IMAGE), True: special_id(tokenizer, VIDEO)}
    labelled = np.concatenate([[False], np.asarray(item.labels) != IGNORED])
    starts = np.flatnonzero(labelled[1:] & ~labelled[:-1])
    found = []
    for start in starts.tolist():
        ids = np.asarray(item.input_ids[:start], dtype=np.int64)
        found.append(Prompt(ids, _shown(item.media, {video: int((ids == token).sum()) for video, token in places.items()})))
    return found


def _shown(media: Sequence[LoadedMedium], left: dict[bool, int]) -> tuple[LoadedMedium, ...]:
    """What so many placeholders show of the media. left: placeholders of images (False) and of videos (True)."""
    found = []
    for medium in media:
        if 0 < left[medium.video] < medium.kept:
            medium = _first_frames(medium, left[medium.video])
        if left[medium.video]:
            found.append(medium)
            left[medium.video] -= medium.kept
    return tuple(found)


def _first_frames(video: LoadedMedium, kept: int) -> LoadedMedium:
    """A video up to the frame whose last kept token is the `kept`-th."""
    tokens = video.visual // video.t
    keep = np.ones(video.visual, dtype=bool) if video.keep is None else video.keep
    frames = int(np.searchsorted(keep.reshape(video.t, tokens).sum(axis=1).cumsum(), kept)) + 1
    pixels, mask = video.pixels[: frames * video.h * video.w], video.keep
    return replace(video, t=frames, pixels=pixels, keep=None if mask is None else mask[: frames * tokens])


def batches_of(prompts: Sequence[Prompt], bounds: Bounds) -> Iterator[list[int]]:
    """Numbers of prompts, longest first, in batches within the bounds. A function of the prompts alone."""
    batch: list[int] = []
    patches = 0
    for number in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].input_ids), i)):
        longest = len(prompts[batch[0]].input_ids) if batch else 0
        tokens = (longest + bounds.new_tokens) * (len(batch) + 1)
        patches += prompts[number].patches
        if batch and (len(batch) == bounds.prompts or tokens > bounds.tokens or patches > bounds.patches):
            yield batch
            batch, patches = [], prompts[number].patches
        batch.append(number)
    if batch:
        yield batch


def generate(
    model: nn.Module,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    bounds: Bounds,
    done: Callable[[int], None] | None = None,
    savings: Savings = EXACT,
) -> list[Generated]:
    """The most probable token after each, until the end of the turn: greedy, whatever the model's own generation settings say.

    model  a VideoLlama3ForConditionalGeneration; left as it was. done: told of every number of prompts that have been answered.
    savings  as the model was trained: `prune` is approximate, and a model answers best by the features that it knows.
    Prompts of a batch are padded on the left and do not see their padding: in float32 the tokens of an answer are those it has alone, but
    where two tokens are equally probable to the last digit.
    """
    found: list[Generated | None] = [None] * len(prompts)
    training = model.training
    model.eval()
    try:
        for batch in batches_of(prompts, bounds):
            answers = _generate(model, [prompts[i] for i in batch], tokenizer, bounds.new_tokens, savings)
            for number, answer in zip(batch, answers, strict=True):
                found[number] = answer
            if done is not None:
                done(len(batch))
    finally:
        model.train(training)
    return [answer for answer in found if answer is not None]


def _generate(model: Any, prompts: Sequence[Prompt], tokenizer: Any, new_tokens: int, savings: Savings) -> list[Generated]:
    from transformers import GenerationConfig

    pad, ends = special_id(tokenizer, PAD), [special_id(tokenizer, END), special_id(tokenizer, PAD)]
    longest = max(len(p.input_ids) for p in prompts)
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.input_ids) :] = torch.from_numpy(prompt.input_ids)
        mask[row, longest - len(prompt.input_ids) :] = 1
    first = next(model.parameters())
    inputs = {"input_ids": ids, "attention_mask": mask}
    settings, model.generation_config = model.generation_config, GenerationConfig()  # a released model's holds penalties
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, eos_token_id=ends, pad_token_id=pad, bos_token_id=None, use_cache=True
    )
    try:
        with torch.inference_mode():
            moved = {name: value.to(first.device) for name, value in inputs.items()}
            out = model.generate(**moved, mm_encoder_outputs=_features(model, prompts, savings), generation_config=greedy)
    finally:
        model.generation_config = settings
    return [_until(row[longest:].tolist(), ends) for row in out.cpu()]


def _features(model: nn.Module, prompts: Sequence[Prompt], savings: Savings) -> dict[str, Any]:
    """Of the media of all prompts, in order, encoded as in training; those of several turns of a conversation once."""
    items = [LoadedItem(_NOBODY, p.input_ids, np.full_like(p.input_ids, IGNORED), p.media) for p in prompts if p.media]
    return visual_features(model, collate(items, patch=1, savings=savings)) if items else {}  # the patch's side is for packs without media


def _until(ids: list[int], ends: Sequence[int]) -> Generated:
    for place, token in enumerate(ids):
        if token in ends:
            return Generated(tuple(ids[:place]), cut=False)
    return Generated(tuple(ids), cut=True)

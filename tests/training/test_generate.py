"""Greedy answers: those of transformers' processor and `generate` on the export, alone and in batches, whatever a model's settings say."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, VideoLlama3ForConditionalGeneration
from transformers.video_utils import VideoMetadata

from shards.items import Message, Part
from shards.media import Limits
from shards.places import PlacesReader
from shards.profile import load_profile
from shards.reader import Dataset
from shards.tokenizer import END, PAD, load_tokenizer, special_id, tokenizer_digest, train_tokenizer
from shards.video import sample_frames
from tests.training import asked, handmade
from training.checkpoint import save_final
from training.collate import LoadedItem, collate
from training.engine import Ranks, start_ranks
from training.export import export
from training.generate import Bounds, Generated, Prompt, batches_of, generate
from training.launch import tokenizer_files
from training.model import build_tiny, special_ids
from training.questions import Asker, Question

NEW = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model, its export, and the questions of a dataset, by task."""
    folder = tmp_path_factory.mktemp("generate")
    train_tokenizer(["Which colour is it? red green blue user assistant Time 0.0s: What happens? moves right"], folder / "words", 300)
    tokenizer = load_tokenizer(folder / "words")
    profile = load_profile("tiny_video", tokenizer_digest(folder / "words"))
    dataset = asked.write(folder, asked.samples(), tokenizer, profile)
    questions, failed, unasked = asked.all_of(dataset, profile, tokenizer)
    assert ([f.uid for f in failed], unasked) == ([next(s.uid for s in asked.samples() if s.broken)], 1)
    start_ranks()
    model = build_tiny(len(tokenizer), handmade.SMALL, special_ids(tokenizer), 3)
    losses = asked.teach(model, questions, tokenizer, 40)
    assert losses[-1] < losses[0] / 2, "a model that says the same of everything would prove nothing"
    facts = {"stage": 1, "stage_digest": "d", "profile": asdict(profile), "compress": True}
    final = save_final(model, folder, 1, facts, Ranks(0, 1), beside=tokenizer_files(folder / "words"))
    return SimpleNamespace(
        model=model, tokenizer=tokenizer, profile=profile, export=export(final, folder / "out"), questions=questions, folder=folder
    )


def _question(made: SimpleNamespace, key: str, turn: int = 0) -> Question:
    uid = next(s.uid for s in asked.samples() if s.key == key)
    return next(q for q in made.questions if q.name.uid == uid and q.turn == turn)


def _ours(made: SimpleNamespace, prompts: list[Prompt], at_once: int = 8) -> list[tuple[int, ...]]:
    found = generate(made.model, prompts, made.tokenizer, Bounds(at_once, new_tokens=NEW))
    assert all(answer.cut or len(answer.ids) < NEW for answer in found)
    return [answer.ids for answer in found]


def _theirs(made: SimpleNamespace, content: list[dict[str, str]], **media: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
    """(inputs of transformers' processor, the tokens of its model's answer)."""
    processor = AutoProcessor.from_pretrained(made.export, local_files_only=True)
    model = VideoLlama3ForConditionalGeneration.from_pretrained(made.export, local_files_only=True)
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], return_tensors="pt", **media)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    return inputs, tuple(ids[:-1] if ids[-1] == special_id(made.tokenizer, END) else ids)


def test_a_picture_is_answered_as_transformers_answers_it(made: SimpleNamespace) -> None:
    question = _question(made, "caption-0")
    image = Image.open(io.BytesIO(asked.square("red", 1)))
    inputs, theirs = _theirs(made, [{"type": "image"}, {"type": "text", "text": "Describe it."}], images=[image])
    assert question.prompt.input_ids.tolist() == inputs["input_ids"][0].tolist()
    assert np.allclose(question.prompt.media[0].pixels, inputs["pixel_values"].numpy(), atol=1e-6), "84 × 56 needs no resizing"
    assert _ours(made, [question.prompt]) == [theirs]


def test_a_compressed_video_is_answered_as_transformers_answers_it(made: SimpleNamespace) -> None:
    question = _question(made, "moves")
    frames = sample_frames(io.BytesIO(asked.clip("red", True)), made.profile.fps, made.profile.max_frames, Limits(), lambda h, w, t: (h, w))
    metadata = VideoMetadata(total_num_frames=len(frames.pixels), fps=made.profile.fps, frames_indices=list(range(len(frames.pixels))))
    inputs, theirs = _theirs(
        made, [{"type": "video"}, {"type": "text", "text": "What happens?"}], videos=[frames.pixels], video_metadata=[metadata]
    )
    keep = question.prompt.media[0].keep
    assert keep is not None
    assert 0 < keep.sum() < len(keep)
    assert keep.tolist() == inputs["video_compression_mask"].tolist()
    assert question.prompt.input_ids.tolist() == inputs["input_ids"][0].tolist()
    assert _ours(made, [question.prompt]) == [theirs]


def test_a_batch_answers_as_each_alone(made: SimpleNamespace) -> None:
    prompts = [q.prompt for q in made.questions]
    assert len({len(p.input_ids) for p in prompts}) > 3
    alone = [_ours(made, [p])[0] for p in prompts]
    assert len(set(alone)) > 3, "the answers differ"
    assert _ours(made, prompts) == alone
    assert _ours(made, prompts, at_once=3) == alone


def test_a_later_turn_is_asked_after_the_gold_answers_before_it(made: SimpleNamespace) -> None:
    first, second = _question(made, "turns", 0), _question(made, "turns", 1)
    assert (first.asked, first.golds) == ("<image>\nFirst?", ("red",))
    assert (second.asked, second.golds) == ("<image>\nAnd now?", ("blue",))
    assert (len(first.prompt.media), len(second.prompt.media)) == (1, 2)
    before = first.prompt.input_ids.tolist()
    after = second.prompt.input_ids.tolist()
    assert after[: len(before)] == before
    said = made.tokenizer.decode(after[len(before) :])
    assert said.startswith("red<|im_end|>\n<|im_start|>user\n")
    assert said.endswith("And now?<|im_end|>\n<|im_start|>assistant\n")


def _shows(until: float) -> Message:
    return Message("stream", (Part("video", media=0, until=until),))


LIVE = asked.Asked(
    "live",
    "streaming",
    (
        asked.user("Say what happens."),
        _shows(0.3),
        asked.says("red"),
        asked.user("Is it this?", ("image", 1)),
        _shows(0.5),
        asked.says("blue"),
        asked.says("green"),
        _shows(0.8),
        asked.says("moves right"),
    ),
    (("video", asked.clip("red", True)), ("image", asked.square("blue", 2))),
)


@pytest.mark.parametrize("compress", [True, False])
def test_a_timed_answer_is_asked_after_the_frames_before_it(made: SimpleNamespace, tmp_path: Path, compress: bool) -> None:
    """Its prompt is the trained item up to it, and only those frames pass the encoder."""
    profile = replace(made.profile, fps=4.0)
    dataset = asked.write(tmp_path, [LIVE], made.tokenizer, profile)
    with closing(PlacesReader(Dataset.open(dataset), 1)) as reader:
        asker = Asker(reader, profile, made.tokenizer, compress, {}, Limits())
        (table,) = asker.tables(asker.choose("val", None))
        questions, failed, unasked = asker.ask(table)
    assert (failed, unasked) == ([], 0)
    assert [(q.turn, q.asked, q.golds) for q in questions] == [
        (0, "Say what happens.\n<video until 0.3 s>", ("red",)),
        (1, "Is it this?\n<image>\n<video until 0.5 s>", ("blue",)),
        (3, "<video until 0.8 s>", ("moves right",)),
    ], "what is said without a question or a frame is not asked for"
    assert [[(m.video, m.t) for m in q.prompt.media] for q in questions] == [[(True, 2)], [(True, 3), (False, 1)], [(True, 4), (False, 1)]]
    assert [q.prompt.media[0].keep is None for q in questions] == [not compress] * 3

    def logits(prompt: Prompt) -> Any:
        batch = collate([LoadedItem(questions[0].name, prompt.input_ids, np.full_like(prompt.input_ids, -100), prompt.media)], patch=14)
        with torch.no_grad():
            return made.model.eval()(**batch.model_inputs(), use_cache=False).logits[0]

    whole = logits(questions[-1].prompt)
    for question in questions[:-1]:
        ids = question.prompt.input_ids
        assert ids.tolist() == questions[-1].prompt.input_ids[: len(ids)].tolist()
        assert (logits(question.prompt) - whole[: len(ids)]).abs().max() <= 1e-5
    assert _ours(made, [q.prompt for q in questions]) == [_ours(made, [q.prompt])[0] for q in questions]


def test_the_models_own_settings_change_nothing(made: SimpleNamespace) -> None:
    prompt = _question(made, "colour").prompt
    plain = _ours(made, [prompt])
    own = made.model.generation_config
    made.model.generation_config = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=50.0, max_new_tokens=2)
    made.model.train()
    try:
        assert _ours(made, [prompt]) == plain
        assert made.model.generation_config.repetition_penalty == 50.0
        assert made.model.training
    finally:
        made.model.generation_config = own
        made.model.eval()


def test_an_answer_ends_where_the_model_ends_it(made: SimpleNamespace) -> None:
    prompt = _question(made, "colour").prompt
    whole = _ours(made, [prompt])[0]
    last = next(i for i in range(1, len(whole)) if whole[i] not in whole[:i])
    ids = {END: whole[last], PAD: special_id(made.tokenizer, PAD)}
    ends_there = SimpleNamespace(convert_tokens_to_ids=ids.__getitem__)
    assert generate(made.model, [prompt], ends_there, Bounds(new_tokens=NEW)) == [Generated(whole[:last], cut=False)]
    assert generate(made.model, [prompt], made.tokenizer, Bounds(new_tokens=1)) == [Generated(whole[:1], cut=True)]


def test_batches_hold_like_lengths_within_their_bounds(made: SimpleNamespace) -> None:
    def prompt(length: int, patches: int = 0) -> Prompt:
        medium = replace(_question(made, "colour").prompt.media[0], t=patches, h=1, w=1)
        return Prompt(np.zeros(length, dtype=np.int64), (medium,) if patches else ())

    lengths = [5, 90, 7, 95, 6]
    bounds = Bounds(prompts=2, tokens=1000, patches=100, new_tokens=10)
    assert list(batches_of([prompt(n) for n in lengths], bounds)) == [[3, 1], [2, 4], [0]]
    assert list(batches_of([prompt(n) for n in lengths], replace(bounds, prompts=9, tokens=105))) == [[3], [1], [2, 4, 0]]
    assert list(batches_of([prompt(9, n) for n in (60, 60, 30, 200, 1)], replace(bounds, prompts=9))) == [[0], [1, 2], [3], [4]]
    assert list(batches_of([], bounds)) == []

"""A small real dataset to ask of: pictures and clips that need no resizing, several turns, choices, running text, a broken file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from shards.index import index_schema
from shards.items import Item, Message, Part
from shards.manifest import Manifest, profile_entries, save_manifest
from shards.measure import Medium, measure_item
from shards.media import Limits
from shards.places import PlacesReader
from shards.profile import Profile, load_profile
from shards.publish import publish_shard
from shards.reader import Dataset
from shards.sample import Texts, uid_of
from shards.store import open_store
from shards.tokenizer import END, load_tokenizer, special_id, text_only, tokenizer_digest, train_tokenizer
from shards.writer import ShardMedium, ShardSample, write_shard
from tests.training import handmade
from tests.training.small_dataset import clip, picture
from training.checkpoint import save_final
from training.collate import IGNORED, LoadedItem, collate
from training.engine import Ranks, start_ranks
from training.launch import tokenizer_files
from training.model import build_tiny, special_ids
from training.pack_loss import PackLoss
from training.questions import Asker, Failed, Question

VERSION = "a5cedda7"
CHOICE = "What is it?\nA. a circle\nB. a bar"


@dataclass(frozen=True)
class Asked:
    """A sample with one item. `broken`: its media are cut after they were measured."""

    key: str
    task: str
    messages: tuple[Message, ...]
    media: tuple[tuple[str, bytes], ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = "made"
    broken: bool = False

    @property
    def uid(self) -> str:
        return uid_of(self.source, self.key)


def user(*parts: str | tuple[str, int]) -> Message:
    """Texts, and media as ("image", 0)."""
    return Message("user", tuple(Part("text", text=p) if isinstance(p, str) else Part(p[0], media=p[1]) for p in parts))  # type: ignore[arg-type]


def says(text: str) -> Message:
    return Message("assistant", (Part("text", text=text),))


def square(colour: str, seed: int) -> bytes:
    """A picture of 84 × 56 pixels: whole blocks of 2 × 2 patches."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(colour, "square", seed))).crop((0, 0, 84, 56)).save(buffer, "PNG")
    return buffer.getvalue()


def samples() -> list[Asked]:
    """One of each kind; two captions, whose records hold more captions."""
    red, blue = ("image", square("red", 1)), ("image", square("blue", 2))
    made = [
        Asked("colour", "vqa", (user(("image", 0), "Which colour is it?"), says("red")), (red,)),
        Asked("choice", "vqa", (user(("image", 0), CHOICE), says("B")), (red,), source="other"),
        Asked(
            "turns",
            "multi_image",
            (user(("image", 0), "First?"), says("red"), user(("image", 1), "And now?"), says("blue")),
            (red, blue),
            {"answers": [["ruby"], ["navy", "sky"]], "one": ["ruby"]},
        ),
        Asked("moves", "video", (user(("video", 0), "What happens?"), says("moves right")), (("video", clip("red", True)),)),
        Asked("said", "text", (user("What is 2 and 2?"), says("It is 4."))),
        Asked("running", "text", (says("Once upon a time there was a square."),)),
        Asked("broken", "vqa", (user(("image", 0), "Which colour is it?"), says("blue")), (blue,), broken=True),
    ]
    captions = {"captions": ["a square of red", "one red square"]}
    for number in range(2):
        about = (user(("image", 0), "Describe it."), says(f"A {'red' if number == 0 else 'blue'} square on grey, number {number}."))
        made.append(Asked(f"caption-{number}", "short_caption", about, (red if number == 0 else blue,), captions))
    return made


def write(folder: Path, held: list[Asked], tokenizer: Any, profile: Profile, split: str = "val", shards: int = 1) -> Path:
    """The dataset of these samples, all in `split`, dealt to so many shards."""
    written = []
    for one in held:
        media = [Medium(kind, io.BytesIO(data) if kind == "video" else data, Limits()) for kind, data in one.media]  # type: ignore[arg-type]
        item = Item(one.task, 0, one.messages)
        measured = measure_item(item, media, tokenizer, profile)
        cut: Callable[[bytes], bytes] = lambda data: data[: len(data) // 2]  # noqa: E731
        members = [
            ShardMedium(kind, f"{one.key}.{'mp4' if kind == 'video' else 'png'}", cut(data) if one.broken else data)  # type: ignore[arg-type]
            for kind, data in one.media
        ]
        kind = one.media[0][0] if one.media else "text"
        written.append(
            ShardSample(
                one.uid,
                one.source,
                one.key,
                kind,  # type: ignore[arg-type]
                split,
                members,
                texts=Texts(meta=one.meta),
                items=[item],
                measures={profile.name: [measured]},
            )
        )
    store = open_store(str(folder / "dataset"))
    infos = []
    for number in range(shards):
        name = f"{split}-{number:06d}"
        shard = write_shard(folder / f"{name}.tar", name, written[number::shards], index_schema((), [profile.name]))
        infos.append(publish_shard(store, f"v-{VERSION}", shard))
    save_manifest(store, Manifest("asked", VERSION, "made by hand", tuple(infos), profiles=profile_entries([profile])))
    return folder / "dataset"


def all_of(dataset: Path, profile: Profile, tokenizer: Any) -> tuple[list[Question], list[Failed], int]:
    """What Asker.ask says of the split `val`."""
    with closing(PlacesReader(Dataset.open(dataset), 1)) as reader:
        asker = Asker(reader, profile, tokenizer, True, {}, Limits())
        (table,) = asker.tables(asker.choose("val", None))
        return asker.ask(table)


def teach(model: Any, questions: Sequence[Question], tokenizer: Any, steps: int) -> list[float]:
    """Plain AdamW on the first gold answer of each question, all in one pack: the loss of each step."""
    items = []
    for question in questions:
        answer = [*text_only(tokenizer).encode(question.golds[0]).ids, special_id(tokenizer, END)]
        ids = np.concatenate([question.prompt.input_ids, answer])
        labels = np.concatenate([np.full(len(ids) - len(answer), IGNORED), answer])
        items.append(LoadedItem(question.name, ids, labels, question.prompt.media))
    batch, loss_of = collate(items, patch=14), PackLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(batch)[0] / batch.counts.labelled
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


BLOCK = {"profile": "tiny_video", "compress": True, "train": {"llm": 1.0}, "step": {"packs": 2}, "seq_tokens": 512, "pack_patches": 512}


def finished_stage(folder: Path, steps: int) -> SimpleNamespace:
    """The dataset, and the end of a stage whose model was taught its answers: dataset, final, uid (of each key), folder, losses."""
    held = samples()
    spoken = [part.text for one in held for message in one.messages for part in message.content]
    train_tokenizer([*spoken, "user\nassistant\nTime 0.0s:,"], folder / "words", 300)
    tokenizer = load_tokenizer(folder / "words")
    profile = load_profile("tiny_video", tokenizer_digest(folder / "words"))
    dataset = write(folder, held, tokenizer, profile)
    questions, _, _ = all_of(dataset, profile, tokenizer)
    start_ranks()
    model = build_tiny(len(tokenizer), handmade.SMALL, special_ids(tokenizer), 3)
    losses = teach(model, questions, tokenizer, steps)
    facts = {"stage": 1, "stage_digest": "d", "profile": asdict(profile), "compress": True, "block": BLOCK}
    final = save_final(model, folder, 1, facts, Ranks(0, 1), beside=tokenizer_files(folder / "words"))
    uid = {one.key: one.uid for one in held}
    return SimpleNamespace(dataset=str(dataset), final=final, folder=folder, uid=uid, losses=losses)

"""A small real dataset: JPEGs, clips and texts made here, tokenized, measured and written into real shards, with a held-out split."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from shards.index import index_schema
from shards.items import Item, Message, Part
from shards.manifest import Manifest, profile_entries, save_manifest
from shards.measure import Medium, measure_item
from shards.media import Limits
from shards.profile import load_profile
from shards.publish import publish_shard
from shards.sample import uid_of
from shards.store import open_store
from shards.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer
from shards.writer import ShardMedium, ShardSample, write_shard

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("circle", "square", "bar")
PROFILES = ("tiny", "tiny_video")
VERSION = "5a11da7a"


def picture(colour: str, shape: str, seed: int) -> bytes:
    """A JPEG of 84 × 70 pixels: one coloured shape on a grey ground, at a place that `seed` names."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (84, 70), tuple(int(v) for v in random.integers(90, 150, 3)))
    x, y = (int(v) for v in random.integers(4, 30, 2))
    draw = ImageDraw.Draw(image)
    box = (x, y, x + 36, y + (12 if shape == "bar" else 36))
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def clip(colour: str, rightwards: bool) -> bytes:
    """A second of lossless H.264, 84 × 56 pixels, 4 frames: a square that moves over a still ground."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for step in range(4):
            frame = np.full((56, 84, 3), 110, dtype=np.uint8)
            x = 4 + 16 * (step if rightwards else 3 - step)
            frame[4:24, x : x + 24] = COLOURS[colour]
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def _ask(task: str, medium: str | None, question: str, answer: str) -> Item:
    asked = ((Part(medium, media=0),) if medium in ("image", "video") else ()) + (Part("text", text=question),)  # type: ignore[arg-type]
    return Item(task, 0, (Message("user", asked), Message("assistant", (Part("text", text=answer),))))


def samples() -> list[tuple[str, list[tuple[str, bytes]], list[Item]]]:
    """(key, media, items): 24 pictures with three items each, 4 clips, 8 texts."""
    made: list[tuple[str, list[tuple[str, bytes]], list[Item]]] = []
    for number in range(24):
        colour, shape = list(COLOURS)[number % 4], SHAPES[number % 3]
        items = [
            _ask("short_caption", "image", "Describe the picture.", f"A {colour} {shape} on grey."),
            _ask("document", "image", "Read the page.", f"{shape} {number}"),
            _ask("vqa", "image", "Which colour is it?", f"{colour}"),
        ]
        made.append((f"picture-{number:02}", [("image", picture(colour, shape, number))], items))
    for number, colour in enumerate(COLOURS):
        right = number % 2 == 0
        answer = f"A {colour} square moves to the {'right' if right else 'left'}."
        made.append((f"clip-{number}", [("video", clip(colour, right))], [_ask("video", "video", "What happens?", answer)]))
    for number in range(8):
        made.append((f"text-{number}", [], [_ask("text", None, f"What is {number} and {number}?", f"It is {2 * number}.")]))
    return made


def write(folder: Path) -> tuple[Path, Path]:
    """(dataset, tokenizer directory) under `folder`; every seventh sample is held out as `val`."""
    everything = samples()
    spoken = [part.text for _, _, items in everything for i in items for m in i.messages for part in m.content]
    words = folder / "tokenizer"
    train_tokenizer([*spoken, "user\nassistant\nTime 0.0s:,"], words, 400)
    tokenizer = load_tokenizer(words)
    profiles = [load_profile(name, tokenizer_digest(words)) for name in PROFILES]
    splits: dict[str, list[ShardSample]] = {"train": [], "val": []}
    for number, (key, raw, items) in enumerate(everything):
        media = [Medium(kind, io.BytesIO(data) if kind == "video" else data, Limits()) for kind, data in raw]  # type: ignore[arg-type]
        measures = {p.name: [measure_item(item, media, tokenizer, p) for item in items] for p in profiles}
        split = "val" if number % 7 == 3 else "train"
        members = [ShardMedium(kind, f"{key}.{'mp4' if kind == 'video' else 'jpg'}", data) for kind, data in raw]  # type: ignore[arg-type]
        kind = raw[0][0] if raw else "text"
        splits[split].append(
            ShardSample(uid_of("made", key), "made", key, kind, split, members, items=items, measures=measures)  # type: ignore[arg-type]
        )
    store = open_store(str(folder / "dataset"))
    infos = [
        publish_shard(store, f"v-{VERSION}", write_shard(folder / f"{split}.tar", f"{split}-000000", held, index_schema((), PROFILES)))
        for split, held in splits.items()
    ]
    save_manifest(store, Manifest("small", VERSION, "made by hand", tuple(infos), profiles=profile_entries(profiles)))
    return folder / "dataset", words

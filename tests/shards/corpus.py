"""Small datasets for the tests of writer, reader and verification."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from shards.index import index_schema
from shards.items import Item, Message, Part
from shards.manifest import Manifest, ShardInfo, save_manifest
from shards.publish import publish_shard
from shards.sample import Texts, uid_of
from shards.store import open_store
from shards.writer import ShardMedium, ShardSample, write_shard

SCORES = (pa.field("width", pa.int32()), pa.field("sharp", pa.float32()), pa.field("format", pa.string()))
SCHEMA = index_schema(SCORES, ["tiny"])
VERSION = "abcd1234"


def jpeg(seed: int, side: int = 24) -> bytes:
    rng = random.Random(seed)
    image = Image.frombytes("RGB", (side, side), rng.randbytes(side * side * 3))
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def item(task: str, n: int, media: int | None) -> Item:
    parts = (Part("text", text=f"{task}?"),) if media is None else (Part("image", media=media), Part("text", text=f"{task}?"))
    return Item(task, n, (Message("user", parts), Message("assistant", (Part("text", text="yes"),))))


def measure(tokens: int) -> dict[str, Any]:
    medium = {"t": 1, "h": 2, "w": 4, "merge": 2, "times": [], "mask": b"\x03", "keep": [1.0, 0.5], "distinct": 1, "distinct_kept": 2}
    return {"text_tokens": tokens, "labelled_tokens": 1, "patches": 8, "visual_tokens": 2, "kept_tokens": 2, "media": [medium]}


def sample(number: int, split: str = "train", media: Sequence[ShardMedium] | None = None, items: int | None = None) -> ShardSample:
    """Sample `number` of source "s": numbers 0, 1, 2, 3, … have 1, 2, 0, 1, … media and 1, 2, 3, 0, 1, … items."""
    if media is None:
        media = [ShardMedium("image", f"{number}/{i}.jpeg", jpeg(10 * number + i)) for i in range((1, 2, 0)[number % 3])]
    tasks = ("short_caption", "vqa", "vqa")[: items if items is not None else (1, 2, 3, 0)[number % 4]]
    made = [item(task, max(0, i - 1), 0 if media else None) for i, task in enumerate(tasks)]
    return ShardSample(
        uid=uid_of("s", f"k{number}"),
        source="s",
        key=f"k{number}",
        kind="image" if media else "text",
        split=split,
        media=media,
        texts=Texts(caption=f"caption {number}", meta={"page": number}),
        items=made,
        scores={"width": number if media else None, "sharp": number / 3, "format": "JPEG" if media else None},
        measures={"tiny": [measure(i + 1) for i in range(len(made))]},
    )


def manifest(shards: Sequence[ShardInfo], version: str = VERSION, previous: str | None = None) -> Manifest:
    return Manifest(
        name="corpus",
        version=version,
        previous=previous,
        recipe=hashlib.sha256(b"recipe").hexdigest()[:16],
        shards=tuple(shards),
        profiles={"tiny": {"digest": "00ff", "patch": 14}},
        scores=tuple((f.name, str(f.type)) for f in SCORES),
        counts={"inputs": 20, "kept": 18, "rejected": 2},
    )


def publish(url: str, scratch: Path, shards: dict[str, list[ShardSample]], version: str = VERSION) -> list[ShardInfo]:
    """Writes and publishes shards and their manifest. `scratch`: an empty folder for files on their way."""
    store = open_store(url)
    infos = []
    for name, samples in shards.items():
        written = write_shard(scratch / f"{version}-{name}.tar", name, samples, SCHEMA)
        infos.append(publish_shard(store, f"v-{version}", written))
        written.local_path.unlink()
    save_manifest(store, manifest(infos, version))
    return infos


def two_splits() -> dict[str, list[ShardSample]]:
    return {
        "train-000000": [sample(i) for i in range(7)],
        "train-000001": [sample(i) for i in range(7, 12)],
        "val-000000": [sample(i, "val") for i in range(12, 15)],
    }

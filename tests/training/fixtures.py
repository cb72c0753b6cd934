"""What the tests of training share: index tables by arithmetic, and small real datasets (pictures, clips, texts) in real shards."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.index import index_schema
from shards.items import Item, Message, Part
from shards.manifest import Manifest, profile_entries, save_manifest
from shards.measure import Medium, measure_item
from shards.media import Limits
from shards.profile import Profile
from shards.publish import publish_shard
from shards.sample import uid_of
from shards.store import open_store
from shards.writer import ShardMedium, ShardSample, write_shard

PROFILE = "p"


@dataclass(frozen=True)
class Fact:
    """One row of an index, as far as a plan looks: `t` frames of `side` × `side` patches, merged 2 × 2 (0 frames: text only)."""

    name: str
    task: str = "text"
    source: str = "s"
    shard: str = "a.tar"
    text: int = 10
    t: int = 0
    side: int = 4
    kept: float = 1.0
    n: int = 0
    score: float = 0.0

    def row(self) -> dict[str, object]:
        patches = self.t * self.side**2
        visual = patches // 4
        size = {"t": self.t, "h": self.side, "w": self.side, "merge": 2, "distinct": self.t, "distinct_kept": int(visual * self.kept)}
        grid = {**size, "times": [], "mask": None, "keep": []}
        return {
            "uid": uid_of(self.source, self.name),
            "task": self.task,
            "n": self.n,
            "split": "train",
            "source": self.source,
            "key": self.name,
            "kind": "video" if self.t else "text",
            "shard": self.shard,
            "offset": 0,
            "bytes": 1024,
            "json": {"name": f"{self.name}.json", "offset": 512, "length": 2, "xxh3": 0},
            "media": [],
            "score": self.score,
            PROFILE: {
                "text_tokens": self.text,
                "labelled_tokens": self.text // 2,
                "patches": patches,
                "visual_tokens": visual,
                "kept_tokens": int(visual * self.kept),
                "media": [grid] if self.t else [],
            },
        }


def index_of(facts: Sequence[Fact]) -> pa.Table:
    """An index table with the score `score` and the measure profile `p`."""
    schema = index_schema([pa.field("score", pa.float64())], [PROFILE])
    return pa.Table.from_pylist([fact.row() for fact in facts], schema=schema)


@dataclass(frozen=True)
class Made:
    """One sample to write: media by file name, one item about all of them."""

    key: str
    task: str
    question: str
    answer: str
    media: tuple[tuple[str, str, bytes], ...] = ()  # (kind, name, bytes)
    messages: tuple[Message, ...] = ()  # in place of question and answer

    @property
    def uid(self) -> str:
        return uid_of("real", self.key)

    def item(self) -> Item:
        if self.messages:
            return Item(self.task, 0, self.messages)
        parts = [Part(kind, media=i) for i, (kind, _, _) in enumerate(self.media)]  # type: ignore[arg-type]
        asked = Message("user", (*parts, Part("text", text=self.question)))
        return Item(self.task, 0, (asked, Message("assistant", (Part("text", text=self.answer),))))


def real_samples(data: Path) -> list[Made]:
    """Real photographs one by one and in pairs, real clips of several codecs, and real instructions without any medium."""
    records = [json.loads(line) for line in (data / "manifest.jsonl").read_text("utf-8").splitlines()]
    of = {kind: [r for r in records if r["kind"] == kind] for kind in ("caption", "video", "text")}

    def media(record: Mapping[str, object], kind: str) -> tuple[str, str, bytes]:
        name = record["files"][0]  # type: ignore[index]
        return kind, name, (data / name).read_bytes()

    photos = [r for r in of["caption"] if r["subset"] == "coco2017"][:14]
    made = [Made(r["id"], "short_caption", "What is this?", r["text"], (media(r, "image"),)) for r in photos[:10]]
    made += [
        Made(f"pair-{i}", "multi_image", "Compare.", a["text"] + b["text"], (media(a, "image"), media(b, "image")))
        for i, (a, b) in enumerate(zip(photos[10:12], photos[12:14], strict=True))
    ]
    for record in [r for r in of["video"] if r["files"][0].endswith((".mp4", ".webm"))][:4]:
        made.append(Made(record["id"], "video", "What happens?", record.get("caption") or "A clip.", (media(record, "video"),)))
    for record in of["text"][:6]:
        asked, answered = (turn["value"][:400] for turn in record["conversations"][:2])
        made.append(Made(record["id"], "text", asked, answered))
    return made


def write_dataset(
    folder: Path,
    samples: Sequence[Made],
    profile: Profile,
    tokenizer: Any,
    shards: int = 3,
    replaced: Mapping[str, bytes] | None = None,
) -> Path:
    """Measures and writes `samples` into `shards` real shards. `replaced`: bytes written for a key's media instead of those."""
    store, infos = open_store(str(folder / "dataset")), []
    for number in range(shards):
        held = []
        for one in samples[number::shards]:
            readers = [Medium(kind, io.BytesIO(data) if kind == "video" else data, Limits()) for kind, _, data in one.media]  # type: ignore[arg-type]
            measured = measure_item(one.item(), readers, tokenizer, profile)
            members = [ShardMedium(kind, name, (replaced or {}).get(one.key, data)) for kind, name, data in one.media]  # type: ignore[arg-type]
            kind = one.media[0][0] if one.media else "text"
            held.append(
                ShardSample(one.uid, "real", one.key, kind, "train", members, items=[one.item()], measures={profile.name: [measured]})  # type: ignore[arg-type]
            )
        name = f"train-{number:06}"
        written = write_shard(folder / f"{name}.tar", name, held, index_schema((), [profile.name]))
        infos.append(publish_shard(store, "v-00c0ffee", written))
    save_manifest(store, Manifest("real", "00c0ffee", "a test", tuple(infos), profiles=profile_entries([profile])))
    return folder / "dataset"

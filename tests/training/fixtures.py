"""What the tests of training share: index tables by arithmetic, and small real datasets (pictures, clips, texts) in real shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from shards.index import index_schema
from shards.sample import uid_of

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
        grid = {"t": self.t, "h": self.side, "w": self.side, "merge": 2, "times": [], "mask": None, "keep": []}
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

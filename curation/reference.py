"""What a population may be held against: benchmarks and held-out sets, whose copies have no place in training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Reference:
    """One named reference.

    format  "folder": pictures and clips under a folder · "dataset": shards of ours · "webdataset": any tars ·
            "embeddings": a file of vectors that the recipe's own embed step made (docs/steps/deduplicate.md).
    path    folder, manifest's folder, or file.
    """

    name: str
    format: Literal["folder", "dataset", "webdataset", "embeddings"]
    path: str

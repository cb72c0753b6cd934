"""Dirt for the experiments: wrong captions and copies among clips, and what can be heard of them without knowing where they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.digits_line import lines_of

WRONG = 1 / 3  # of all captions
COPIES = 0.3  # of the records: copies of ORIGINALS of the other clips
ORIGINALS = 0.02
SOURCES = ("shown", "order")


@dataclass(frozen=True, slots=True)
class Found:
    """What agreement finds of wrong captions. precision: the wrong among those it drops; recall: those it drops among the wrong."""

    precision: float
    recall: float
    records: int
    wrong: int
    dropped: int


def plant(folder: Path, source: str, seed: int) -> None:
    """folder/dirty_<source>.jsonl from folder/<source>.jsonl: as many records. COPIES of them are replaced by copies of a few others, files
    of their own with equal bytes; then a WRONG share has the conversation of another clip that says something else. Which they are stands
    in folder/truth_<source>.jsonl, for counting afterwards alone: no recipe reads it.
    """
    listed = folder / f"dirty_{source}.jsonl"
    if listed.is_file():
        return
    random = np.random.default_rng([seed, 200])
    records = list(lines_of(folder / f"{source}.jsonl"))
    order = random.permutation(len(records))
    copies, copied = order[: int(COPIES * len(records))], order[-max(1, int(ORIGINALS * len(records))) :]
    (folder / f"copies_{source}").mkdir(exist_ok=True)
    dirty = [dict(record) for record in records]
    for at in copies.tolist():
        of = records[int(random.choice(copied))]
        name = f"copies_{source}/{at:06}.mkv"
        shutil.copyfile(folder / of["files"], folder / name)
        dirty[at] = {**of, "id": f"copy-{at:06}", "files": name}
    right = [record["conversations"] for record in dirty]
    wrong = random.choice(len(dirty), int(WRONG * len(dirty)), replace=False).tolist()
    for at in wrong:
        dirty[at]["conversations"] = _another(right, at, random)
    truth = [{"id": one["id"], "wrong": one["conversations"] != said} for one, said in zip(dirty, right, strict=True)]
    _write(folder / f"truth_{source}.jsonl", truth)
    _write(listed, dirty)


def hear(folder: Path, source: str, answers: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> Found:
    """folder/heard_<source>.jsonl: the dirty records with `agreement`, the share of a record's answers that the model gives too.

    answers: of `fovea evaluate` over the dirty dataset; keys: uid → id of the record. Returns how well a rule `agreement = 1` finds what is
    wrong, by the truth that the rule does not know.
    """
    said: dict[str, list[bool]] = {}
    for one in answers:
        if one["source"] == source:
            said.setdefault(keys[one["uid"]], []).append("error" not in one and one["gold"][0] == one["answer"].strip())
    dirty = list(lines_of(folder / f"dirty_{source}.jsonl"))
    heard = [{**record, "agreement": sum(said[record["id"]]) / len(said[record["id"]])} for record in dirty]
    _write(folder / f"heard_{source}.jsonl", heard)
    truth = {one["id"]: one["wrong"] for one in lines_of(folder / f"truth_{source}.jsonl")}
    dropped = {one["id"] for one in heard if one["agreement"] < 1}
    wrong = {name for name, is_wrong in truth.items() if is_wrong}
    both = len(dropped & wrong)
    return Found(round(both / max(1, len(dropped)), 4), round(both / max(1, len(wrong)), 4), len(dirty), len(wrong), len(dropped))


def keys_of(data: Path) -> dict[str, str]:
    """uid → id of the record, of a dataset's index."""
    tables = [pq.read_table(index, columns=["uid", "key"]) for index in sorted(data.glob("v-*/*.parquet"))]
    return {row["uid"]: row["key"] for table in tables for row in table.to_pylist()}


def _another(talks: Sequence[Any], at: int, random: np.random.Generator) -> Any:
    """The conversation of another clip, asked the same in the same order, with no answer in common."""
    while True:
        other = talks[int(random.integers(len(talks)))]
        if all((a["value"] == b["value"]) == (a["from"] == "human") for a, b in zip(talks[at], other, strict=True)):
            return other


def _write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")

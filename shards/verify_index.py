"""What an index must say to fit its manifest and itself; its samples, laid out for the walk along the tar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shards.errors import ShardError
from shards.index import INDEX_FORMAT, ITEM_FIELDS, measure_type
from shards.manifest import Manifest, ShardInfo
from shards.reader import read_index
from shards.store import Store
from shards.tar import BLOCK, padding
from shards.twin import decode_index, twin_entry


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be: in the file `shard` (relative to the dataset), at `uid` and `member` if that is known."""

    shard: str
    uid: str | None
    member: str | None
    what: str

    def __str__(self) -> str:
        where = [self.shard, *(f"{word} {value}" for word, value in (("sample", self.uid), ("member", self.member)) if value)]
        return f"{', '.join(where)}: {self.what}"


@dataclass(frozen=True, slots=True)
class Expected:
    """A sample as the index describes it: members (name, offset, length, xxh3), JSON last; (task, n) of its items."""

    uid: str
    offset: int
    bytes: int
    members: list[tuple[str, int, int, int]]
    items: list[tuple[str, int]]


def check_index(store: Store, shard: ShardInfo, manifest: Manifest) -> tuple[list[Fault], list[Expected] | None]:
    """The index's faults, and its samples in the tar's order (None if it cannot be trusted to say where they are)."""
    try:
        data = read_index(store, shard)
        table = decode_index(data, shard.index)
        said = twin_entry(data, shard.path, shard.index)
    except ShardError as error:
        return [Fault(shard.index, None, None, str(error))], None
    faults = []
    if said.sha256 != shard.sha256 or said.bytes != shard.bytes:
        faults.append(
            Fault(
                shard.index, None, None, f"it was made for a tar with sha256 {said.sha256[:16]}…, the manifest names {shard.sha256[:16]}…"
            )
        )
    wrong = _schema(table.schema, manifest)
    if wrong:
        return [*faults, Fault(shard.index, None, None, wrong)], None
    samples = _samples(table)
    items = sum(len(sample.items) for sample in samples)
    for word, is_, should in (
        ("rows", table.num_rows, shard.rows),
        ("samples", len(samples), shard.samples),
        ("items", items, shard.items),
    ):
        if is_ != should:
            faults.append(Fault(shard.index, None, None, f"it has {is_} {word}, the manifest says {should}"))
    for column, value in (("split", shard.split), ("shard", shard.name)):
        for other in sorted(set(table[column].to_pylist()) - {value}):
            faults.append(Fault(shard.index, None, None, f"column {column} says {other!r}, the manifest {value!r}"))
    return faults + _order(shard, samples), samples


def _schema(schema: pa.Schema, manifest: Manifest) -> str | None:
    format = (schema.metadata or {}).get(b"format", INDEX_FORMAT.encode()).decode()
    measure = _plain(str(measure_type(format)))
    expected = [(f.name, _plain(str(f.type))) for f in ITEM_FIELDS] + [(name, _plain(type_)) for name, type_ in manifest.scores]
    found = [(f.name, _plain(str(f.type))) for f in schema]
    profiles = {name for name, type_ in found if type_ == measure}
    if profiles == set(manifest.profiles) and [entry for entry in found if entry[0] not in profiles] == expected:
        return None
    expected += [(name, measure) for name in manifest.profiles]
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    return f"its columns are not those of the manifest: missing {missing}, not expected {extra}, or in another order"


def _plain(type_: str) -> str:
    """Parquet may call the value of a list `element` where Arrow says `item`."""
    return type_.replace("<element: ", "<item: ")


def _samples(table: pa.Table) -> list[Expected]:
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in ("uid", "task", "n", "offset", "bytes", "json", "media")}
    samples: list[Expected] = []
    before = None
    for uid, task, n, offset, size, json, media in zip(*columns.values(), strict=True):
        members = [(m["name"], m["offset"], m["length"], m["xxh3"]) for m in [*media, json]]
        if before != (uid, offset, size, members):
            samples.append(Expected(uid, offset, size, members, []))
            before = (uid, offset, size, members)
        if (task, n) != ("", -1):
            samples[-1].items.append((task, n))
    return samples


def _order(shard: ShardInfo, samples: list[Expected]) -> list[Fault]:
    faults = []
    seen: set[str] = set()
    end = 0
    for sample in samples:
        if sample.uid in seen:
            faults.append(Fault(shard.index, sample.uid, None, "its rows are not together, or name different places"))
        seen.add(sample.uid)
        if len(set(sample.items)) != len(sample.items):
            faults.append(Fault(shard.index, sample.uid, None, "two rows have the same (uid, task, n)"))
        if sample.offset < end:
            faults.append(Fault(shard.index, sample.uid, None, f"it begins at {sample.offset}, before the sample before it ends ({end})"))
        at = sample.offset
        for name, offset, length, _ in sample.members:
            if offset != at + BLOCK or length < 0:
                faults.append(
                    Fault(shard.index, sample.uid, name, f"its place ({offset}, {length} bytes) does not follow the member before it")
                )
            at = offset + length + padding(length)
        if at != sample.offset + sample.bytes:
            faults.append(Fault(shard.index, sample.uid, None, f"it says {sample.bytes} bytes, its members take {at - sample.offset}"))
        end = sample.offset + sample.bytes
    return faults

"""The index as a file: its rows from what was written, its bytes, and reading them back with their checks."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ShardError
from shards.index import INDEX_FORMAT, ITEM_FIELDS, MEASURE_TYPE, MEDIA_MEMBER_TYPE, MEMBER_TYPE, READABLE_FORMATS
from shards.manifest import ShardInfo
from shards.sample import canonical_json

if TYPE_CHECKING:
    from shards.writer import ShardSample

_MEASURE_KEYS = frozenset(f.name for f in MEASURE_TYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A written member: name, offset of its content in the tar, length in bytes, xxh3_64 and (media only) sha256 of the content."""

    name: str
    offset: int
    length: int
    xxh3: int
    sha256: str = ""


Written = tuple["ShardSample", int, int, list[Member]]  # sample, offset and bytes of all its members, members (JSON last)


def index_table(shard: str, written: Sequence[Written], schema: pa.Schema) -> pa.Table:
    """A row for each item (one with task "" and n -1 for a sample without items), in the tar's order. Raises ShardError."""
    if list(schema)[: len(ITEM_FIELDS)] != list(ITEM_FIELDS):
        raise ShardError(f"{shard}: an index begins with the columns {[f.name for f in ITEM_FIELDS]}; make its schema with index_schema()")
    rows = [max(1, len(sample.items)) for sample, *_ in written]
    take = pa.array(np.repeat(np.arange(len(written)), rows))
    samples = [sample for sample, *_ in written]
    media = [member for _, _, _, members in written for member in members[:-1]]
    sent = [medium for sample in samples for medium in sample.media]
    sha256 = [member.sha256 for member in media]
    transforms = [None if m.transform is None else canonical_json(m.transform) for m in sent]
    media_values = pa.StructArray.from_arrays(
        [
            *_member_columns(media),
            pa.array([m.kind for m in sent], pa.string()),
            pa.array(sha256, pa.string()),
            pa.array([m.original_sha256 or s for m, s in zip(sent, sha256, strict=True)], pa.string()),
            pa.array(transforms, pa.string()),
        ],
        fields=list(MEDIA_MEMBER_TYPE),
    )
    bounds = np.cumsum([0, *(len(members) - 1 for *_, members in written)])
    per_sample = {
        "uid": pa.array([s.uid for s in samples], pa.string()),
        "split": pa.array([s.split for s in samples], pa.string()),
        "source": pa.array([_utf8(s.source) for s in samples], pa.string()),
        "key": pa.array([_utf8(s.key) for s in samples], pa.string()),
        "kind": pa.array([s.kind for s in samples], pa.string()),
        "shard": pa.array([shard] * len(samples), pa.string()),
        "offset": pa.array([offset for _, offset, _, _ in written], pa.int64()),
        "bytes": pa.array([size for _, _, size, _ in written], pa.int64()),
        "json": pa.StructArray.from_arrays(_member_columns([members[-1] for *_, members in written]), fields=list(MEMBER_TYPE)),
        "media": pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), media_values, type=pa.list_(MEDIA_MEMBER_TYPE)),
    }
    profiles = {f.name for f in schema if f.type == MEASURE_TYPE}
    scores = [f for f in list(schema)[len(ITEM_FIELDS) :] if f.name not in profiles]
    per_sample |= {f.name: _score(shard, f, samples) for f in scores}
    for sample in samples:
        unknown = set(sample.scores) - {f.name for f in scores} | set(sample.measures) - profiles
        if unknown:
            raise ShardError(f"{shard}: sample {sample.uid} has scores or measures {sorted(unknown)} that are not in the index's schema")
    columns = {name: column.take(take) for name, column in per_sample.items()}
    columns["task"] = pa.array([task for s in samples for task in ([i.task for i in s.items] or [""])], pa.string())
    columns["n"] = pa.array([n for s in samples for n in ([i.n for i in s.items] or [-1])], pa.int32())
    columns |= {name: _measured(shard, name, samples) for name in profiles}
    return pa.table([columns[f.name] for f in schema], schema=schema)


def encode_index(table: pa.Table, info: ShardInfo) -> tuple[ShardInfo, bytes]:
    """The index file's bytes, a function of the table, the tar and Arrow's version; and `info` completed with their size and sha256."""
    twin = {key: getattr(info, key) for key in ("split", "rows", "samples", "items", "bytes", "sha256")} | {"name": info.name}
    sink = io.BytesIO()
    table = table.replace_schema_metadata({"format": INDEX_FORMAT, "shard": canonical_json(twin)})
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6", write_page_checksum=True)
    data = sink.getvalue()
    return replace(info, index_bytes=len(data), index_sha256=hashlib.sha256(data).hexdigest()), data


def decode_index(data: bytes, where: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of an index file, with its format as the only file-level metadata. Raises ShardError if it is none, or another format, or
    lacks a column."""
    file = open_index(data, where)
    schema = file.schema_arrow
    format = (schema.metadata or {})[b"format"].decode()
    missing = [name for name in columns or () if name.split(".")[0] not in schema.names]
    if missing:
        raise ShardError(f"{where}: the index has no column {', '.join(missing)}; it has {', '.join(schema.names)}")
    try:
        # Without Arrow's threads: one of them may hold the last share of `data`, and let go of it only when the interpreter is ending,
        # which aborts the process. Whoever reads many indexes reads several at once.
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
        return table.replace_schema_metadata({"format": format})
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{where}: the index is damaged: {error}") from error


def open_index(data: bytes, where: str) -> pq.ParquetFile:
    """Raises ShardError if `data` is no Parquet file, or no index of the known format."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{where}: no Parquet file: {error}") from error
    found = metadata.get(b"format", b"").decode("utf-8", "replace")
    if found not in READABLE_FORMATS:
        known = " and ".join(map(repr, READABLE_FORMATS))
        raise ShardError(f"{where}: format {found!r}, this version of fovea reads {known}; read it with the version that wrote it")
    return file


def twin_entry(data: bytes, path: str, index: str) -> ShardInfo:
    """What an index file says of its tar, as the manifest's entry under the given paths. Raises ShardError."""
    metadata = open_index(data, index).schema_arrow.metadata
    try:
        said: Mapping[str, Any] = json.loads(metadata[b"shard"])
        entry = {key: said[key] for key in ("split", "rows", "samples", "items", "bytes", "sha256")}
    except (KeyError, ValueError, TypeError) as error:
        raise ShardError(f"{index}: the index does not say which tar it belongs to ({error!r})") from error
    return ShardInfo(path=path, index=index, index_bytes=len(data), index_sha256=hashlib.sha256(data).hexdigest(), **entry)


def _member_columns(members: Sequence[Member]) -> list[pa.Array]:
    return [
        pa.array([m.name for m in members], pa.string()),
        pa.array([m.offset for m in members], pa.int64()),
        pa.array([m.length for m in members], pa.int64()),
        pa.array([m.xxh3 for m in members], pa.uint64()),
    ]


def _score(shard: str, column: pa.Field, samples: Sequence[ShardSample]) -> pa.Array:
    values = [sample.scores.get(column.name) for sample in samples]
    if pa.types.is_string(column.type):
        values = [_utf8(v) if isinstance(v, str) else v for v in values]
    return _array(values, column.type, lambda: f"{shard}: score {column.name}")


def _measured(shard: str, profile: str, samples: Sequence[ShardSample]) -> pa.Array:
    values: list[Mapping[str, Any] | None] = []
    for sample in samples:
        measures: Sequence[Mapping[str, Any] | None] = sample.measures.get(profile) or [None] * len(sample.items)
        if len(measures) != len(sample.items) or any(m is not None and set(m) != _MEASURE_KEYS for m in measures):
            raise ShardError(
                f"{shard}: sample {sample.uid} has {len(sample.items)} items, so profile {profile} must give as many measures, "
                f"each null or {{{', '.join(sorted(_MEASURE_KEYS))}}}"
            )
        values += measures or [None]
    return _array(values, MEASURE_TYPE, lambda: f"{shard}: profile {profile}")


def _array(values: Iterable[Any], type_: pa.DataType, where: Callable[[], str]) -> pa.Array:
    try:
        return pa.array(values, type_)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ShardError(f"{where()} does not fit its type {type_}: {error}") from error


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

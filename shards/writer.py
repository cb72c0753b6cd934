"""Writes a shard: tar, checksums and index rows in one pass. The same samples give the same bytes. docs/shards.md is the contract."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import xxhash

from shards.errors import ShardError, SourceError
from shards.index import ITEM_FIELDS
from shards.items import TASKS, Item
from shards.manifest import ShardInfo, split_of
from shards.publish import publish_shard as publish_shard
from shards.sample import MediaKind, SampleKind, Texts, canonical_json
from shards.tar import TRAILER, member_extension, member_names, padding, tar_header
from shards.twin import Member, encode_index, index_table

SAMPLE_FORMAT = "fovea-sample/1"

_CHUNK = 1 << 20
_FIXED = frozenset(f.name for f in ITEM_FIELDS)


@dataclass(frozen=True, slots=True)
class ShardMedium:
    """One medium as it goes into the shard.

    name             how the source calls it; for people and for the extension.
    data             the bytes; or a local path, or a function that opens a seekable binary file: those are streamed, never held whole.
    sha256           of these bytes if known: compared with what is written; "" = computed here.
    original_sha256  of the source's bytes; "" = there is no transform, so the same.
    transform        {operator, version, parameters} that made these bytes from the original ones; None = they are the original ones.
    format           what was found in the bytes (Pillow's or FFmpeg's word); "" = go by the name.
    """

    kind: MediaKind
    name: str
    data: bytes | Path | Callable[[], BinaryIO]
    sha256: str = ""
    original_sha256: str = ""
    transform: Mapping[str, Any] | None = None
    format: str = ""


@dataclass(frozen=True, slots=True)
class ShardSample:
    """A kept sample. `measures`: for each profile one `shards.index.MEASURE_TYPE` dict (or None) for each item."""

    uid: str
    source: str
    key: str
    kind: SampleKind
    split: str
    media: Sequence[ShardMedium] = ()
    texts: Texts = field(default_factory=Texts)
    items: Sequence[Item] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Sequence[Mapping[str, Any] | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard on local disk. The paths in `info` are without folder until it is published."""

    info: ShardInfo
    index: pa.Table
    local_path: Path
    index_data: bytes


def score_name(name: str) -> str:
    """The index column of a score: its own name, or `score_<name>` where that is a column every index has (`bytes`, `kind`, …)."""
    return f"score_{name}" if name in _FIXED else name


def write_shard(local_path: str | Path, shard_name: str, samples: Iterable[ShardSample], schema: pa.Schema) -> WrittenShard:
    """Writes `samples` in the given order to `local_path` and returns what the index and the manifest say of it.

    `schema` is `shards.index.index_schema(scores, profiles)`. Raises SourceError if a medium is not what it was
    said to be (it changed since it was read), ShardError for samples that do not fit the contract; then nothing is left at `local_path`.
    """
    path, split = Path(local_path), split_of(shard_name)
    if len(set(schema.names)) != len(schema.names):
        raise ShardError(
            f"{shard_name}: two index columns have the same name among {schema.names}; use shards.writer.score_name for scores"
        )
    written: list[tuple[ShardSample, int, int, list[Member]]] = []
    seen: set[str] = set()
    try:
        with path.open("wb") as file, _digesting(file) as out:
            for sample in samples:
                _check(shard_name, sample, split, seen)
                start = out.position
                members = _write_sample(out, sample)
                written.append((sample, start, out.position - start, members))
            out.put(TRAILER)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    table = index_table(f"{shard_name}.tar", written, schema)
    items = sum(len(sample.items) for sample, *_ in written)
    info = ShardInfo(
        path=f"{shard_name}.tar",
        index=f"{shard_name}.parquet",
        split=split,
        rows=table.num_rows,
        samples=len(written),
        items=items,
        bytes=out.position,
        sha256=out.sha256.hexdigest(),
        index_bytes=0,
        index_sha256="",
    )
    info, data = encode_index(table, info)
    return WrittenShard(info, table, path, data)


class _Out:
    """The tar file being written: counts bytes and digests them in a second thread, a batch of about 1 MiB at a time."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self.sha256 = hashlib.sha256()
        self.position = 0
        self._file, self._pool = file, pool
        self._parts: list[bytes] = []
        self._held = 0
        self._digest: Future[None] | None = None

    def put(self, data: bytes) -> None:
        self._parts.append(data)
        self.position += len(data)
        self._held += len(data)
        if self._held >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        batch = b"".join(self._parts)
        self._parts, self._held = [], 0
        if self._digest is not None:
            self._digest.result()
        self._digest = self._pool.submit(self.sha256.update, batch)
        self._file.write(batch)

    def finish(self) -> None:
        self.flush()
        if self._digest is not None:
            self._digest.result()


@contextmanager
def _digesting(file: BinaryIO) -> Iterator[_Out]:
    with ThreadPoolExecutor(1) as pool:
        out = _Out(file, pool)
        yield out
        out.finish()


def _check(shard: str, sample: ShardSample, split: str, seen: set[str]) -> None:
    where = f"{shard}: sample {sample.uid} ({sample.source}, {sample.key})"
    if sample.uid in seen:
        raise ShardError(f"{where} is given twice; a uid may be only once in a dataset")
    seen.add(sample.uid)
    if sample.split != split:
        raise ShardError(f"{where} belongs to split {sample.split!r}, the shard to {split!r}")
    keys = {(item.task, item.n) for item in sample.items}
    if len(keys) != len(sample.items):
        raise ShardError(f"{where} has two items of the same (task, n)")
    for item in sample.items:
        if item.task not in TASKS or item.n < 0:
            raise ShardError(f"{where}: item ({item.task!r}, {item.n}) has no such task, or a number below 0")
        for message in item.messages:
            for part in message.content:
                if part.type != "text" and not 0 <= part.media < len(sample.media):
                    raise ShardError(f"{where}: item ({item.task}, {item.n}) speaks of medium {part.media} of {len(sample.media)}")


def _write_sample(out: _Out, sample: ShardSample) -> list[Member]:
    names = member_names(sample.uid, [member_extension(m.name, m.format) for m in sample.media])
    members = [_write_medium(out, sample, medium, name) for medium, name in zip(sample.media, names, strict=False)]
    data = _sample_json(sample, members)
    out.put(tar_header(names[-1], len(data)))
    members.append(Member(names[-1], out.position, len(data), xxhash.xxh3_64_intdigest(data)))
    out.put(data + bytes(padding(len(data))))
    return members


def _write_medium(out: _Out, sample: ShardSample, medium: ShardMedium, name: str) -> Member:
    where = f"{medium.name} of sample {sample.uid} ({sample.source}, {sample.key})"
    if isinstance(medium.data, bytes):
        length = len(medium.data)
        out.put(tar_header(name, length))
        offset, xxh3, sha256 = out.position, xxhash.xxh3_64_intdigest(medium.data), hashlib.sha256(medium.data).hexdigest()
        out.put(medium.data)
    else:
        with _open(medium.data, where) as file:
            length = file.seek(0, io.SEEK_END)
            file.seek(0)
            out.put(tar_header(name, length))
            offset = out.position
            xxh3, sha256 = _stream(out, file, length, where)
    out.put(bytes(padding(length)))
    if medium.sha256 and medium.sha256 != sha256:
        raise SourceError(f"{where}: its bytes changed since it was read (sha256 {sha256[:16]}…, it was {medium.sha256[:16]}…); run again")
    return Member(name, offset, length, xxh3, sha256)


def _open(data: Path | Callable[[], BinaryIO], where: str) -> BinaryIO:
    if not isinstance(data, Path):
        return data()
    try:
        return data.open("rb")
    except OSError as error:
        raise SourceError(f"{where}: {error}") from error


def _stream(out: _Out, file: BinaryIO, length: int, where: str) -> tuple[int, str]:
    xxh3, sha256, left = xxhash.xxh3_64(), hashlib.sha256(), length
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise SourceError(f"{where}: ended {left} bytes before its length of {length}: it changed while it was read; run again")
        xxh3.update(chunk)
        sha256.update(chunk)
        out.put(chunk)
        left -= len(chunk)
    return xxh3.intdigest(), sha256.hexdigest()


def _sample_json(sample: ShardSample, members: Sequence[Member]) -> bytes:
    texts = sample.texts
    held = {
        "caption": texts.caption,
        "transcription": texts.transcription,
        "conversations": list(texts.conversations) or None,
        "text": texts.text,
        "meta": texts.meta or None,
    }
    record = {
        "format": SAMPLE_FORMAT,
        "uid": sample.uid,
        "source": sample.source,
        "key": sample.key,
        "kind": sample.kind,
        "media": [
            {
                "member": member.name,
                "kind": medium.kind,
                "name": medium.name,
                "sha256": member.sha256,
                "original_sha256": medium.original_sha256 or member.sha256,
                "transform": medium.transform,
            }
            for medium, member in zip(sample.media, members, strict=True)
        ],
        "texts": {key: value for key, value in held.items() if value is not None},
        "items": [item.to_json() for item in sample.items],
        "scores": sample.scores,
    }
    try:
        try:
            text = canonical_json(record)
        except ValueError:
            text = canonical_json(_finite(record))
    except (TypeError, ValueError) as error:
        raise ShardError(f"sample {sample.uid} ({sample.source}, {sample.key}) cannot be written as JSON: {error}") from error
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value

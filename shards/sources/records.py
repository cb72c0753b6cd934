"""Sources of records (manifest, llava, parquet): identity by the record's id or content, selection by `where`, media by reference.

A record without id is known by a hash of itself. Where one id has several contents in a source, every record of that id gets the key
`<id>~<hash of its content>`, whichever comes first; a record that is there twice with the same content is one sample.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash

from shards.errors import InfrastructureError, SourceError
from shards.paths import printable
from shards.sample import MediaRef, Sample, digest_of, uid_of
from shards.sources.spec import DAMAGE, Container, SourceSpec, Units, damaged, media_bytes
from shards.sources.texts import DEFAULTS, look_up, role_fields, texts_of
from shards.sources.where import note_columns, select

log = logging.getLogger("fovea")

BATCH_RECORDS = 4_096
BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `content` hashes all of it; `size` is what it weighs in memory, `media_bytes` an estimate where its media do not
    say it; `group` changes where a unit must end; `place` is the format's own."""

    where: str
    digest: str
    fields: dict[str, Any] = field(default_factory=dict)
    damage: str | None = None
    content: Callable[[], str] | None = None
    size: int = 0
    media_bytes: int = 0
    group: int = 0
    place: Any = None


@dataclass(frozen=True, slots=True)
class Media:
    """What `build` found of a record: its media, its annotation files, and the fields that said so."""

    refs: list[MediaRef]
    annotations: list[str]
    fields: list[str]


@dataclass(frozen=True, slots=True)
class Census:
    """What must be known of the whole source before its first record: ids seen twice, those with several contents, types of fields."""

    repeated: frozenset[str]
    forked: frozenset[str]
    columns: dict[str, str]


Read = Callable[[SourceSpec, Container], Iterator[Record]]
Build = Callable[[SourceSpec, Container, Record], Media]
_censuses: dict[str, Census] = {}


def scan_records(spec: SourceSpec, container: Container, siblings: list[Container], read: Read, build: Build) -> Iterator[Sample]:
    """The samples of one container. `siblings` are all containers of the source. Raises RecipeError for a `where` that cannot run,
    InfrastructureError where the disk or network fails; what a record is guilty of is a damaged sample."""
    try:
        census = _census(spec, siblings, read)
        units, done, group = Units(container.name), set[str](), 0
        for record in _selected(spec, read(spec, container), census):
            if record.group != group:
                units.cut()
                group = record.group
            for sample in _samples(spec, container, record, census, build, done):
                weight = media_bytes(sample) + (record.media_bytes if sample.media else 0)
                unit, ordinal = units.place(weight)
                yield Sample(sample.uid, spec.name, sample.key, unit, ordinal, sample.media, sample.texts, sample.damage)
    except OSError as error:
        raise InfrastructureError(f"reading {container.path} failed: {error}; mend the disk or network, then run again") from error


def record_id(spec: SourceSpec, record: Record) -> str | None:
    """The record's id as text; None where it has none. Raises SourceError for an id that is neither text nor a whole number."""
    name = spec.fields.get("id", "id")
    value = look_up(record.fields, name) if name is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SourceError(f"{record.where}: field {name!r} must be text or a whole number, it is {value!r}"[:400])
    return str(value)


def _samples(spec: SourceSpec, container: Container, record: Record, census: Census, build: Build, done: set[str]) -> list[Sample]:
    fault_key = f"{container.name}/{DAMAGE}/{record.digest}"
    if record.damage is not None:
        return _once([damaged(spec.name, fault_key, record.damage)], done)
    try:
        raw_id = record_id(spec, record)
        content = _content(record) if raw_id is None or raw_id in census.forked else ""
    except SourceError as error:
        return _once([damaged(spec.name, fault_key, str(error))], done)
    key = content if raw_id is None else f"{printable(raw_id)}~{content}" if content else printable(raw_id)
    try:
        media = build(spec, container, record)
        fields = role_fields(spec, DEFAULTS)
        fields = {role: name for role, name in fields.items() if name not in media.fields}
        texts = texts_of(record.fields, fields, record.where, drop=[*media.fields, spec.fields.get("id", "id") or ""])
        if media.annotations:
            texts = type(texts)(
                texts.caption, texts.transcription, texts.conversations, texts.text, {**texts.meta, "annotations": media.annotations}
            )
    except SourceError as error:
        samples = [damaged(spec.name, key, str(error))]
    else:
        pieces = [(key, tuple(media.refs))]
        if spec.explode == "files" and media.refs:
            pieces = [(f"{key}/{ref.name}", (ref,)) for ref in media.refs]
        samples = [Sample(uid_of(spec.name, k), spec.name, k, "", 0, refs, texts) for k, refs in pieces]
    again = raw_id is None or raw_id in census.repeated or len(samples) > 1
    return _once(samples, done) if again else samples


def _content(record: Record) -> str:
    return record.content() if record.content is not None else digest_of(record.fields)


def _once(samples: list[Sample], done: set[str]) -> list[Sample]:
    fresh = [s for s in {s.uid: s for s in samples}.values() if s.uid not in done]
    if len(fresh) < len(samples):
        log.warning("source %s: %s is there more than once with the same content: taken once", samples[0].source, samples[0].key)
    done.update(s.uid for s in fresh)
    return fresh


def _selected(spec: SourceSpec, records: Iterable[Record], census: Census) -> Iterator[Record]:
    if spec.where is None:
        yield from records
        return
    batch: list[Record] = []
    weight = 0
    for record in records:
        batch.append(record)
        weight += record.size
        if len(batch) >= BATCH_RECORDS or weight >= BATCH_BYTES:
            yield from _chosen(spec, batch, census)
            batch, weight = [], 0
    yield from _chosen(spec, batch, census)


def _chosen(spec: SourceSpec, batch: list[Record], census: Census) -> Iterator[Record]:
    whole = [r.fields for r in batch if r.damage is None]
    chosen = iter(select(spec.name, spec.where or "true", whole, census.columns) if whole else ())
    return (r for r in batch if r.damage is not None or next(chosen))  # a broken record cannot be asked: it is shown


def _census(spec: SourceSpec, containers: list[Container], read: Read) -> Census:
    key = digest_of(asdict(spec), [[c.name, c.path, c.stamp] for c in containers])
    if key in _censuses:
        return _censuses[key]
    hashes = array("Q")
    columns: dict[str, str] = {}
    for record_key, record in _identified(spec, containers, read):
        if record_key is not None:
            hashes.append(_hash(record_key))
        if spec.where is not None:
            note_columns(record.fields, columns)
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    twice = set(values[counts > 1].tolist())
    contents: dict[str, set[str]] = {}
    if twice:
        for record_key, record in _identified(spec, containers, read):
            if record_key is not None and _hash(record_key) in twice:
                contents.setdefault(record_key, set()).add(_content(record))
    forked = frozenset(k for k, c in contents.items() if len(c) > 1)
    if forked:
        some = ", ".join(sorted(map(printable, forked))[:5])
        log.warning("source %s: %d ids have several contents (%s …): each is a sample `<id>~<hash>`", spec.name, len(forked), some)
    while len(_censuses) >= 4:
        _censuses.pop(next(iter(_censuses)))
    _censuses[key] = Census(frozenset(contents), forked, columns)
    return _censuses[key]


def _identified(spec: SourceSpec, containers: list[Container], read: Read) -> Iterator[tuple[str | None, Record]]:
    for container in containers:
        for record in read(spec, container):
            if record.damage is not None:
                continue
            try:
                yield record_id(spec, record), record
            except SourceError:
                yield None, record  # named when its container is scanned


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))

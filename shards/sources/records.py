"""Sources of records (manifest, llava, parquet): identity by the record's id or content, selection by `where`, media by reference.

A record without id is known by a hash of itself. Where one id has several contents in a source, every record of that id gets the key
`<id>~<hash of its content>`, whichever comes first; a record that is there twice with the same content is one sample.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import xxhash

from shards.errors import InfrastructureError, SourceError
from shards.paths import printable
from shards.sample import MediaRef, Sample, digest_of, uid_of
from shards.sources.spec import DAMAGE, Container, SourceSpec, Units, damaged, media_bytes
from shards.sources.texts import DEFAULTS, clean, look_up, role_fields, texts_of
from shards.sources.where import SCALARS, Where

log = logging.getLogger("fovea")

ID_CHARS = 1_024
BATCH_RECORDS = 4_096
BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `digest` is of its bytes where it is damaged, `content` hashes all of it; `size` is what it weighs in memory,
    `media_bytes` an estimate where its media do not say it; `group` changes where a unit must end; `place` is the format's own."""

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
    """What `build` found of a record: its media, its annotation files, the fields that said so; with `explode`, what is wrong with a
    medium, by its name."""

    refs: list[MediaRef]
    annotations: list[str]
    fields: list[str]
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Census:
    """What must be known of the whole source before its first record: ids seen twice, those with several contents; of the fields that
    `where` names those that some record has as a scalar; where that is not all of them, the fields of one record for the message."""

    repeated: frozenset[str]
    forked: frozenset[str]
    asked: frozenset[str] = frozenset()
    example: tuple[str, ...] | None = None


# the third says which top-level fields are asked for; None means all, and the media. A format may give more.
Read = Callable[[SourceSpec, Container, frozenset[str] | None], Iterator[Record]]
Build = Callable[[SourceSpec, Container, Record], Media]
_censuses: dict[str, Census] = {}


def scan_records(spec: SourceSpec, container: Container, siblings: list[Container], read: Read, build: Build) -> Iterator[Sample]:
    """The samples of one container. `siblings` are all containers of the source. Raises RecipeError for a `where` that cannot run,
    InfrastructureError where the disk or network fails; what a record is guilty of is a damaged sample."""
    where = Where(spec.name, spec.where) if spec.where is not None else None
    try:
        census = _census(spec, siblings, read, where)
        if where is not None and census.example is not None:
            where.check_fields(census.asked, census.example)
        units, done, group = Units(container.name), set[str](), 0
        for record in _selected(where, read(spec, container, None)):
            if record.group != group:
                units.cut()
                group = record.group
            for sample in _samples(spec, container, record, census, build, done):
                weight = media_bytes(sample) + (record.media_bytes if sample.media else 0)
                unit, ordinal = units.place(weight)
                yield Sample(sample.uid, spec.name, sample.key, unit, ordinal, sample.media, sample.texts, sample.damage)
    except OSError as error:
        raise InfrastructureError(f"reading {container.path} failed: {error}; mend the disk or network, then run again") from error
    finally:
        if where is not None:
            where.close()


def record_id(spec: SourceSpec, record: Record) -> str | None:
    """The record's id as text; None where it has none. Raises SourceError for an id that is neither text nor a whole number."""
    name = spec.fields.get("id", "id")
    value = look_up(record.fields, name) if name is not None else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SourceError(f"{record.where}: field {name!r} must be text or a whole number, it is {value!r}"[:400])
    if isinstance(value, str) and len(value) > ID_CHARS:
        raise SourceError(f"{record.where}: field {name!r} has {len(value):,} characters, an id has at most {ID_CHARS:,}")
    return str(value)


def _samples(spec: SourceSpec, container: Container, record: Record, census: Census, build: Build, done: set[str]) -> list[Sample]:
    if record.damage is not None and not record.fields:
        return _once([_nameless(spec, container, record, record.damage)], done)
    try:
        raw_id = record_id(spec, record)
        content = _content(record) if raw_id is None or raw_id in census.forked else ""
    except SourceError as error:
        return _once([_nameless(spec, container, record, str(error))], done)
    key = content if raw_id is None else f"{printable(raw_id)}~{content}" if content else printable(raw_id)
    try:
        if record.damage is not None:
            raise SourceError(record.damage)
        media = build(spec, container, record)
        fields = role_fields(spec, DEFAULTS)
        fields = {role: name for role, name in fields.items() if name not in media.fields}
        texts = texts_of(record.fields, fields, record.where, drop=[*media.fields, spec.fields.get("id", "id") or ""])
        if media.annotations:
            name = "annotations" if "annotations" not in texts.meta else "annotation_files"
            texts = type(texts)(
                texts.caption, texts.transcription, texts.conversations, texts.text, {**texts.meta, name: media.annotations}
            )
    except SourceError as error:
        samples = [damaged(spec.name, key, str(error))]
    else:
        pieces = [(key, tuple(media.refs))]
        if spec.explode == "files" and (media.refs or media.faults):
            pieces = [(f"{key}/{ref.name}", (ref,)) for ref in media.refs]
        samples = [Sample(uid_of(spec.name, k), spec.name, k, "", 0, refs, texts) for k, refs in pieces]
        samples += [damaged(spec.name, f"{key}/{printable(name)}", fault) for name, fault in media.faults.items()]
    again = raw_id is None or raw_id in census.repeated or len(samples) > 1
    return _once(samples, done) if again else samples


def _nameless(spec: SourceSpec, container: Container, record: Record, damage: str) -> Sample:
    """The damaged sample of a record whose id is not known: its key ends in a hash of what it holds, not in its place."""
    try:
        digest = record.digest or _content(record)
    except SourceError as error:
        digest = digest_of(str(error))
    return damaged(spec.name, f"{container.name}/{DAMAGE}/{digest}", damage)


def _content(record: Record) -> str:
    if record.content is not None:
        return record.content()
    try:
        return digest_of(record.fields)
    except ValueError:  # a number such as 1e999, which is JSON and no float
        return digest_of(clean(record.fields))


def _once(samples: list[Sample], done: set[str]) -> list[Sample]:
    fresh = [s for s in {s.uid: s for s in samples}.values() if s.uid not in done]
    if len(fresh) < len(samples):
        log.warning("source %s: %s is there more than once with the same content: taken once", samples[0].source, samples[0].key)
    done.update(s.uid for s in fresh)
    return fresh


def _selected(where: Where | None, records: Iterable[Record]) -> Iterator[Record]:
    if where is None:
        yield from records
        return
    batch: list[Record] = []
    weight = 0
    for record in records:
        batch.append(record)
        weight += record.size
        if len(batch) >= BATCH_RECORDS or weight >= BATCH_BYTES:
            yield from _chosen(where, batch)
            batch, weight = [], 0
    yield from _chosen(where, batch)


def _chosen(where: Where, batch: list[Record]) -> Iterator[Record]:
    verdicts = iter(where.judge([r.fields for r in batch if r.damage is None]))
    for record in batch:
        verdict = record.damage is not None or next(verdicts)  # a broken record cannot be asked: it is shown
        if isinstance(verdict, str):
            yield replace(record, damage=f"{record.where}: where {where.expression!r} cannot be asked: {verdict}")
        elif verdict:
            yield record


def _census(spec: SourceSpec, containers: list[Container], read: Read, where: Where | None) -> Census:
    key = digest_of(asdict(spec), [[c.name, c.path, c.stamp] for c in containers])
    if key in _censuses:
        return _censuses[key]
    hashes = array("Q")
    missing = set(where.columns) if where is not None else set[str]()
    id_field = spec.fields.get("id", "id")
    # a dotted id may also be one field of that very name
    asked_for = frozenset([*missing, *([id_field, id_field.split(".")[0]] if id_field is not None else [])])
    for record_key, record in _identified(spec, containers, read, asked_for):
        if record_key is not None:
            hashes.append(_hash(record_key))
        if missing:
            missing -= {name for name in missing if isinstance(record.fields.get(name), SCALARS)}
    values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
    twice = set(values[counts > 1].tolist())
    contents: dict[str, set[str]] = {}
    if twice:
        for record_key, record in _identified(spec, containers, read, None):
            if record_key is not None and _hash(record_key) in twice:
                contents.setdefault(record_key, set()).add(_content(record))
    forked = frozenset(k for k, c in contents.items() if len(c) > 1)
    if forked:
        some = ", ".join(sorted(map(printable, forked))[:5])
        log.warning("source %s: %d ids have several contents (%s …): each is a sample `<id>~<hash>`", spec.name, len(forked), some)
    example: tuple[str, ...] | None = None
    if missing:
        first = next((r for c in containers for r in read(spec, c, None) if r.damage is None), None)
        example = tuple(sorted(map(printable, first.fields))) if first is not None else None
    while len(_censuses) >= 4:
        _censuses.pop(next(iter(_censuses)))
    asked = frozenset(where.columns) - missing if where is not None else frozenset[str]()
    _censuses[key] = Census(frozenset(contents), forked, asked, example)
    return _censuses[key]


def _identified(
    spec: SourceSpec, containers: list[Container], read: Read, fields: frozenset[str] | None
) -> Iterator[tuple[str | None, Record]]:
    for container in containers:
        for record in read(spec, container, fields):
            if record.damage is not None:
                continue
            try:
                yield record_id(spec, record), record
            except SourceError:
                yield None, record  # named when its container is scanned


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))

"""What a source is: its spec as the recipe says it, the containers it lies in, and what a format must provide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.sample import Sample, uid_of

ROLES = ("caption", "transcription", "conversations", "text")
DAMAGE = "@damage"  # last part of the key of a sample that stands for what could not be read
UNIT_SAMPLES = 1_024
UNIT_BYTES = 128 * 10**6
RECORD_BYTES = 50_000_000  # of one JSON record, sidecar or text member; more is damage


@dataclass(frozen=True)
class SourceSpec:
    """One entry of a recipe's `sources`.

    path     file, folder or glob pattern, local or fsspec URL.
    where    SQL predicate over a record's top-level scalar fields (record formats only).
    fields   role -> field of the record ("a.b" reaches into objects); null switches a role off.
    explode  "files": each media file of a record becomes a sample of its own (manifest only).
    options  of the format; `sources.OPTIONS` names them.
    """

    name: str
    format: str
    path: str
    where: str | None = None
    fields: Mapping[str, str | None] = field(default_factory=dict)
    explode: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Container:
    """A piece of a source that is scanned at once: a folder, a tar, a Parquet file, a JSONL file.

    name      relative to the source's root, valid Unicode; the prefix of its units' names.
    path      as `shards.paths.to_text` writes it.
    size      bytes.
    stamp     equal stamps mean equal content; a container whose stamp is known need not be scanned again unless `external`.
    external  its samples refer to files outside it, which the stamp says nothing about: always scan it again.
    """

    name: str
    path: str
    size: int
    stamp: str
    external: bool


@dataclass(frozen=True)
class Format:
    """What a format provides. `roles` are the keys that `fields` may have; `records`: its samples are records, so `where` applies."""

    list: Callable[[SourceSpec], Iterator[Container]]
    scan: Callable[[SourceSpec, Container], Iterator[Sample]]
    suffixes: tuple[str, ...]
    roles: tuple[str, ...] = ROLES
    options: tuple[str, ...] = ()
    records: bool = False
    explodes: tuple[str, ...] = ()


@dataclass(slots=True)
class Units:
    """Cuts a container into units: ≤ 1,024 samples and ≤ 128 MB of media each, at places that depend on its content alone."""

    container: str
    number: int = 0
    samples: int = 0
    bytes: int = 0

    def place(self, media_bytes: int) -> tuple[str, int]:
        """(unit, ordinal) of the next sample. A sample larger than a unit has one of its own."""
        if self.samples and (self.samples >= UNIT_SAMPLES or self.bytes + media_bytes > UNIT_BYTES):
            self.cut()
        ordinal = self.samples
        self.samples += 1
        self.bytes += media_bytes
        return f"{self.container}#{self.number}", ordinal

    def cut(self) -> None:
        """The next sample starts a new unit."""
        if self.samples:
            self.number, self.samples, self.bytes = self.number + 1, 0, 0


def media_bytes(sample: Sample) -> int:
    """What a sample's media count against a unit: images and PDFs by their length, videos nothing (they are read by reference)."""
    return sum(max(0, m.length) for m in sample.media if m.kind != "video")


def damaged(source: str, key: str, what: str, unit: str = "", ordinal: int = 0) -> Sample:
    """The sample that stands for something unreadable."""
    return Sample(uid_of(source, key), source, key, unit, ordinal, damage=what)

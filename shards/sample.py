"""What a sample is: identity (uid), media by reference, texts, fingerprints. docs/ledger.md is its contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

MediaKind = Literal["image", "video", "pdf"]
SampleKind = Literal["text", "image", "video", "pdf", "mixed"]

IMAGE_EXTENSIONS = frozenset(
    "jpg jpeg jpe jfif png webp gif bmp dib tif tiff avif heic heif jp2 j2k jpx jpf ico icns ppm pgm pbm pnm pcx tga sgi rgb xbm xpm psd "
    "dds fli flc svg".split()
)
VIDEO_EXTENSIONS = frozenset("mp4 m4v mov mkv webm avi mpg mpeg vob ts mts m2ts wmv asf flv 3gp ogv".split())
PDF_EXTENSIONS = frozenset({"pdf"})

MEDIA_REF_TYPE = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("cell", pa.string()),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("transform", pa.string()),
        pa.field("original", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Where the bytes of one medium lie. Rows carry these, never pixels.

    kind   "image", "video" or "pdf": by the extension of `name` (a guess of the source; the decoder has the last word).
    name   how the source calls it, relative to the source's root; for people and for the extension. Never used as a path to write.
    path   absolute file path or fsspec URL of the file that holds the bytes (the medium itself, a tar, a Parquet file).
    offset first byte in `path`; -1 means the whole file.
    length bytes; -1 when unknown (a Parquet cell).
    cell   "<column>/<row group>/<row in group>" when `path` is a Parquet file, else None. The column may be "image.bytes" (struct field).
    stamp  cheap fingerprint: `stamp_of(size, mtime_ns or etag)` of the containing file, plus offset or cell for a part of it.
    transform  JSON {operator, version, parameters} of what made these bytes from the original medium; None: they are the original ones.
    original   sha256 of that original medium; None where there is no transform.
    """

    kind: MediaKind
    name: str
    path: str
    offset: int
    length: int
    stamp: str
    cell: str | None = None
    transform: str | None = None
    original: str | None = None

    def to_row(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in MEDIA_REF_TYPE}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> MediaRef:
        """Of `to_row`; rows written before there were transforms lack the last two fields."""
        return MediaRef(**{field.name: row[field.name] for field in MEDIA_REF_TYPE if field.name in row})


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a sample, by what they mean. `meta` holds every other field of the record (JSON values)."""

    caption: str | None = None
    transcription: str | None = None
    conversations: tuple[Mapping[str, Any], ...] = ()  # LLaVA form: {"from": human | gpt | system, "value": text}; "time": float seconds
    text: str | None = None  # running text of a text-only sample
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a source, as listed: no bytes, no pixels.

    `damage` is set for a record that the source could not read (then `media` and `texts` are empty): such a sample is errored at once.
    `unit` names the piece of the source it is read with, `ordinal` its place in that unit (≤ 1,024 samples, ≤ 128 MB of media a unit).
    """

    uid: str
    source: str
    key: str
    unit: str
    ordinal: int
    media: tuple[MediaRef, ...] = ()
    texts: Texts = field(default_factory=Texts)
    damage: str | None = None
    parent: str | None = None

    @property
    def kind(self) -> SampleKind:
        kinds = {m.kind for m in self.media}
        if not kinds:
            return "text"
        return "mixed" if len(kinds) > 1 else next(iter(kinds))


def uid_of(source: str, key: str) -> str:
    """The stable 128-bit identity of a sample: 32 hex digits of SHA-256(source, 0x00, key). Never a position."""
    return hashlib.sha256(source.encode() + b"\0" + key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def child_uid(parent: str, kind: str, *place: int) -> str:
    """uid of a splitter's child: hash(parent, kind, start ms, end ms | page)."""
    return uid_of(parent, "\0".join([kind, *map(str, place)]))


def digest_of(*values: Any, length: int = 16) -> str:
    """`length` hex digits of SHA-256 over the canonical JSON of `values`: for fingerprints (16) and digests of configurations."""
    return hashlib.sha256(canonical_json(values).encode("utf-8", "surrogatepass")).hexdigest()[:length]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_jsonable)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def stamp_of(size: int, mtime_ns_or_etag: int | str, *part: int | str) -> str:
    """Cheap fingerprint of a medium (16 hex digits): size and mtime or etag of the file, and the part of it (range or cell)."""
    return digest_of(size, str(mtime_ns_or_etag), *part)


def texts_fingerprint(texts: Texts) -> str:
    """Fingerprint of a sample's texts: their hash (16 hex digits)."""
    return digest_of(texts.caption, texts.transcription, [dict(c) for c in texts.conversations], texts.text, dict(texts.meta))


def media_stamp(media: Sequence[MediaRef]) -> str | None:
    """The cheap fingerprint of all media of a sample together; None for a sample without media."""
    return digest_of([[m.kind, m.stamp] for m in media]) if media else None


def content_fingerprint(media: Sequence[tuple[MediaKind, str]]) -> str:
    """Fingerprint of all media of a sample by content: [(kind, sha256)] in order. What media-reading steps are keyed by."""
    return digest_of([list(m) for m in media])


def media_kind(name: str) -> MediaKind | None:
    """The kind that a file name's extension claims; None for annotations and everything else."""
    extension = name.rsplit(".", 1)[-1].lower() if "." in name.rsplit("/", 1)[-1] else ""
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension in VIDEO_EXTENSIONS:
        return "video"
    if extension in PDF_EXTENSIONS:
        return "pdf"
    return None

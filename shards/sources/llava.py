"""LLaVA's instruction data: a JSON array or JSONL of {id, image | video: name or list of names, conversations}."""

from __future__ import annotations

from collections.abc import Iterator

from shards.sample import MediaKind, MediaRef, Sample
from shards.sources.jsonmedia import list_json, media_refs, media_root, read_json
from shards.sources.records import Media, Record, scan_records
from shards.sources.spec import ROLES, Container, Format, SourceSpec
from shards.sources.texts import look_up

SUFFIXES = (".json", ".jsonl")
MEDIA_FIELDS: tuple[tuple[str, MediaKind], ...] = (("image", "image"), ("images", "image"), ("video", "video"))


def list_llava(spec: SourceSpec) -> Iterator[Container]:
    """A container for each file."""
    return list_json(spec, SUFFIXES)


def scan_llava(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """A sample for each record; its media are those of `image`, then `images`, then `video`."""
    return scan_records(spec, container, list(list_llava(spec)), read_json, _build)


def _build(spec: SourceSpec, container: Container, record: Record) -> Media:
    root = media_root(spec, container)
    refs: list[MediaRef] = []
    fields: list[str] = []
    for role, kind in MEDIA_FIELDS:
        name = spec.fields.get(role, role)
        if name is None:
            continue
        fields.append(name)
        names = look_up(record.fields, name)
        if names:
            refs += media_refs(spec, root, names, record.where, kind)[0]
    return Media(refs, [], fields)


FORMAT = Format(
    list_llava,
    scan_llava,
    SUFFIXES,
    roles=(*ROLES, "id", *(role for role, _ in MEDIA_FIELDS)),
    options=("media_root", "allow_outside"),
    records=True,
)

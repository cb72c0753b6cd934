"""A manifest: one JSON object a line with `id`, `files` (names of media and annotations, relative to the root) and whatever else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from shards.errors import SourceError
from shards.sample import Sample
from shards.sources.jsonmedia import list_json, media_refs, media_root, read_json
from shards.sources.records import Media, Record, scan_records
from shards.sources.spec import ROLES, Container, Format, SourceSpec
from shards.sources.texts import look_up

SUFFIXES = (".jsonl", ".ndjson")
ANNOTATIONS = (".json", ".txt", ".jsonl", ".csv")


def list_manifests(spec: SourceSpec) -> Iterator[Container]:
    """A container for each manifest file."""
    return list_json(spec, SUFFIXES)


def scan_manifest(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """A sample for each record, or for each of its media with `explode: files`."""
    return scan_records(spec, container, list(list_manifests(spec)), read_json, _build)


def _build(spec: SourceSpec, container: Container, record: Record) -> Media:
    name = spec.fields.get("files", "files")
    names = look_up(record.fields, name) if name is not None else None
    if names is None:
        return Media([], [], [name] if name else [])
    root = media_root(spec, container)
    listed = names if isinstance(names, (list, tuple)) else [names]
    if spec.explode is not None and all(isinstance(n, str) for n in listed):
        return _each(spec, root, listed, record, name)
    # in a manifest whatever is no annotation is a medium: hostile data lies about extensions, and the decoder has the last word
    refs, others = media_refs(spec, root, names, record.where, skip=_is_annotation)
    return Media(refs, others, [name] if name else [])


def _each(spec: SourceSpec, root: str, names: Sequence[str], record: Record, field: str | None) -> Media:
    """As `_build`, but a file that is at fault takes no other with it."""
    media = Media([], [], [field] if field else [], {})
    faults: dict[str, str] = {}
    for name in names:
        try:
            refs, others = media_refs(spec, root, name, record.where, skip=_is_annotation)
        except SourceError as error:
            faults[name] = str(error)
        else:
            media.refs.extend(refs)
            media.annotations.extend(others)
    return replace(media, faults=faults)


def _is_annotation(name: str) -> bool:
    return name.lower().endswith(ANNOTATIONS)


FORMAT = Format(
    list_manifests,
    scan_manifest,
    SUFFIXES,
    roles=(*ROLES, "id", "files"),
    options=("media_root", "allow_outside"),
    records=True,
    explodes=("files",),
)

"""Shared by the formats whose records are JSON: listing the files, reading them, and resolving the media they name under a root."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from shards.errors import SourceError
from shards.paths import absolute, is_url, printable, to_local, to_text
from shards.sample import MediaKind, MediaRef, digest_of, media_kind
from shards.sources.files import File, find_files, open_file, stat_file
from shards.sources.jsonl import json_records
from shards.sources.records import Record
from shards.sources.spec import Container, SourceSpec


def list_json(spec: SourceSpec, suffixes: tuple[str, ...]) -> Iterator[Container]:
    """A container for each JSON file; always external, because its records name files beside it."""
    _, files = find_files(spec.path, lambda name: name.endswith(suffixes))
    for file in files:
        yield Container(printable(file.name), file.path, file.size, file.stamp, external=True)


def read_json(spec: SourceSpec, container: Container, fields: frozenset[str] | None = None) -> Iterator[Record]:
    """The records of one JSON or JSONL file."""
    try:
        with open_file(container.path) as file:
            for line in json_records(file, container.path):
                yield Record(line.where, line.digest, line.record or {}, line.damage, size=line.size)
    except SourceError as error:
        yield Record(container.path, digest_of(str(error)), damage=str(error))


def media_root(spec: SourceSpec, container: Container) -> str:
    """`options.media_root`, else the folder of the file that names the media."""
    chosen = spec.options.get("media_root")
    if chosen:
        return absolute(str(chosen))
    return container.path.rpartition("/")[0] if is_url(container.path) else os.path.dirname(to_local(container.path))


def media_file(spec: SourceSpec, root: str, name: Any, where: str) -> File:
    """The file that a record names, relative to `root`. Raises SourceError where it is no text, leads out of the root (unless
    `options.allow_outside`), or is not there."""
    if not isinstance(name, str) or not name:
        raise SourceError(f"{where}: a file's name must be text, this is {name!r}"[:400])
    outside = bool(spec.options.get("allow_outside"))
    if is_url(root):
        inside = posixpath.normpath(name)
        leads_out = inside.startswith(("../", "/")) or inside == ".."
        path = name if outside and is_url(name) else f"{root}/{inside}"
    else:
        path = name if outside and is_url(name) else os.path.normpath(os.path.join(root, name))
        leads_out = not (path + "/").startswith(root.rstrip("/") + "/")
    if leads_out and not outside:
        raise SourceError(f"{where}: {printable(name)!r} leads out of {printable(root)}; set options.allow_outside if it is meant to")
    try:
        return stat_file(path if is_url(path) else to_text(path), name)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error


def media_refs(
    spec: SourceSpec, root: str, names: Any, where: str, claimed: MediaKind = "image", skip: Callable[[str], bool] = lambda name: False
) -> tuple[list[MediaRef], list[str]]:
    """(media, other files) of a field that holds a name or a list of names; `claimed` is the kind where the extension says nothing."""
    refs: list[MediaRef] = []
    others: list[str] = []
    for name in names if isinstance(names, (list, tuple)) else [names]:
        file = media_file(spec, root, name, where)
        if skip(name):
            others.append(printable(name))
        else:
            refs.append(MediaRef(media_kind(name) or claimed, printable(name), file.path, -1, file.size, file.stamp))
    return refs, others

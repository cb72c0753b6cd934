"""Parquet: media in cells (Hugging Face's struct {bytes, path}, binary columns, lists of either) or named by a column of paths.

`fields` maps roles to columns; without it media columns are found by the schema: structs with a field `bytes`, binary columns and columns
of paths by their usual names. Media columns are not read to list the samples, except where a record has no id (its identity is then a hash
of all it holds) and where only the values say how many media a row has (lists, nulls).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.cells import BATCH_BYTES, forget, open_parquet, read_cell
from shards.errors import RecipeError, SourceError
from shards.paths import printable
from shards.sample import MediaKind, MediaRef, Sample, digest_of, media_kind, stamp_of
from shards.sources import downloads
from shards.sources.files import File, find_files, stat_file
from shards.sources.jsonmedia import media_refs, media_root
from shards.sources.records import Media, Record, scan_records
from shards.sources.spec import ROLES, Container, Format, SourceSpec
from shards.sources.texts import clean

SUFFIXES = (".parquet",)
MEDIA_ROLES: tuple[tuple[str, MediaKind], ...] = (("image", "image"), ("images", "image"), ("video", "video"), ("pdf", "pdf"))
BINARY_NAMES = frozenset(
    "image images img jpg jpeg png webp picture photo image_bytes bytes content video videos mp4 webm video_bytes pdf pdf_bytes".split()
)
PATH_NAMES = frozenset("image images video videos file file_name filename image_path video_path path".split())
DAMAGES = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnicodeDecodeError, OSError)


@dataclass(frozen=True, slots=True)
class _Column:
    """A media column. `leaf` is ".bytes" for structs; `many` for lists; `inline` where cells hold bytes, else they hold paths."""

    name: str
    kind: MediaKind
    inline: bool
    many: bool
    leaf: str
    has_path: bool


@dataclass(frozen=True, slots=True)
class _Cell:
    """One medium of a row: a cell with bytes (and the name it goes by), or a path."""

    kind: MediaKind
    cell: str | None
    name: str | None
    length: int


def list_parquet(spec: SourceSpec) -> Iterator[Container]:
    """A container for each file; external where its media are, or may be, files beside it. Reads footers only."""
    _, files = find_files(spec.path, lambda name: name.endswith(SUFFIXES))
    for file in files:
        try:
            parquet = open_parquet(file.path)
            columns = _media_columns(spec, parquet.schema_arrow, file.path)
            external = any(not c.inline or (c.has_path and _may_be_null(parquet, c)) for c in columns)
        except DAMAGES:
            external = False  # scanning says what is wrong with it
        yield Container(printable(file.name), file.path, file.size, file.stamp, external)


def scan_parquet(spec: SourceSpec, container: Container) -> Iterator[Sample]:
    """A sample for each row; units do not cross row groups. Raises RecipeError for `fields` that the file does not have."""
    _, files = find_files(spec.path, lambda name: name.endswith(SUFFIXES))
    if downloads.is_record_file(container.path):
        spec = replace(spec, fields={"id": "key", **spec.fields})
    siblings = [Container(printable(f.name), f.path, f.size, f.stamp, external=True) for f in files]  # no footer is needed to know the ids
    return scan_records(spec, container, siblings, _read, _build)


def _read(spec: SourceSpec, container: Container, fields: frozenset[str] | None = None) -> Iterator[Record]:
    try:
        file = stat_file(container.path)
        forget(file.path)
        parquet = open_parquet(file.path)
        columns = _media_columns(spec, parquet.schema_arrow, file.path)
    except (SourceError, *DAMAGES) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Record(container.path, "file", damage=f"{container.path}: no readable Parquet file: {error}")
        return
    told = downloads.is_record(parquet.schema_arrow)  # then the status says which rows have no picture
    valued = frozenset(c.name for c in columns if not c.inline or c.many or (not told and _may_be_null(parquet, c)))
    for group in range(parquet.metadata.num_row_groups):
        try:
            yield from _read_group(spec, file, parquet, group, columns, valued, fields)
        except DAMAGES as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            where = f"{file.path}: row group {group}"
            yield Record(where, digest_of("row group", group), damage=f"{where} cannot be read to its end: {error}", group=group)


def _read_group(
    spec: SourceSpec,
    file: File,
    parquet: pq.ParquetFile,
    group: int,
    columns: list[_Column],
    valued: frozenset[str],
    wanted: frozenset[str] | None,
) -> Iterator[Record]:
    """The rows of a group. `valued`: media columns whose values are read; `wanted`: the only fields asked for, without any media."""
    told = downloads.is_record(parquet.schema_arrow)
    rows = parquet.metadata.row_group(group).num_rows
    media = {c.name for c in columns}
    names = [n for n in parquet.schema_arrow.names if n in valued or n not in media]
    names += [f"{c.name}.path" for c in columns if c.name not in valued and c.has_path]
    if wanted is not None:
        columns, names = [], [n for n in parquet.schema_arrow.names if n in wanted and n not in media]
    inline = sum(_stored(parquet, group, c.name) for c in columns if c.inline) // max(1, rows)
    heavy = sum(_stored(parquet, group, n) for n in names) // max(1, rows)
    size = max(1, min(1024, BATCH_BYTES // max(1, heavy)))
    row = 0
    if not names:
        batches: Iterator[Any] = ([{}] for _ in range(rows))
    else:
        batches = (batch.to_pylist() for batch in parquet.iter_batches(batch_size=size, row_groups=[group], columns=names))
    for values in batches:
        for value in values:
            cells = [cell for c in columns for cell in _cells(c, value.get(c.name), group, row, c.name in valued)]
            failed = bool(told and columns and value["status"] != downloads.SUCCESS)
            fields = {k: v for k, v in value.items() if k not in media}
            fields = {k: clean(v) for k, v in fields.items() if not isinstance(v, bytes)}
            where = f"{file.path}: row {row} of row group {group}"
            content = partial(_content, file.path, value if not columns else fields, cells)
            place = (file, [] if failed else cells, failed)
            row += 1
            if not failed or downloads.wanted(spec):
                yield Record(where, "", fields, None, content, size=heavy, media_bytes=inline, group=group, place=place)


def _cells(column: _Column, value: Any, group: int, row: int, valued: bool) -> Iterator[_Cell]:
    if valued and value is None:
        return
    entries = value if column.many else [value]
    for n, entry in enumerate(entries):
        path = entry.get("path") if isinstance(entry, dict) else None if column.inline else entry
        data = entry.get("bytes") if isinstance(entry, dict) else entry
        if column.inline and (not valued or data is not None):
            element = f"[{n}]" if column.many else ""
            length = -1 if data is None else len(data)
            yield _Cell(column.kind, f"{column.name}{element}{column.leaf}/{group}/{row}", path, length)
        elif path:
            yield _Cell(column.kind, None, path, -1)


def _build(spec: SourceSpec, container: Container, record: Record) -> Media:
    file, cells, failed = record.place
    if failed:
        raise SourceError(f"{record.where}: {record.fields.get('key')} {downloads.fate(record.fields)}")
    refs: list[MediaRef] = []
    for cell in cells:
        if cell.cell is None:
            refs += media_refs(spec, media_root(spec, container), cell.name, record.where, cell.kind)[0]
        else:
            name = printable(str(cell.name)) if cell.name else cell.cell
            kind = media_kind(name) or cell.kind
            refs.append(MediaRef(kind, name, file.path, -1, -1, stamp_of(file.size, file.tag, cell.cell), cell.cell))
    return Media(refs, [], [])


def _content(path: str, fields: dict[str, Any], cells: list[_Cell]) -> str:
    """Hash of a whole row, the bytes of its media included. Raises SourceError for a cell that cannot be read."""
    media: list[Any] = []
    for cell in cells:
        if cell.cell is None:
            media.append(cell.name)
            continue
        try:
            media.append(hashlib.sha256(read_cell(path, cell.cell) or b"").hexdigest())
        except (*DAMAGES, IndexError, KeyError, StopIteration) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"{path} cell {cell.cell} cannot be read: {error}") from error
    return digest_of(clean(fields), media)


def _media_columns(spec: SourceSpec, schema: pa.Schema, path: str) -> list[_Column]:
    named = [(spec.fields[role], kind) for role, kind in MEDIA_ROLES if role in spec.fields]
    for name in [v for v in spec.fields.values() if v is not None]:
        if name not in schema.names and name.split(".")[0] not in schema.names:
            raise RecipeError(f"source {spec.name!r}: fields name column {name!r}, {path} has {', '.join(schema.names)}")
    if named:
        chosen = [(name, kind) for name, kind in named if name is not None]
        found = [_column(schema.field(name), kind) for name, kind in chosen if name in schema.names]
        if len(found) < len(chosen) or None in found:
            raise RecipeError(
                f"source {spec.name!r}: {path}: media columns must hold bytes, paths, structs {{bytes, path}} or lists of them"
            )
        return [c for c in found if c is not None]
    taken = {v for v in spec.fields.values() if v is not None}
    sniffed: list[_Column] = []
    for item in schema:
        column = _column(item, _kind(item.name.lower()))
        if column is None or item.name in taken:
            continue
        names = BINARY_NAMES if column.inline else PATH_NAMES
        if column.leaf or item.name.lower() in names:
            sniffed.append(column)
    inline = [c for c in sniffed if c.inline]
    return inline or sniffed  # beside bytes, a column of paths says where they came from


def _kind(name: str) -> MediaKind:
    """What a column's name says of its media, where no file's name does."""
    if "video" in name or name in ("mp4", "webm"):
        return "video"
    return "pdf" if "pdf" in name else "image"


def _column(item: pa.Field, kind: MediaKind) -> _Column | None:
    many = pa.types.is_list(item.type) or pa.types.is_large_list(item.type)
    value = item.type.value_type if many else item.type
    if pa.types.is_struct(value):
        fields = {f.name: f.type for f in value}
        if not _is_binary(fields.get("bytes")):
            return None
        return _Column(item.name, kind, True, many, ".bytes", _is_text(fields.get("path")))
    if _is_binary(value):
        return _Column(item.name, kind, True, many, "", False)
    return _Column(item.name, kind, False, many, "", False) if _is_text(value) else None


def _is_binary(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _may_be_null(parquet: pq.ParquetFile, column: _Column) -> bool:
    for group in range(parquet.metadata.num_row_groups):
        for chunk in _chunks(parquet, group, column.name + column.leaf):
            statistics = chunk.statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                return True
    return False


def _stored(parquet: pq.ParquetFile, group: int, name: str) -> int:
    return sum(c.total_uncompressed_size for c in _chunks(parquet, group, name))


def _chunks(parquet: pq.ParquetFile, group: int, name: str) -> Iterator[Any]:
    for i in range(parquet.metadata.num_columns):
        chunk = parquet.metadata.row_group(group).column(i)
        if chunk.path_in_schema == name or chunk.path_in_schema.startswith(name + "."):
            yield chunk


FORMAT = Format(
    list_parquet,
    scan_parquet,
    SUFFIXES,
    roles=(*ROLES, "id", *(role for role, _ in MEDIA_ROLES)),
    options=("media_root", "allow_outside", "downloads"),
    records=True,
)

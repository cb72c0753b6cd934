"""Media inside Parquet files: cells read in order cost each row group once, whatever its size, in bounded memory."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.paths import is_unicode, is_url, to_local
from shards.remote import open_url

WHOLE_GROUP_BYTES = 256 << 20  # a group's column up to this size stays in memory; a larger one is streamed forwards
BATCH_BYTES = 32 << 20
KEPT_GROUPS = 4
KEPT_BYTES = 512 << 20
ELEMENT = re.compile(r"(.+?)\[(\d+)\](?:\.(\w+))?")


class _Group:
    """One column of one row group: batches read forwards, all of them kept where the group is small."""

    def __init__(self, path: str, column: str, group: int) -> None:
        self.file = open_parquet(path)
        self.group = group
        self.top = split_column(self.file.schema_arrow, column)[0]
        self.rows = self.file.metadata.row_group(group).num_rows
        self.bytes = _column_bytes(self.file, group, self.top)
        self.keep = self.bytes <= WHOLE_GROUP_BYTES
        self.batches: list[tuple[int, pa.Array]] = []
        self.stream: Iterator[pa.RecordBatch] | None = None
        self.next = 0

    def value(self, row: int, element: int | None, leaf: str | None) -> Any:
        if not 0 <= row < self.rows:
            raise IndexError(f"row group {self.group} has {self.rows} rows, no row {row}")
        if self.stream is None or (row < self.next and row < self.batches[0][0]):
            size = max(1, min(1024, BATCH_BYTES * self.rows // max(1, self.bytes)))
            self.stream = self.file.iter_batches(batch_size=size, row_groups=[self.group], columns=[self.top])
            self.batches, self.next = [], 0
        while row >= self.next:
            batch = next(self.stream)
            if not self.keep:
                self.batches.clear()
            self.batches.append((self.next, batch.column(0)))
            self.next += batch.num_rows
        start, array = next((s, a) for s, a in reversed(self.batches) if s <= row)
        scalar = array[row - start]
        if element is not None and scalar.is_valid:
            scalar = scalar[element]
        if leaf is not None and scalar.is_valid:
            scalar = scalar[leaf]
        return scalar.as_py()


_groups: OrderedDict[tuple[Any, ...], _Group] = OrderedDict()
_lock = threading.Lock()


def read_cell(path: str, cell: str) -> bytes | None:
    """The bytes of cell "<column>/<row group>/<row in group>"; the column may be a struct field ("image.bytes") or an element of a list
    ("images[0].bytes"). None for a null. Raises IndexError or KeyError for a cell that is not there, pyarrow's errors for damaged data."""
    column, group, row = cell.rsplit("/", 2)
    status = None if is_url(path) else os.stat(to_local(path))
    version = None if status is None else (status.st_size, status.st_mtime_ns)
    key = (path, version, column.split("[")[0], int(group))
    with _lock:
        reader = _groups.get(key)
        if reader is None:
            reader = _groups[key] = _Group(path, column, int(group))
        _groups.move_to_end(key)
        _shrink()
        try:
            _, element, leaf = split_column(reader.file.schema_arrow, column)
            value = reader.value(int(row), element, leaf)
        except BaseException:
            del _groups[key]
            raise
    if value is not None and not isinstance(value, bytes):
        raise KeyError(f"{column} holds {type(value).__name__}, not bytes")
    return value


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file at a local path or URL; pages are read as they are needed."""
    if is_url(path):
        return pq.ParquetFile(open_url(path)[0], buffer_size=1 << 20, page_checksum_verification=True)
    local = to_local(path)
    return pq.ParquetFile(
        pa.OSFile(local, "rb") if is_unicode(local) else open(local, "rb"), buffer_size=1 << 20, page_checksum_verification=True
    )


def forget(path: str) -> None:
    """Drop what is held of a file that may have changed: of a local one that is noticed, of a URL it is not."""
    with _lock:
        for key in [key for key in _groups if key[0] == path]:
            del _groups[key]


def split_column(schema: pa.Schema, column: str) -> tuple[str, int | None, str | None]:
    """(top-level column, element of a list, struct field) of a cell's column. Raises KeyError for an unknown column."""
    if column in schema.names:
        return column, None, None
    if (match := ELEMENT.fullmatch(column)) and match[1] in schema.names:
        return match[1], int(match[2]), match[3]
    top, _, leaf = column.rpartition(".")
    if top in schema.names:
        return top, None, leaf
    raise KeyError(f"no column {column!r}; columns are {', '.join(schema.names)}")


def _column_bytes(file: pq.ParquetFile, group: int, top: str) -> int:
    columns = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == top or c.path_in_schema.startswith(top + "."))


def _shrink() -> None:
    while len(_groups) > KEPT_GROUPS or (len(_groups) > 1 and sum(min(g.bytes, WHOLE_GROUP_BYTES) for g in _groups.values()) > KEPT_BYTES):
        _groups.popitem(last=False)

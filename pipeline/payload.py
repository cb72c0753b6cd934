"""How the answers of a fused group travel: Arrow tables and a JSON header as one piece of bytes, so that Ray never cuts or joins units."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_HEADER = struct.Struct("<Q")


def encode(header: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> bytes:
    """bytes of `header` (JSON-able) and `tables`; inverse of `decode`."""
    parts = []
    sizes = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        body = sink.getvalue().to_pybytes()
        parts.append(body)
        sizes[name] = len(body)
    head = json.dumps({"header": dict(header), "sizes": sizes}).encode()
    return b"".join([_HEADER.pack(len(head)), head, *parts])


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    (length,) = _HEADER.unpack_from(data)
    head = json.loads(data[_HEADER.size : _HEADER.size + length])
    tables, at = {}, _HEADER.size + length
    for name, size in head["sizes"].items():
        tables[name] = pa.ipc.open_stream(pa.py_buffer(data)[at : at + size]).read_all()
        at += size
    return head["header"], tables

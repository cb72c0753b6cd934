"""How the answers of a fused group travel: Arrow tables and a JSON header as one piece of bytes, so that Ray never cuts or joins units."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pyarrow as pa

from curation.group import GroupResult
from pipeline.work import Task, read_task
from shards import errors
from shards.errors import FoveaError, StepBug

ONWARD = "onward"  # the table that the next pool works on; every other one is of the ledger
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


def received(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, pa.Table], Iterable[pa.Table]]:
    """What an actor gets: header, tables of the pools before it, its units. batch: one Task, or one payload of the pool before.

    header: task (its first row group: tells the tasks of a stream apart), rows (samples of the task), costs, media_opened, crashes, and
    `failure` once an error has ended the run.
    """
    if "payload" in batch:
        header, before = decode(bytes(batch["payload"][0]))
        return header, before, _split_units(before.pop(ONWARD, None))
    task = Task(**{k: _plain(v[0]) for k, v in batch.items()})
    return {"task": task.first, "rows": task.rows, "costs": [], "media_opened": 0, "crashes": 0}, {}, read_task(task)


def add_answers(header: dict[str, Any], answers: Sequence[GroupResult]) -> None:
    """Adds to the header what the answers cost."""
    for answer in answers:
        header["costs"] += [{"digest": digest, **asdict(cost)} for digest, cost in answer.costs.items()]
        header["media_opened"] += answer.media_opened
        header["crashes"] += answer.crashes


def joined(answers: Sequence[GroupResult], before: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Answers of all units joined by ledger table, behind the tables of the pools before."""
    found: dict[str, list[pa.Table]] = {}
    for answer in answers:
        for digest, rows in answer.rows.items():
            found.setdefault(f"step-{digest}", []).append(rows)
        for digest, rows in answer.wide.items():
            found.setdefault(f"wide-{digest}", []).append(rows)
        for digest, rows in answer.children.items():
            found.setdefault(f"children-{digest}", []).append(rows)
        found.setdefault("contents", []).append(answer.contents)
        found.setdefault(ONWARD, []).append(answer.onward)
    if "contents" in before and "contents" in found:
        found["contents"].insert(0, before["contents"])
    return {**before, **{name: pa.concat_tables(parts) for name, parts in found.items()}}


def failure(error: FoveaError) -> dict[str, Any]:
    """An error as JSON, for the header; inverse of `error_of`."""
    if isinstance(error, StepBug):
        return {"type": "StepBug", "arguments": [error.step, error.uids, error.what]}
    return {"type": type(error).__name__, "arguments": [str(error)]}  # tried often enough below: not `retryable` any more


def error_of(failure: Mapping[str, Any]) -> FoveaError:
    kind = getattr(errors, failure["type"], FoveaError)
    found: FoveaError = kind(*failure["arguments"])
    return found


def _split_units(rows: pa.Table | None) -> list[pa.Table]:
    if rows is None:  # the pool before was stopped at once
        return []
    units = rows.column("unit").to_pylist()
    borders = [i for i in range(len(units)) if i == 0 or units[i] != units[i - 1]] + [len(units)]
    return [rows.slice(a, b - a) for a, b in pairwise(borders)]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

"""`where`: an SQL predicate over the scalar fields of records, evaluated by DuckDB without access to files, network or settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from shards.errors import RecipeError
from shards.sources.texts import clean

ROW = "__row__"
SETTINGS = ("enable_external_access = false", "python_enable_replacements = false", "memory_limit = '2GB'", "lock_configuration = true")
TYPES: dict[str, pa.DataType] = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string()}


def syntax_error(expression: str) -> str | None:
    """What is wrong with the predicate before any data is seen, or None."""
    try:
        duckdb.SQLExpression(expression)
    except duckdb.Error as error:
        return str(error).strip()
    return None


def note_columns(record: Mapping[str, Any], columns: dict[str, str]) -> None:
    """Widen `columns` (name -> bool, int, float, text) by the scalar fields of one record; unlike values make a column text."""
    for name, value in record.items():
        if isinstance(value, (dict, list, tuple, bytes)):
            continue
        kind = _kind(value)
        known = columns.get(clean(name))
        if kind is None or known == kind:
            columns.setdefault(clean(name), "")
        elif not known:
            columns[clean(name)] = kind
        else:
            columns[clean(name)] = "float" if {known, kind} == {"int", "float"} else "text"


def select(source: str, expression: str, records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[bool]:
    """Which records the predicate holds for (NULL counts as no). Raises RecipeError with DuckDB's message."""
    names = sorted(set(columns) - {ROW})
    cleaned = [{clean(k): v for k, v in r.items()} for r in records]
    arrays = [pa.array([_as(columns[n], r.get(n)) for r in cleaned], TYPES[columns[n] or "text"]) for n in names]
    table = pa.table([pa.array(range(len(records)), pa.int64()), *arrays], names=[ROW, *names])
    chosen = [False] * len(records)
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        for setting in SETTINGS:
            connection.execute(f"SET {setting}")
        connection.register("records", table)
        try:
            rows = connection.table("records").filter(expression).project(ROW).fetchall()
        except duckdb.Error as error:
            known = ", ".join(names) or "none"
            raise RecipeError(f"source {source!r}: where: {expression!r} cannot run: {error}\nscalar fields are: {known}") from error
    for (row,) in rows:
        chosen[row] = True
    return chosen


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "float" if abs(value) < 2**1000 else "text"
    return "float" if isinstance(value, float) else "text"


def _as(kind: str, value: Any) -> Any:
    if value is None or isinstance(value, (dict, list, tuple, bytes)):
        return None
    if kind == "float":
        return float(value)
    if kind == "text" and isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return clean(value) if kind == "text" else value

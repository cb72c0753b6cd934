"""`where`: an SQL predicate over the scalar fields of records, evaluated by DuckDB without access to files, network or settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from shards.errors import RecipeError
from shards.sources.texts import clean

CHARS = 10_000
SETTINGS = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "threads": "1",
    "memory_limit": "1GB",
}
NODES = frozenset("CONJUNCTION COMPARISON COLUMN_REF CONSTANT FUNCTION OPERATOR BETWEEN CASE CAST COLLATE TYPE".split())
# A list of what may be called, not of what may not: what reads the clock, draws lots or makes much out of little has many names.
FUNCTIONS = frozenset(
    "+ - * / // % ** ^ abs ceil ceiling exp floor fmod greatest isfinite isinf isnan least ln log log10 log2 mod pow power round sign sqrt "
    "trunc ~~ !~~ ~~* !~~* ~~~ || ^@ char_length character_length concat contains ends_with ilike_escape instr lcase left len length "
    "like_escape lower ltrim not_ilike_escape not_like_escape position prefix regexp_extract regexp_full_match regexp_matches "
    "regexp_replace replace reverse right rtrim split_part starts_with strip_accents strlen strpos substr substring suffix trim ucase "
    "upper if nullif list_value list_contains json_extract json_extract_string json_exists json_valid json_array_length ->> date_part "
    "datepart date_trunc date_diff datediff year month day hour minute second strptime try_strptime epoch".split()
)
TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.large_string(), "none": pa.null()}
SCALARS = (bool, int, float, str)


def syntax_error(expression: str) -> str | None:
    """What is wrong with the predicate before any data is seen, or None."""
    try:
        Where("", expression).close()
    except RecipeError as error:
        return str(error).partition(" cannot run: ")[2]
    return None


class Where:
    """A compiled predicate; `columns` are the fields it names. Raises RecipeError where it is no predicate over fields alone."""

    def __init__(self, source: str, expression: str) -> None:
        self.source, self.expression = source, expression
        self.worked = False
        self.engine = duckdb.connect(":memory:", config=SETTINGS)
        try:
            self.engine.execute("SET TimeZone = 'UTC'")
            self.engine.execute("SET max_expression_depth = 100")
            self.engine.execute("SET lock_configuration = true")
            self.columns = _columns(self.engine, expression)
            self._query([{}])
        except (duckdb.Error, ValueError) as error:
            self.close()
            raise self._fault(_first_line(error)) from error

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    def check_fields(self, known: Iterable[str], examples: Iterable[str]) -> None:
        """Raises RecipeError for a field that no record has as a scalar. `examples`: fields there are."""
        if missing := [name for name in self.columns if name not in set(known)]:
            fields = ", ".join(examples) or "none"
            raise self._fault(f"no record has a text, number or truth value named {', '.join(map(repr, missing))}; fields are {fields}")

    def judge(self, records: Sequence[Mapping[str, Any]]) -> list[bool | str]:
        """For each record whether the predicate is true (NULL is not), or a text that says why its values cannot be asked.

        A field that is absent, null, a list or an object is NULL. The answer depends on the record alone: records are asked together
        only where their fields have the same types. Raises RecipeError where it can be asked of none of the first records."""
        verdicts: list[bool | str] = [False] * len(records)
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, record in enumerate(records):
            alike.setdefault(tuple(_kind(record.get(name)) for name in self.columns), []).append(i)
        for places in alike.values():
            for i, verdict in zip(places, self._judge([records[i] for i in places]), strict=True):
                verdicts[i] = verdict
        self.worked = self.worked or any(isinstance(v, bool) for v in verdicts)
        if verdicts and not self.worked:
            raise self._fault(f"{verdicts[0]} (in each of the first {len(verdicts)} records)")
        return verdicts

    def _judge(self, records: Sequence[Mapping[str, Any]]) -> list[bool | str]:
        try:
            return list(self._query(records))
        except (duckdb.DataError, duckdb.ProgrammingError) as error:
            if len(records) == 1 or isinstance(error, duckdb.BinderException):
                return [_first_line(error)] * len(records)
        return [verdict for record in records for verdict in self._judge([record])]

    def _query(self, records: Sequence[Mapping[str, Any]]) -> list[bool]:
        arrays = {name: _array(name, records) for name in self.columns}
        self.engine.register("records", pa.table({**arrays, "": pa.nulls(len(records))}))
        rows = self.engine.execute(f"SELECT CASE WHEN ({self.expression}\n) THEN 1 ELSE 0 END FROM records").fetchall()  # noqa: S608
        return [bool(hit) for (hit,) in rows]

    def _fault(self, what: str) -> RecipeError:
        return RecipeError(f"source {self.source!r}: where: {self.expression[:200]!r} cannot run: {what}")


def _columns(engine: duckdb.DuckDBPyConnection, expression: str) -> tuple[str, ...]:
    """The fields that a predicate names. Raises ValueError for what is more than a predicate over fields."""
    if len(expression) > CHARS:
        raise ValueError(f"it has {len(expression):,} characters, more than {CHARS:,}")
    tree, bare = _tree(engine, f"SELECT {expression}\n"), _tree(engine, "SELECT 1")
    if {**tree, "select_list": None} != {**bare, "select_list": None} or len(tree["select_list"]) != 1:
        raise ValueError("it is more than one predicate")
    names: list[str] = []
    for node in _nodes(tree["select_list"]):
        if node["class"] not in NODES:
            raise ValueError(f"{node['class'].lower()} is not allowed, only comparisons of the record's fields")
        if node["class"] == "FUNCTION" and node["function_name"].lower() not in FUNCTIONS:
            raise ValueError(
                f"the function {node['function_name']} is not allowed; allowed are {', '.join(sorted(filter(str.isalpha, FUNCTIONS)))}"
            )
        if node["class"] == "COLUMN_REF":
            if len(node["column_names"]) > 1:
                raise ValueError(f"{'.'.join(node['column_names'])} is no field of the record itself")
            names += node["column_names"]
    unique = tuple(dict.fromkeys(names))
    if len({name.lower() for name in unique}) < len(unique):
        raise ValueError(f"fields that differ in capitals only cannot be told apart: {', '.join(unique)}")
    return unique


def _tree(engine: duckdb.DuckDBPyConnection, statement: str) -> dict[str, Any]:
    [(text,)] = engine.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()
    parsed = json.loads(text)
    if parsed["error"]:
        raise ValueError(parsed["error_message"])
    if len(parsed["statements"]) != 1:
        raise ValueError("it is more than one predicate")
    node: dict[str, Any] = parsed["statements"][0]["node"]
    return node


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    pending = [tree]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "float"
    return "float" if isinstance(value, float) else "text" if isinstance(value, str) else "none"


def _array(name: str, records: Sequence[Mapping[str, Any]]) -> pa.Array:
    kind = _kind(records[0].get(name))
    values = [record.get(name) for record in records]
    if kind == "none":
        return pa.nulls(len(values))
    if kind == "float":
        values = [_float(value) for value in values]
    return pa.array([clean(value) for value in values] if kind == "text" else values, TYPES[kind])


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

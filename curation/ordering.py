"""Which of several samples comes first: an SQL ordering over scores, checked to be pure and completed by uid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.functions import callable_functions, locked_duckdb
from shards.errors import RecipeError

CHUNK = 1_000_000  # rows that DuckDB sees at once
_EXPRESSIONS = frozenset({"CONSTANT", "COLUMN_REF", "FUNCTION", "COMPARISON", "CONJUNCTION", "CAST", "OPERATOR", "BETWEEN", "CASE", "TYPE"})


def order_columns(ordering: str) -> list[str]:
    """Names of the columns an ordering reads, sorted. Raises ValueError for one that does not parse or is not pure."""
    if not ordering.strip():
        return []
    statement = f"select 1 from population order by {ordering}"  # noqa: S608 (serialised, never run)
    [(serialised,)] = locked_duckdb().execute("select json_serialize_sql(?)", [statement]).fetchall()
    tree = json.loads(serialised)
    if tree["error"]:
        raise ValueError(f"keep_best {ordering!r} is no SQL ordering: {tree['error_message']}")
    statements = tree["statements"]
    node = statements[0]["node"]
    if len(statements) != 1 or node.get("type") != "SELECT_NODE" or [m["type"] for m in node["modifiers"]] != ["ORDER_MODIFIER"]:
        raise ValueError(f"keep_best {ordering!r} must be an ordering alone, like 'width*height desc'")
    pure = callable_functions()
    names = set()
    for expression in _expressions(node["modifiers"][0]["orders"]):
        if expression["class"] not in _EXPRESSIONS:
            raise ValueError(
                f"keep_best {ordering!r}: {expression['class'].lower()} is not allowed; columns, literals and pure functions are"
            )
        if expression["class"] == "FUNCTION" and expression["function_name"].lower() not in pure:
            raise ValueError(f"keep_best {ordering!r}: {expression['function_name']}() is not a pure function of one sample")
        if expression["class"] == "COLUMN_REF":
            names.add(".".join(expression["column_names"]))
    return sorted(names)


def ordered(ordering: str, population: pa.Table) -> np.ndarray:
    """int64: places of the population's rows in the order (ordering, uid); of a column of level medium the first medium's value counts.

    DuckDB writes each row's keys as bytes that compare as the keys do, a million rows at a time; they are sorted here. It costs the keys
    and the places: about 30 bytes a row for one number. Raises RecipeError where the ordering fails on the columns' types or values.
    """
    by_uid = _by_uid(population["uid"])
    names = order_columns(ordering)
    if not ordering.strip() or not len(by_uid):
        return by_uid
    keys_sql = _keys_sql(ordering)
    connection = locked_duckdb()
    keys: list[pa.Array] = []
    for start in range(0, len(by_uid), CHUNK):
        chunk = population.slice(start, CHUNK)
        columns = {"uid": chunk["uid"], "kind": chunk["kind"]} | {name: _first_medium(chunk[name]) for name in names}
        connection.register("population", pa.table(columns))
        try:
            keys += connection.sql(keys_sql).to_arrow_table()["key"].chunks
        except duckdb.Error as error:  # one that parses may still not fit the columns' types, or one of their values
            why = str(error).partition("\n")[0]
            raise RecipeError(
                f"keep_best {ordering!r} cannot be computed: {why}; mend it (try_cast gives NULL where cast fails)"
            ) from error
        finally:
            connection.unregister("population")
    return by_uid[_sorted_places(pa.chunked_array(keys), by_uid)]


def _by_uid(uids: pa.ChunkedArray) -> np.ndarray:
    """int64 places in order of uid, which is the order of a population's samples."""
    if len(uids) < 2 or pc.all(pc.less_equal(uids.slice(0, len(uids) - 1), uids.slice(1))).as_py():
        return np.arange(len(uids))
    return pc.sort_indices(uids).to_numpy().astype(np.int64)


def _keys_sql(ordering: str) -> str:
    """A query over `population` whose column `key` sorts as the ordering does."""
    connection = locked_duckdb()
    statement = f"select 1 from population order by {ordering}"  # noqa: S608 (serialised; order_columns has looked at it)
    [(serialised,)] = connection.execute("select json_serialize_sql(?)", [statement]).fetchall()
    tree = json.loads(serialised)
    node = tree["statements"][0]["node"]
    orders = node["modifiers"][0]["orders"]
    node["select_list"] = [{**order["expression"], "alias": f"key{i}"} for i, order in enumerate(orders)]
    node["modifiers"] = []
    [(query,)] = connection.execute("select json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()
    parts = ["'', 'asc nulls last'"]  # a text, so that the keys are bytes: short ones alone would be written as a number
    for i, order in enumerate(orders):
        nulls = "nulls first" if order["null_order"] == "NULLS FIRST" else "nulls last"
        parts.append(f"key{i}, '{'desc' if order['type'] == 'DESCENDING' else 'asc'} {nulls}'")
    return f"select create_sort_key({', '.join(parts)}) as key from ({query})"  # noqa: S608


def _sorted_places(keys: pa.ChunkedArray, by_uid: np.ndarray) -> np.ndarray:
    """int64 places within `by_uid` in order of the rows' keys; equal ones stay as they are there."""
    lengths = pc.min_max(pc.binary_length(keys)).as_py()
    if lengths["min"] != lengths["max"]:
        return pc.sort_indices(keys.take(pa.array(by_uid))).to_numpy().astype(np.int64)
    width = -(-lengths["max"] // 8)
    words = np.zeros((len(keys), width), np.dtype(">u8"))  # of bytes that compare as bytes do
    octets = words.view(np.uint8)
    start = 0
    for chunk in keys.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1]
        values = np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        octets[start : start + len(chunk), 8 * width - lengths["max"] :] = values.reshape(len(chunk), lengths["max"])
        start += len(chunk)
    columns = [words[:, i].astype(np.uint64)[by_uid] for i in range(width)]
    told = [column for column in columns if (column != column[0]).any()]
    return np.lexsort(told[::-1]).astype(np.int64) if told else np.arange(len(by_uid))


def _first_medium(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return column
    firsts = []
    for chunk in column.chunks:
        there = pc.fill_null(pc.greater(pc.list_value_length(chunk), 0), False)
        places = pa.array(chunk.offsets.to_numpy()[:-1], mask=~there.to_numpy(zero_copy_only=False))
        firsts.append(chunk.values.take(places))
    return pa.chunked_array(firsts, column.type.value_type)


def _expressions(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _expressions(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _expressions(value)

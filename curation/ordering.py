"""Which of several samples comes first: an SQL ordering over scores, checked to be pure and completed by uid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from curation.functions import callable_functions, locked_duckdb

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


def ordered(ordering: str, population: pa.Table) -> list[int]:
    """Places of the population's rows in the order (ordering, uid); of a column of level medium the first medium's value counts."""
    columns = {"uid": population["uid"], "kind": population["kind"], "place": pa.array(range(len(population)), pa.int64())}
    for name in order_columns(ordering):
        column = population[name]
        columns[name] = (
            pa.array([value[0] if value else None for value in column.to_pylist()], column.type.value_type)
            if (pa.types.is_list(column.type))
            else column
        )
    # NULLs last is DuckDB's default; the new line keeps a comment at the end of the ordering from swallowing uid
    keys = f"{ordering}\n, uid" if ordering.strip() else "uid"
    connection = locked_duckdb()
    connection.register("population", pa.table(columns))
    try:
        places = connection.execute(f"select place from population order by {keys}").fetchnumpy()["place"]  # noqa: S608 (order_columns)
    finally:
        connection.unregister("population")
    return [int(place) for place in places]


def _expressions(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _expressions(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _expressions(value)

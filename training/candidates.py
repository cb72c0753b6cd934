"""The items of one shard that a stage may train on: what its index rows say of them, as arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from shards.errors import ConfigError, ProfileError
from training.cost import ItemSizes, item_sizes
from training.index_source import IndexSource
from training.order import item_keys
from training.savings import EXACT, MEDIUM_FIELDS, Savings

_COUNTS = ("text_tokens", "labelled_tokens", "patches", "visual_tokens", "kept_tokens")
_CLOCKS = {  # not all of them are called as functions, or listed as changing
    *("now", "today", "current_date", "current_time", "current_timestamp", "get_current_timestamp", "transaction_timestamp"),
    *("localtime", "localtimestamp", "current_localtime", "current_localtimestamp"),
}
_OTHER_ROWS = {"SUBQUERY": "a subquery", "WINDOW": "a window function"}
_HEAVY = ("json", "media")  # of the sample's bytes in the tar: a predicate over them is not worth reading them a second time


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an item may be: counts under a measure profile, compressed or not, and the most that a pack can hold. savings: of what its media
    cost the encoder."""

    profile: str
    compress: bool
    seq_tokens: int
    pack_patches: int
    savings: Savings = EXACT


@dataclass(frozen=True, slots=True)
class Dropped:
    """An item that no pack can hold."""

    uid: str
    task: str
    n: int
    tokens: int
    patches: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """n items of a shard that fit into a pack, in the order of its index.

    row    int64 n: their rows in the shard's index.          key   uint64 n: of (uid, task, n).
    cell   int64 n: which of `cells`, (task, source) pairs.   sizes  their ItemSizes.
    found  items that the predicate lets through, fitting or not.   dropped  those that do not fit.
    """

    row: np.ndarray
    key: np.ndarray
    cell: np.ndarray
    cells: tuple[tuple[str, str], ...]
    sizes: ItemSizes
    found: int
    dropped: tuple[Dropped, ...]


def candidates(source: IndexSource, shard: str, bounds: Bounds, where: str | None) -> Candidates:
    """Reads a shard's index. Raises ProfileError where items are not measured, ConfigError for a `where` that DuckDB refuses."""
    profile = bounds.profile
    if profile not in source.columns:
        raise ProfileError(
            f"the dataset has no counts under profile {profile!r}; add `- measure: {{profile: {profile}}}` to its recipe and run it again"
        )
    masks = ("mask",) if bounds.compress and bounds.savings.prune else ()
    leaves = [*(f"{profile}.{name}" for name in _COUNTS), *(f"{profile}.media.list.element.{name}" for name in (*MEDIUM_FIELDS, *masks))]
    columns = ["uid", "task", "n", "source", *leaves]
    if where is not None:
        columns = [name for name in source.columns if name not in _HEAVY]
    table = source.read(shard, columns)
    allowed = np.asarray(table["task"].to_numpy(zero_copy_only=False) != "")
    if where is not None:
        allowed &= where_mask(table, where)
    rows = np.flatnonzero(allowed)
    items = table.take(pa.array(rows)) if len(rows) < table.num_rows else table
    sizes = item_sizes(items, profile, bounds.compress, bounds.savings)
    long = (sizes.tokens > bounds.seq_tokens) | (sizes.patches > bounds.pack_patches)
    keys = item_keys(items)
    cells, cell = _cells(items)
    dropped = tuple(_dropped(items, sizes, at) for at in np.flatnonzero(long).tolist())
    if dropped:
        fits = np.flatnonzero(~long)
        rows, keys, cell, sizes = rows[fits], keys[fits], cell[fits], sizes.take(fits)
    return Candidates(rows, keys, cell, cells, sizes, len(long), dropped)


_ROW, _MEMORY = "_fovea_row", "2GB"


def where_mask(table: pa.Table, where: str) -> np.ndarray:
    """bool of the rows the predicate is true for. The database sees this table only: no files, no network, no settings."""
    if not where.strip() or _ROW in where:
        raise ConfigError(f"mixture.where: {where!r} is no predicate over the index's columns; write one, or leave `where` out")
    connection = duckdb.connect(":memory:", config={"enable_external_access": "false", "threads": "1", "memory_limit": _MEMORY})
    try:
        connection.execute("SET lock_configuration = true")
        connection.register("items", table.append_column(_ROW, pa.array(np.arange(table.num_rows))))
        statements = connection.extract_statements(f"SELECT {_ROW} FROM items WHERE ({where}\n)")  # noqa: S608 - it is the user's own SQL
        if len(statements) != 1:
            raise ConfigError(f"mixture.where: {where!r} is {len(statements)} statements; it is one predicate over the index's columns")
        if impure := _impure(where):
            raise ConfigError(
                f"mixture.where: {where!r} asks for {', '.join(impure)}; a predicate is over the item's own row, whatever is read with it"
            )
        rows = connection.execute(statements[0]).fetchnumpy()[_ROW]
    except duckdb.Error as error:
        columns = ", ".join(table.column_names)
        raise ConfigError(f"mixture.where: {where!r}: {error}\nA predicate may ask for the columns {columns}") from error
    finally:
        connection.close()
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[np.asarray(rows, dtype=np.int64)] = True
    return mask


@cache
def _impure(where: str) -> tuple[str, ...]:
    """What a predicate asks for besides the item's own row: clocks, chance, other rows. A shard is read by itself, in every pass and on
    every rank: whether an item is in must depend on nothing else. Empty for what is no predicate, which is said elsewhere."""
    connection = duckdb.connect(":memory:", config={"enable_external_access": "false", "threads": "1"})
    try:
        said, plain = (
            json.loads(connection.execute("SELECT json_serialize_sql(?)", [f"SELECT 1 WHERE ({predicate}\n)"]).fetchall()[0][0])
            for predicate in (where, "true")
        )
        changing = connection.execute(
            "SELECT lower(function_name) FROM duckdb_functions() "
            "GROUP BY 1 HAVING bool_or(coalesce(stability, 'CONSISTENT') <> 'CONSISTENT')"
        ).fetchall()
    finally:
        connection.close()
    called: set[str] = set()
    found: set[str] = set()
    if _around(said) != _around(plain):
        found.add("more than the rows it is true for (a bracket closes what it did not open)")
    stack: list[Any] = [said]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(name := node.get("function_name"), str):
                called.add(name.lower())
            found.update(_CLOCKS & {str(name).lower() for name in (node.get("column_names") or ())[:1]})
            if (kind := node.get("class")) in _OTHER_ROWS:
                found.add(_OTHER_ROWS[kind])
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return tuple(sorted(found | called & ({name for (name,) in changing} | _CLOCKS)))


def _around(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    """The parsed statements without their predicates."""
    nodes = [statement["node"] for statement in parsed.get("statements", ())]
    return [{name: value for name, value in node.items() if name != "where_clause"} for node in nodes]


def _cells(items: pa.Table) -> tuple[tuple[tuple[str, str], ...], np.ndarray]:
    task, source = (items[name].combine_chunks().dictionary_encode() for name in ("task", "source"))
    task, source = (c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in (task, source))
    tasks, sources = task.dictionary.to_pylist(), source.dictionary.to_pylist()
    pairs = task.indices.to_numpy().astype(np.int64) * max(len(sources), 1) + source.indices.to_numpy()
    there, cell = np.unique(pairs, return_inverse=True)
    return tuple((tasks[p // len(sources)], sources[p % len(sources)]) for p in there.tolist()), cell.astype(np.int64)


def _dropped(items: pa.Table, sizes: ItemSizes, row: int) -> Dropped:
    uid, task, n = (items[name][row].as_py() for name in ("uid", "task", "n"))
    return Dropped(uid, task, n, int(sizes.tokens[row]), int(sizes.patches[row]))

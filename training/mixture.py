"""What a stage is fed: shares of tasks and sources, chosen by name and never by position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ConfigError
from training.cost import item_sizes
from training.order import item_keys, shuffle

_RAKING_ROUNDS = 2_000
_RAKING_TOLERANCE = 1e-6  # of the whole, for each share


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of a stage.

    tasks    share of each task, any positive scale ({"vqa": 3, "text": 1}); tasks that are not named are left out. None: as they come.
    sources  likewise for sources. With both, both hold (iterative proportional fitting over the cells that have items).
    where    SQL predicate over the index's columns, applied first ("aesthetic > 5 and tiny.kept_tokens < 512").
    by       "items": shares of the number of items. "tokens": shares of their tokens in the language model.

    The mixture is as large as what it is drawn from: a task short of its share has its items repeated, one above it is thinned out.
    """

    tasks: Mapping[str, float] | None = None
    sources: Mapping[str, float] | None = None
    where: str | None = None
    by: Literal["items", "tokens"] = "items"

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": None if self.tasks is None else dict(self.tasks),
            "sources": None if self.sources is None else dict(self.sources),
            "where": self.where,
            "by": self.by,
        }


def select_items(index: pa.Table, mixture: Mixture, *, profile: str, compress: bool, seed: int) -> pa.Table:
    """The item table of a stage: rows of `index` and a column `repeat` (int32, 0 for an item's first appearance).

    `index` has the columns of shards.index.index_schema; rows with task "" (samples without items) never come in. Deterministic: an item
    that is thinned out or repeated is chosen by its hash with `seed`, and a smaller share is a subset of a larger one.
    Raises ConfigError for shares that cannot hold and for a `where` that DuckDB refuses; ProfileError as training.cost.item_sizes does.
    """
    items = index.filter(pc.field("task") != "")
    if mixture.where is not None:
        items = items.filter(_where(items, mixture.where))
    if items.num_rows == 0:
        raise ConfigError(_nothing_left(index, mixture))
    cells, targets = _cells(items, mixture, _weights(items, mixture, profile, compress))
    times = np.ones(items.num_rows, dtype=np.int64)
    if targets is not None:
        times = _times(items, mixture, cells, targets, _weights(items, mixture, profile, compress), seed)
    rows = np.repeat(np.arange(items.num_rows), times)
    first = np.repeat(np.cumsum(times) - times, times)
    repeat = (np.arange(len(rows)) - first).astype(np.int32)
    return items.take(pa.array(rows)).append_column(pa.field("repeat", pa.int32(), nullable=False), pa.array(repeat))


def _weights(items: pa.Table, mixture: Mixture, profile: str, compress: bool) -> np.ndarray:
    if mixture.by == "tokens":
        return item_sizes(items, profile, compress).tokens
    if mixture.by == "items":
        return np.ones(items.num_rows, dtype=np.int64)
    raise ConfigError(f"mixture.by is {mixture.by!r}; it is 'items' or 'tokens'")


def _where(items: pa.Table, where: str) -> pa.Array:
    """bool mask of the rows the predicate is true for. The database sees this table only: no files, no network, no settings."""
    connection = duckdb.connect(":memory:", config={"enable_external_access": "false", "threads": "1"})
    try:
        connection.execute("SET lock_configuration = true")
        connection.register("items", items.append_column("_row", pa.array(np.arange(items.num_rows))))
        statements = connection.extract_statements(f"SELECT _row FROM items WHERE ({where}\n)")  # noqa: S608 - it is the user's own SQL
        if len(statements) != 1:
            raise ConfigError(f"mixture.where: {where!r} is {len(statements)} statements; it is one predicate over the index's columns")
        rows = connection.execute(statements[0]).fetchnumpy()["_row"]
    except duckdb.Error as error:
        columns = ", ".join(items.column_names)
        raise ConfigError(f"mixture.where: {where!r}: {error}\nThe index has the columns {columns}") from error
    finally:
        connection.close()
    mask = np.zeros(items.num_rows, dtype=bool)
    mask[np.asarray(rows, dtype=np.int64)] = True
    return pa.array(mask)


def _nothing_left(index: pa.Table, mixture: Mixture) -> str:
    if mixture.where is not None:
        return f"mixture.where: no item of the dataset meets {mixture.where!r}; loosen it"
    return f"the dataset has no items ({index.num_rows} index rows, all without a task); its recipe needs `compose` and `measure`"


def _shares(items: pa.Table, column: str, shares: Mapping[str, float]) -> dict[str, float]:
    """Positive shares that add up to one, each of which has items."""
    bad = {name: share for name, share in shares.items() if not (np.isfinite(share) and share >= 0)}
    if bad or not any(shares.values()):
        raise ConfigError(f"mixture.{column}s: shares are numbers ≥ 0, one of them > 0; got {dict(shares)}")
    there = set(pc.unique(items[column]).to_pylist())
    missing = sorted(name for name, share in shares.items() if share > 0 and name not in there)
    if missing:
        raise ConfigError(f"mixture.{column}s: no items for {', '.join(missing)}; the selection has {', '.join(sorted(there))}")
    total = float(sum(shares.values()))
    return {name: share / total for name, share in sorted(shares.items()) if share > 0}


def _cells(items: pa.Table, mixture: Mixture, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(cell of each item or -1, target share of each cell): a cell is one task of one source. No targets without shares."""
    if mixture.tasks is None and mixture.sources is None:
        return np.zeros(items.num_rows, dtype=np.int64), None
    numbers: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    for column, shares in (("task", mixture.tasks), ("source", mixture.sources)):
        values = items[column].to_pylist()
        if shares is None:
            numbers.append(np.zeros(items.num_rows, dtype=np.int64))
            wanted.append(np.ones(1))
        else:
            normal = _shares(items, column, shares)
            place = {name: number for number, name in enumerate(normal)}
            numbers.append(np.array([place.get(value, -1) for value in values], dtype=np.int64))
            wanted.append(np.array(list(normal.values())))
    chosen = (numbers[0] >= 0) & (numbers[1] >= 0)
    cells = np.where(chosen, numbers[0] * len(wanted[1]) + numbers[1], -1)
    counts = np.bincount(cells[chosen], weights=weights[chosen], minlength=len(wanted[0]) * len(wanted[1]))
    return cells, _rake(counts.reshape(len(wanted[0]), len(wanted[1])), wanted[0], wanted[1], mixture).ravel()


def _rake(counts: np.ndarray, rows: np.ndarray, columns: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Shares nearest to `counts` with the given margins (Deming and Stephan 1940); ConfigError where no such shares exist."""
    shares = counts / max(counts.sum(), 1)
    for _ in range(_RAKING_ROUNDS):
        shares = shares * _ratio(rows, shares.sum(axis=1))[:, None]
        shares = shares * _ratio(columns, shares.sum(axis=0))[None, :]
        if np.abs(shares.sum(axis=1) - rows).max() < _RAKING_TOLERANCE and np.abs(shares.sum(axis=0) - columns).max() < _RAKING_TOLERANCE:
            return shares / shares.sum()
    raise ConfigError(
        f"mixture: the shares of tasks {mixture.tasks} and of sources {mixture.sources} cannot hold together: "
        "a task or source lies mostly in others of another share; give one of them only, or change them"
    )


def _ratio(wanted: np.ndarray, there: np.ndarray) -> np.ndarray:
    return np.divide(wanted, there, out=np.zeros_like(wanted), where=there > 0)


def _times(items: pa.Table, mixture: Mixture, cells: np.ndarray, shares: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """How often each item comes (int64): all items of a cell equally often, then once more by hash until the cell's share is met."""
    total = float(weights[cells >= 0].sum())
    targets = _whole(shares * total) if mixture.by == "items" else shares * total
    order = shuffle(item_keys(items), "mixture", seed)
    times = np.zeros(items.num_rows, dtype=np.int64)
    for cell, target in enumerate(targets):
        members = order[cells[order] == cell]
        if not len(members):
            continue
        full, rest = divmod(float(target), float(weights[members].sum()))
        # one more of an item while that brings the sum nearer to the target than leaving it out
        middle = np.cumsum(weights[members]) - weights[members] / 2
        times[members] = int(full)
        times[members[: int(np.searchsorted(middle, rest, side="left"))]] += 1
    return times


def _whole(values: np.ndarray) -> np.ndarray:
    """Whole numbers of the same sum, nearest to `values` (largest remainder)."""
    floor = np.floor(values + 1e-9)
    missing = round(float(values.sum() - floor.sum()))
    floor[np.argsort(-(values - floor), kind="stable")[:missing]] += 1
    return floor

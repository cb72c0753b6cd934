"""What a stage is fed: shares of tasks and sources, chosen by name and never by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shards.errors import ConfigError
from training.census import BINS, Census

_RAKING_ROUNDS = 2_000
_RAKING_TOLERANCE = 1e-6  # of the whole, for each share
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of a stage.

    tasks    share of each task, any positive scale ({"vqa": 3, "text": 1}); tasks that are not named are left out. None: as they come.
    sources  likewise for sources. With both, both hold (iterative proportional fitting over the cells that have items).
    where    SQL predicate over the index's columns, applied first ("aesthetic > 5 and tiny.kept_tokens < 512").
    by       "items": shares of the number of items. "tokens": shares of their tokens in the language model.
    missing  what to do with a named task or source without items: "refuse", or "leave_out".

    The mixture is as large as what it is drawn from: a task short of its share has its items repeated, one above it is thinned out.
    """

    tasks: Mapping[str, float] | None = None
    sources: Mapping[str, float] | None = None
    where: str | None = None
    by: Literal["items", "tokens"] = "items"
    missing: Literal["refuse", "leave_out"] = "refuse"

    def __post_init__(self) -> None:
        if self.by not in ("items", "tokens"):
            raise ConfigError(f"mixture.by is {self.by!r}; it is 'items' or 'tokens'")

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": None if self.tasks is None else dict(self.tasks),
            "sources": None if self.sources is None else dict(self.sources),
            "where": self.where,
            "by": self.by,
            "missing": self.missing,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """How often the items of a cell come: `full` times each, and once more those whose rank (census.mixture_ranks) is below `limit`."""

    task: str
    source: str
    full: int
    limit: int

    def times(self, ranks: np.ndarray) -> np.ndarray:
        """int64 of each rank."""
        return self.full + (ranks < np.uint64(self.limit)).astype(np.int64) if self.limit <= _ALL else np.full(len(ranks), self.full + 1)


def choose(census: Census, mixture: Mixture) -> tuple[Choice, ...]:
    """The choice in every cell of the census. A smaller share of a cell is a subset of a larger one.

    Raises ConfigError for a dataset without items and for shares that cannot hold.
    """
    if not census.cells:
        raise ConfigError(_nothing_left(census, mixture))
    if mixture.tasks is None and mixture.sources is None:
        return tuple(Choice(cell.task, cell.source, 1, 0) for cell in census.cells)
    shares = _cell_shares(census, mixture)
    total = float(sum(cell.weights.sum() for cell, share in zip(census.cells, shares, strict=True) if share is not None))
    targets = np.array([0.0 if share is None else share * total for share in shares])
    if mixture.by == "items":
        targets = _whole(targets)
    return tuple(
        _choice(cell.task, cell.source, cell.counts, cell.weights, float(t)) for cell, t in zip(census.cells, targets, strict=True)
    )


def left_out(mixture: Mixture, choices: Sequence[Choice]) -> dict[str, list[str]]:
    """Tasks and sources that the mixture names and nothing was found of: {"tasks": […], "sources": […]}, without empty lists."""
    absent = {}
    for kind, shares in (("task", mixture.tasks), ("source", mixture.sources)):
        there = {getattr(choice, kind) for choice in choices}
        absent[f"{kind}s"] = sorted(name for name, share in (shares or {}).items() if share > 0 and name not in there)
    return {kind: names for kind, names in absent.items() if names}


def _choice(task: str, source: str, counts: np.ndarray, weights: np.ndarray, target: float) -> Choice:
    full, rest = divmod(target, float(weights.sum()))
    before = np.cumsum(weights) - weights
    number = int(np.searchsorted(before + weights, rest, side="right"))  # the bin in which the rest ends
    if rest <= 0 or number >= BINS:
        return Choice(task, source, int(full), 0)
    inside = (rest - before[number]) / max(int(weights[number]), 1)
    if counts[number] == 1:
        inside = round(inside + 1e-9)  # one item: in where that is nearer to the target than out
    width = (1 << 64) // BINS
    return Choice(task, source, int(full), number * width + int(inside * width))


def _nothing_left(census: Census, mixture: Mixture) -> str:
    if census.dropped:
        first = census.listed[0]
        return (
            f"all {census.dropped} items are too long for a pack, first {first.uid} ({first.task} {first.n}: {first.tokens} tokens, "
            f"{first.patches} patches); raise seq_tokens and pack_patches"
        )
    if mixture.where is not None:
        return f"mixture.where: no item of the dataset meets {mixture.where!r}; loosen it"
    return "the dataset has no items (no index row with a task); its recipe needs `compose` and `measure`"


def _cell_shares(census: Census, mixture: Mixture) -> list[float | None]:
    """Share of each cell of the whole; None for one that is left out."""
    wanted: list[dict[str, float]] = []
    for kind, shares in (("task", mixture.tasks), ("source", mixture.sources)):
        there = {getattr(cell, kind) for cell in census.cells}
        wanted.append(dict.fromkeys(sorted(there), 1.0) if shares is None else _shares(there, kind, shares, mixture.missing))
    rows, columns = (list(names) for names in wanted)
    weights = np.zeros((len(rows), len(columns)))
    place = {}
    for number, cell in enumerate(census.cells):
        if cell.task in wanted[0] and cell.source in wanted[1]:
            place[number] = rows.index(cell.task), columns.index(cell.source)
            weights[place[number]] = cell.weights.sum()
    margins = [
        None if shares is None else np.array(list(names.values()))
        for shares, names in zip((mixture.tasks, mixture.sources), wanted, strict=True)
    ]
    raked = _rake(weights, margins[0], margins[1], mixture)
    return [float(raked[place[n]]) if n in place else None for n in range(len(census.cells))]


def _shares(there: set[str], kind: str, shares: Mapping[str, float], absent: str) -> dict[str, float]:
    """Positive shares that add up to one, each of which has items."""
    bad = {name: share for name, share in shares.items() if not (np.isfinite(share) and share >= 0)}
    if bad or not any(shares.values()) or not np.isfinite(sum(shares.values())):
        raise ConfigError(f"mixture.{kind}s: shares are numbers ≥ 0 of a finite sum, one of them > 0; got {dict(shares)}")
    missing = sorted(name for name, share in shares.items() if share > 0 and name not in there)
    if missing and (absent == "refuse" or not there & {name for name, share in shares.items() if share > 0}):
        raise ConfigError(f"mixture.{kind}s: no items for {', '.join(missing)}; the selection has {', '.join(sorted(there))}")
    left = {name: share for name, share in sorted(shares.items()) if share > 0 and name in there}
    total = float(sum(left.values()))
    return {name: share / total for name, share in left.items()}


def _rake(counts: np.ndarray, rows: np.ndarray | None, columns: np.ndarray | None, mixture: Mixture) -> np.ndarray:
    """Shares nearest to `counts` with the given margins (Deming and Stephan 1940); ConfigError where no such shares exist."""
    shares = counts / max(counts.sum(), 1)
    for _ in range(_RAKING_ROUNDS):
        if rows is not None:
            shares = shares * _ratio(rows, shares.sum(axis=1))[:, None]
        if columns is not None:
            shares = shares * _ratio(columns, shares.sum(axis=0))[None, :]
        off_rows = 0.0 if rows is None else np.abs(shares.sum(axis=1) - rows).max()
        off_columns = 0.0 if columns is None else np.abs(shares.sum(axis=0) - columns).max()
        if max(off_rows, off_columns) < _RAKING_TOLERANCE:
            return shares / shares.sum()
    raise ConfigError(
        f"mixture: the shares of tasks {mixture.tasks} and of sources {mixture.sources} cannot hold together: "
        "a task or source lies mostly in others of another share; give one of them only, or change them"
    )


def _ratio(wanted: np.ndarray, there: np.ndarray) -> np.ndarray:
    return np.divide(wanted, there, out=np.zeros_like(wanted), where=there > 0)


def _whole(values: np.ndarray) -> np.ndarray:
    """Whole numbers of the same sum, nearest to `values` (largest remainder)."""
    floor = np.floor(values + 1e-9)
    missing = round(float(values.sum() - floor.sum()))
    floor[np.argsort(-(values - floor), kind="stable")[:missing]] += 1
    return floor

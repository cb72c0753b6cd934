"""The funnel of a run: what went into each step and rule in the recipe's order, what came out, and what it cost; of all, and by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb

from curation.rows import MORE, row_schema
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe, StepOp

SOURCE = "source"  # the stage of records that their source could not read
FATES = ("rejected", "errored", "split", "pending")


@dataclass(slots=True)
class Stage:
    """One step or rule of the recipe (a global step with the rule it implies).

    entered   samples that came to it, children of the splitters before it among them. Those it does not apply to pass through.
    out       entered - rejected - errored - split - pending.
    calls     that its samples have in the ledger: media for steps of level "medium", else samples. None for rules.
    seconds   wall time in the step, summed over workers and runs; of one source: in proportion to its calls, not measured apart.
    """

    step: str
    entered: int = 0
    rejected: int = 0
    errored: int = 0
    split: int = 0
    pending: int = 0
    out: int = 0
    calls: int | None = None
    seconds: float | None = None


def funnel(connection: duckdb.DuckDBPyConnection, ledger: Ledger, recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Source → its stages in the recipe's order; "" → those of all sources. `connection`: of `pipeline.query.connect`."""
    names = [SOURCE, *dict.fromkeys(op.name for op in recipe.ops)]
    fates = connection.execute(
        "select s.source, coalesce(p.step, ''), s.verdict, coalesce(s.step, ''), count(*) from samples s "
        "left join (select uid, step from samples where verdict = 'split') p on p.uid = s.parent group by all"
    ).fetchall()
    by_source = {source: _stages(names, [f[1:] for f in fates if f[0] == source]) for source in sorted({f[0] for f in fates})}
    for op in recipe.ops:
        if isinstance(op, StepOp):
            _cost(op, names.index(op.name), by_source, _calls(connection, ledger, op), _seconds(ledger, op))
    total = [_sum(column) for column in zip(*by_source.values(), strict=True)] or _stages(names, [])
    return {source: [asdict(stage) for stage in stages] for source, stages in {"": total, **by_source}.items()}


def _stages(names: Sequence[str], fates: Sequence[tuple[str, str, str, int]]) -> list[Stage]:
    """fates: (splitter that made it or "", verdict, step that decided, how many)."""
    place = {name: i for i, name in enumerate(names)}
    stages = [Stage(name) for name in names]
    for made_by, verdict, step, count in fates:
        begin = place[made_by] + 1 if made_by else 0
        end = len(names) - 1 if verdict == "kept" else place[step]
        for stage in stages[min(begin, end) : end + 1]:  # a child that could not be made ends at the step that makes children
            stage.entered += count
        if verdict in FATES:
            setattr(stages[end], verdict, getattr(stages[end], verdict) + count)
    for stage in stages:
        stage.out = stage.entered - stage.rejected - stage.errored - stage.split - stage.pending
    return stages


def _calls(connection: duckdb.DuckDBPyConnection, ledger: Ledger, op: StepOp) -> dict[str, int] | None:
    """By source, what the step's rows in the ledger stand for; None for a global step, which sees all who come to it."""
    if op.step.shape == "global":
        return None
    schema = row_schema(op.step, op.what, wide=False)
    size = f"1 + coalesce(len(r.{MORE}), 0)" if MORE in schema.names else "1"
    scan = ledger.scan(connection, f"step-{op.digest}", schema)
    query = f"select s.source, sum({size}) from {scan} r join samples s using (uid) group by all"
    return {source: int(count) for source, count in connection.execute(query).fetchall()}


def _seconds(ledger: Ledger, op: StepOp) -> float:
    """Of all runs, under whatever name the step had."""
    return sum(cost.seconds for (digest, _), cost in ledger.log.state.costs.items() if digest == op.digest)


def _cost(op: StepOp, at: int, by_source: Mapping[str, list[Stage]], calls: dict[str, int] | None, seconds: float) -> None:
    found = calls if calls is not None else {source: stages[at].entered for source, stages in by_source.items()}
    total = sum(found.values())
    for source, stages in by_source.items():
        stages[at].calls = found.get(source, 0)
        stages[at].seconds = seconds * found.get(source, 0) / total if total else 0.0


def _sum(stages: Sequence[Stage]) -> Stage:
    total = Stage(stages[0].step)
    for name in ("entered", *FATES, "out"):
        setattr(total, name, sum(getattr(stage, name) for stage in stages))
    if stages[0].calls is not None:
        total.calls = sum(stage.calls or 0 for stage in stages)
        total.seconds = sum(stage.seconds or 0.0 for stage in stages)
    return total

"""One run of a recipe, from the sources to the manifest: scan, then segment after segment, then the dataset. Safe to repeat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow.compute as pc

from pipeline import cluster, llm_pool
from pipeline.annotate import Progress, annotate
from pipeline.dataset import Published, publish
from pipeline.globals import run_global
from pipeline.ledger import VERDICTS, Ledger, first, name, open_ledger
from pipeline.provision import ModelState, model_states, provide
from pipeline.recipe import Recipe, StepOp, keep_in_run
from pipeline.references import check_vectors, references_table
from pipeline.scan import Changes, update_listing
from pipeline.segments import Segment, step_table
from pipeline.verdicts import Judge


@dataclass(slots=True)
class Outcome:
    """What a run did. calls: step calls by name; media_opened: by the steps; counts: verdicts now."""

    changes: Changes
    counts: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    media_opened: int = 0
    crashes: int = 0
    dataset: Published | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        return self.counts.get("pending", 0)


def curate(
    recipe: Recipe,
    run: str,
    *,
    address: str | None = None,
    retry_errors: bool = False,
    progress: Progress = lambda what, done, total: None,
    models: Sequence[ModelState] | None = None,
) -> Outcome:
    """Bring the run up to date with its sources and its recipe. A recipe that was cut (`load_recipe(…, until=…)`) writes no shards.

    models: what `model_states(recipe)` said, if that was asked already; what is not here is downloaded before Ray starts.

    Raises FoveaError for what ends a run (docs/ledger.md); whatever was committed stays, and running again goes on from there.
    """
    started = time.monotonic()
    llm_pool.check(recipe)
    for op in recipe.ops:
        if isinstance(op, StepOp):
            check_vectors(recipe, op)
    ledger = open_ledger(run, write=True)
    try:
        ledger.sweep()
        provide(recipe, run, model_states(recipe) if models is None else models, download=address is None, fresh=ledger.log.state.seq == 0)
        keep_in_run(ledger.store, recipe)
        at = time.monotonic()
        cluster.connect(address, [op.op for op in recipe.ops if isinstance(op, StepOp)])
        seconds = {"ray": time.monotonic() - at}
        if retry_errors:
            forget_errors(ledger, recipe)
        outcome = _run(ledger, recipe, progress, seconds, write=recipe.until is None)
    finally:
        ledger.close()
    outcome.seconds["total"] = time.monotonic() - started
    return outcome


def forget_errors(ledger: Ledger, recipe: Recipe) -> int:
    """Leave the errored rows of the recipe's steps out of the ledger, so that they are computed again; how many there were."""
    files, remove, count = [], [], 0
    for op in recipe.ops:
        if not isinstance(op, StepOp):
            continue
        if op.step.shape == "global":  # who of its references err is asked again when it next runs
            remove += [f.path for f in ledger.files(references_table(recipe, op)) if ledger.read(f)["error"].null_count < f.rows]
            continue
        for i, file in enumerate(ledger.files(step_table(op))):
            rows = ledger.read(file)
            kept = rows.filter(pc.is_null(rows["error"]))
            if kept.num_rows == rows.num_rows:
                continue
            count += rows.num_rows - kept.num_rows
            remove.append(file.path)
            if kept.num_rows:
                files.append(ledger.write(file.table, kept, f"r{i}"))
    if remove:
        ledger.commit("steps", {}, files=files, remove=remove, note={"retried": count})
    return count


def _run(ledger: Ledger, recipe: Recipe, progress: Progress, seconds: dict[str, float], write: bool) -> Outcome:
    at = time.monotonic()
    changes = update_listing(ledger, recipe.sources)
    seconds["scan"] = time.monotonic() - at
    outcome = Outcome(changes, seconds=seconds)
    connection = ledger.connect()
    try:
        judge = Judge(connection, ledger, recipe)
        at = time.monotonic()
        for segment in judge.segments:
            _run_segment(judge, segment, outcome, progress)
        seconds["steps"] = time.monotonic() - at
        outcome.counts = counts(connection, judge)
        store_verdicts(connection, judge)
        if write and outcome.pending == 0:
            at = time.monotonic()
            outcome.dataset = publish(judge, outcome.counts, progress)
            seconds["write"] = time.monotonic() - at
        if ledger.needs_compaction():
            ledger.compact()
    finally:
        connection.close()
    return outcome


def _run_segment(judge: Judge, segment: Segment, outcome: Outcome, progress: Progress) -> None:
    """Bring one segment up to date: its global step, then its annotators until nobody is pending."""
    judge.judge(segment)
    if segment.global_step is not None:
        index, op = segment.global_step
        if first(judge.connection, f"select 1 from state{segment.number} where op = {index} limit 1"):
            progress(op.name, 0, 1)
            run_global(judge, segment, op, tally=outcome)
            outcome.calls[op.name] = outcome.calls.get(op.name, 0) + 1
            judge.judge(segment)
            progress(op.name, 1, 1)
    annotate(judge, segment, outcome, progress)


def counts(connection: duckdb.DuckDBPyConnection, judge: Judge) -> dict[str, int]:
    """Verdicts by name: kept, rejected, errored, split, pending, and `inputs`, their sum."""
    found = dict(connection.execute(f"select verdict, count(*) from {judge.verdict_sql()} group by 1").fetchall())
    known = {v: int(found.get(v, 0)) for v in ("kept", "rejected", "errored", "split", "pending")}
    return {"inputs": sum(known.values()), **known}


def store_verdicts(connection: duckdb.DuckDBPyConnection, judge: Judge) -> None:
    """Commit the verdicts as of now (for readers in a hurry), unless the stored ones already are."""
    ledger = judge.ledger
    if verdicts_are_current(ledger, judge.recipe):
        return
    reader = connection.sql(f"select {', '.join(map(name, VERDICTS.names))} from {judge.verdict_sql()} order by uid").to_arrow_reader(
        20_000
    )
    old = [f.path for f in ledger.files("verdicts")]
    files = [ledger.write("verdicts", reader.cast(VERDICTS), "v")]
    ledger.commit("verdicts", {}, files=files, remove=old, note={"recipe": judge.recipe.digest, "populations": judge.populations})


def verdicts_are_current(ledger: Ledger, recipe: Recipe) -> bool:
    """Whether the stored verdicts are of this recipe and nothing that may change them was committed since."""
    state = ledger.log.state
    return state.verdicts_seq > state.changed and state.verdicts["recipe"] == recipe.digest

"""What a run would do, and nothing else: verdicts as they would be, step calls to come, which verdicts flip. No Ray, no media opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from curation.rows import row_schema
from pipeline.curate import counts
from pipeline.globals import plan_global
from pipeline.ledger import Ledger, first, open_ledger, quote
from pipeline.log import CommitLog
from pipeline.recipe import Recipe, RuleOp, StepOp
from pipeline.references import unseen
from pipeline.scan import Changes, overlay
from pipeline.segments import Segment, applies_sql, fingerprint_sql, global_table, splitters, step_table
from pipeline.verdicts import Judge
from shards.store import open_store

PLANNED_ROWS = 50_000  # of a global step that is computed while planning; for more it must have found its pairs before


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Calls that a step would get: samples at level "sample", media at level "medium".

    exact: the number itself; else an upper bound, because a rule over columns that are not there yet, or a global step, stands before it,
    or because a file has another date and only its bytes can say whether it changed.
    cached: rows that are there already. seconds: at the cost measured in this run so far; None where there is none.
    beyond: what comes on top of the calls and cannot be counted, "the children of 3 samples that pages has yet to split"; "" for nothing.
    """

    name: str
    digest: str
    calls: int
    exact: bool
    cached: int
    seconds: float | None = None
    beyond: str = ""


@dataclass(slots=True)
class RunPlan:
    """flips: (verdict now, verdict then) → samples, of those whose verdict is stored; `then` counts pending ones as pending."""

    changes: Changes
    phases: list[str] = field(default_factory=list)
    steps: list[StepPlan] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    flips: dict[tuple[str, str], int] = field(default_factory=dict)


def make_plan(recipe: Recipe, run: str) -> RunPlan:
    """Plan a run of `recipe` in the run directory `run`, which need not exist and is not touched. Raises FoveaError."""
    ledger = _open(run)
    connection = ledger.connect()
    try:
        plan = RunPlan(overlay(connection, ledger, recipe.sources))
        judge = Judge(connection, ledger, recipe)
        plan.phases = [phase_text(segment) for segment in judge.segments if segment.ops]
        upstream: list[int] = []  # earlier segments where samples wait: how many of them come here nobody knows
        for segment in judge.segments:
            if _plan_segment(judge, segment, plan, upstream):
                upstream.append(segment.number)
        plan.counts = counts(connection, judge)
        if ledger.files("verdicts"):
            query = (
                f"select o.verdict, coalesce(n.verdict, 'gone'), count(*) from {ledger.scan(connection, 'verdicts')} o "
                f"left join {judge.verdict_sql()} n using (uid) where o.verdict is distinct from n.verdict group by all order by all"
            )
            plan.flips = {(a, b): n for a, b, n in connection.execute(query).fetchall()}
        return plan
    finally:
        connection.close()


def phase_text(segment: Segment) -> str:
    """The operators of a segment as a reader wants them: `probe → keep(size) | deduplicate …`."""
    parts = []
    for _, op in segment.ops:
        if isinstance(op, RuleOp):
            parts.append(f"keep[{op.rule.expression}]" + (f" (implied by {op.implied_by})" if op.implied_by else ""))
        else:
            parts.append(op.name)
    return " → ".join(parts)


def _open(run: str) -> Ledger:
    store = open_store(run)
    return open_ledger(run) if store.exists("run.json") else Ledger(store, CommitLog(store))


def _plan_segment(judge: Judge, segment: Segment, plan: RunPlan, upstream: Sequence[int]) -> int:
    """Judge a segment, add its steps to the plan; how many samples wait here. upstream: earlier segments where samples wait."""
    judge.judge(segment)
    if segment.global_step is not None:
        index, op = segment.global_step
        waiting = _count(judge, f"select count(*) from state{segment.number} where op = {index}")
        if waiting or upstream:
            beyond = unseen(judge, op)
            plan.steps.append(StepPlan(op.name, op.digest, 1, not upstream, 0, _seconds(judge.ledger, op, 1), beyond))
            # Where nothing it reads is missing its result can be had now: it is a pure function and costs no model.
            planned = plan_global(judge, segment, op, PLANNED_ROWS) if not upstream and not beyond else None
            if planned is not None:
                judge.connection.register(f"planned{segment.number}", planned)
                table = global_table(op, judge.populations[op.digest])
                judge.ledger.overlays[table] = f"(select * from planned{segment.number})"
                judge.judge(segment)
    annotators = [(i, op) for i, op in segment.ops if isinstance(op, StepOp) and op.step.shape != "global"]
    for i, op in annotators:
        plan.steps.append(_plan_step(judge, segment, i, op, upstream))
    return _count(judge, f"select count(*) from state{segment.number} where status = 'pending'")


def _plan_step(judge: Judge, segment: Segment, index: int, op: StepOp, upstream: Sequence[int]) -> StepPlan:
    scan = judge.scan(step_table(op), row_schema(op.step, op.what, wide=False))
    size = "count(*)"
    if op.step.level == "medium":
        of_kinds = f"len(list_filter(b.media_kinds, lambda k: k in ({', '.join(map(quote, sorted(op.kinds)))})))"
        size = f"sum(case when b.n_media > 1 then {of_kinds} else b.n_media end)"
    touched = f"b.content is null and b.uid in (select uid from {judge.scan('contents')})" if "media" in op.roots else "false"
    applies = applies_sql(op.kinds, "b")
    query = (
        f"select coalesce({size}, 0), coalesce(min(b.op), {index}), coalesce(bool_or({touched}), false) "
        f"from state{segment.number} b left join {scan} s on s.uid = b.uid and s.fp = {fingerprint_sql(op.roots)} "
        f"where b.status = 'pending' and b.op <= {index} and {applies} and s.uid is null"
    )
    calls, blocked, unsure = first(judge.connection, query)
    open_rule = any(isinstance(o, RuleOp) and blocked < i < index for i, o in segment.ops)
    open_global = segment.global_step is not None and blocked == segment.global_step[0]
    beyond = _beyond(judge, index, upstream)
    for number in upstream:
        first_op = judge.segments[number].ops[0][0]
        split = "".join(f" and not {applies_sql(o.kinds, 'b')}" for i, o in splitters(judge.recipe) if first_op <= i < index)
        calls += _count(judge, f"select {size} from state{number} b where b.status = 'pending' and {applies}{split}")
    cached = sum(f.rows for f in judge.ledger.files(step_table(op)))
    exact = not (upstream or open_rule or open_global or unsure)
    return StepPlan(op.name, op.digest, int(calls), exact, cached, _seconds(judge.ledger, op, int(calls)), beyond)


def _beyond(judge: Judge, index: int, upstream: Sequence[int]) -> str:
    """What waits before or at a splitter that stands before operator `index`: into how many children it goes nobody knows."""
    told = []
    for i, op in splitters(judge.recipe):
        waiting = [
            _count(judge, f"select count(*) from state{number} b where b.status = 'pending' and {applies_sql(op.kinds, 'b')}")
            for number in upstream
            if i < index and judge.segments[number].ops and judge.segments[number].ops[0][0] <= i
        ]
        if sum(waiting):
            told.append(f"the children of {sum(waiting):,} samples that {op.name} has yet to split")
    return " and ".join(told)


def _seconds(ledger: Ledger, op: StepOp, calls: int) -> float | None:
    cost = ledger.log.state.costs.get((op.digest, op.name))
    return cost.seconds / cost.calls * calls if cost is not None and cost.calls else None


def _count(judge: Judge, query: str) -> int:
    return int(first(judge.connection, query)[0] or 0)

"""The annotators, or the splitter, of one segment on Ray until nobody waits for them, their answers committed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from curation.splitting import DERIVED
from pipeline.children import known_contents, without
from pipeline.committer import Committer
from pipeline.ledger import first
from pipeline.pools import stream
from pipeline.recipe import StepOp
from pipeline.segments import Segment
from pipeline.verdicts import Judge
from pipeline.work import pools_of, work_fields_of, write_work
from shards.errors import InfrastructureError

Progress = Callable[[str, int, int], None]  # what, done, of how many


class Tally(Protocol):
    """What was done. calls: step calls by name; media_opened: by the steps; crashes: of their processes."""

    calls: dict[str, int]
    media_opened: int
    crashes: int


def annotate(judge: Judge, segment: Segment, tally: Tally, progress: Progress) -> None:
    """Bring a judged segment up to date, and judge it again. Raises FoveaError; what was done before is committed."""
    waiting = pending(judge, segment)
    while waiting:
        _once(judge, segment, tally, progress, waiting)
        judge.judge(segment)
        left = pending(judge, segment)
        if left >= waiting:
            raise InfrastructureError(f"{left} samples of segment {segment.number} stay pending though their steps have run; this is a bug")
        waiting = left


def pending(judge: Judge, segment: Segment) -> int:
    """Samples that wait in a judged segment."""
    query = f"select count(*) from state{segment.number} where status = 'pending'"
    return int(first(judge.connection, query)[0])


def _once(judge: Judge, segment: Segment, tally: Tally, progress: Progress, waiting: int) -> None:
    work = judge.ledger.scratch() / f"segment-{segment.number}.parquet"
    tasks = write_work(judge, segment, work, work_fields_of(judge, segment))
    known = known_contents(judge, segment)
    committer = Committer(judge.ledger)
    limits = {op.name: op.max_errors for _, op in segment.ops if isinstance(op, StepOp) and op.max_errors is not None}
    errors: dict[str, int] = {}
    done = 0
    what = " + ".join(op.name for _, op in segment.ops if isinstance(op, StepOp) and op.step.shape != "global")
    progress(what, 0, waiting)
    try:
        for header, tables in stream(tasks, pools_of(segment), judge.recipe.limits, judge.ledger.store.url(DERIVED)):
            tables.pop("onward", None)
            if "contents" in tables:
                tables["contents"] = without(tables["contents"], known)
            tally.media_opened += header["media_opened"]
            tally.crashes += header["crashes"]
            done += header["rows"]
            for cost in header["costs"]:
                if cost["calls"]:
                    tally.calls[cost["name"]] = tally.calls.get(cost["name"], 0) + cost["calls"]
                errors[cost["name"]] = errors.get(cost["name"], 0) + cost["errors"]
            committer.add(header, tables)
            progress(what, done, waiting)
            _check_errors(limits, errors, done)
    except InfrastructureError as error:
        committer.flush()
        judge.judge(segment)
        left = pending(judge, segment)
        raise InfrastructureError(
            f"{error}\n{waiting - left:,} of the {waiting:,} samples that waited for {what} are done and kept, {left:,} are pending; "
            "what their earlier steps said is kept too. The same command goes on from there once the cause is mended"
        ) from error
    finally:
        committer.flush()
    work.unlink(missing_ok=True)


def _check_errors(limits: dict[str, float], errors: dict[str, int], done: int) -> None:
    """`max_errors` of a step: a number of samples, or below 1 a share of those done (looked at from 1,000 on)."""
    for step, limit in limits.items():
        count = errors.get(step, 0)
        if (limit >= 1 and count > limit) or (limit < 1 and done >= 1000 and count > limit * done):
            raise InfrastructureError(
                f"step {step}: {count} of {done} samples errored, max_errors is {limit:g}; what is done is kept. "
                "Look at `fovea query RUN \"select reason, count(*) from samples where verdict = 'errored' group by 1\"`"
            )

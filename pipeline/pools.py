"""Fused groups on Ray Data: a stream of tasks through one actor pool for each group, answers back as payloads.

An error that ends the run travels as an answer too, not as an exception: Ray never sees it, and what was done before it is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from curation.group import GroupResult, GroupRunner
from curation.program import Program, call_from_json
from pipeline import cluster, payload
from pipeline.recipe import StepOp
from pipeline.work import Task, read_task
from shards import errors
from shards.errors import FoveaError, StepBug
from shards.media import Limits

ONWARD = "onward"


class GroupActor:
    """Lives in a Ray actor; owns a GroupRunner, whose child process does the work. Crashes of samples stay below it."""

    def __init__(self, program: str, limits: Mapping[str, Any], memory: int, folder: str, flag: str):
        self._stopped = Path(flag).exists
        if os.path.isdir(folder):
            os.chdir(folder)  # relative paths in a step's parameters start where the command does
        self._runner = GroupRunner(program_from_json(program), Limits(**limits), memory=memory)

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """One task or one payload of the pool before in, one payload out: {"payload": [bytes]}."""
        answers: list[GroupResult] = []
        header: dict[str, Any] = {"costs": [], "media_opened": 0, "crashes": 0, "rows": 0}
        before: dict[str, pa.Table] = {}
        units: Iterable[pa.Table]
        if "payload" in batch:
            header, before = payload.decode(bytes(batch["payload"][0]))
            units = _split_units(before.pop(ONWARD))
        else:
            units = read_task(Task(**{k: _plain(v[0]) for k, v in batch.items()}))
            header["rows"] = int(batch["rows"][0])
        try:
            for unit in units:
                if "failure" in header or self._stopped():
                    break
                if unit.num_rows:
                    answer, failure = self._runner.run_kept(unit, self._stopped)
                    answers.append(answer)
                    if failure is not None:
                        raise failure
        except FoveaError as error:
            header["failure"] = _failure(error)
        for answer in answers:
            header["costs"] += [{"digest": digest, **asdict(cost)} for digest, cost in answer.costs.items()]
            header["media_opened"] += answer.media_opened
            header["crashes"] += answer.crashes
        tables = {**before, **_tables(answers, before)}
        return {"payload": pa.array([payload.encode(header, tables)], pa.large_binary())}


def stream(
    tasks: Sequence[Task], pools: Sequence[tuple[Program, StepOp | None]], limits: Limits
) -> Iterator[tuple[dict[str, Any], dict[str, pa.Table]]]:
    """Run tasks through the pools; (header, tables by ledger table name) of each as it is done, in any order.

    Raises the FoveaError that ended a worker's task, and InfrastructureError where Ray itself fails. After such an error the other workers
    stop at the end of their chunk; what they have done till then is yielded first.
    """
    flag = Path(f"{tasks[0].file}.stop")
    flag.unlink(missing_ok=True)
    data = ray.data.from_items([asdict(t) for t in tasks], override_num_blocks=min(len(tasks), 5_000))
    for program, alone in pools:
        gpus = alone.how.gpus if alone else 0.0
        size = alone.how.actors if alone and alone.how.actors else max(1, min(cluster.cpus(), len(tasks)))
        data = data.map_batches(
            GroupActor,
            fn_constructor_kwargs={
                "program": program_to_json(program),
                "limits": asdict(limits),
                "memory": alone.how.memory if alone else 0,
                "folder": os.getcwd(),
                "flag": str(flag),
            },
            batch_size=1,
            batch_format="pyarrow" if program is not pools[0][0] else "numpy",
            compute=ActorPoolStrategy(size=size),
            num_cpus=1 if len(pools) == 1 else 1 / len(pools),
            num_gpus=gpus or None,
        )
    ended: dict[str, Any] | None = None
    for batch in cluster.ours(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)):
        for value in batch.column("payload"):
            header, tables = payload.decode(value.as_buffer().to_pybytes())
            failure = header.pop("failure", None)
            yield header, tables
            if failure is not None and ended is None:
                ended = failure
                flag.touch()
    if ended is not None:
        flag.unlink()
        raise _error(ended)


def _failure(error: FoveaError) -> dict[str, Any]:
    """An error as JSON; inverse of `_error`."""
    if isinstance(error, StepBug):
        return {"type": "StepBug", "arguments": [error.step, error.uids, error.what]}
    return {"type": type(error).__name__, "arguments": [str(error)]}  # tried often enough below: not `retryable` any more


def _error(failure: Mapping[str, Any]) -> FoveaError:
    kind = getattr(errors, failure["type"], FoveaError)
    found: FoveaError = kind(*failure["arguments"])
    return found


def program_to_json(program: Program) -> str:
    return json.dumps([call.to_json() for call in program])


def program_from_json(text: str) -> Program:
    return tuple(call_from_json(value) for value in json.loads(text))


def _tables(answers: Sequence[GroupResult], before: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Answers of all units joined by ledger table; contents of the pool before stay in front."""
    found: dict[str, list[pa.Table]] = {}
    for answer in answers:
        for digest, rows in answer.rows.items():
            found.setdefault(f"step-{digest}", []).append(rows)
        for digest, rows in answer.wide.items():
            found.setdefault(f"wide-{digest}", []).append(rows)
        found.setdefault("contents", []).append(answer.contents)
        found.setdefault(ONWARD, []).append(answer.onward)
    if "contents" in before and "contents" in found:
        found["contents"].insert(0, before["contents"])
    return {name: pa.concat_tables(parts) for name, parts in found.items()}


def _split_units(rows: pa.Table) -> list[pa.Table]:
    units = rows.column("unit").to_pylist()
    borders = [i for i in range(len(units)) if i == 0 or units[i] != units[i - 1]] + [len(units)]
    return [rows.slice(a, b - a) for a, b in pairwise(borders)]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

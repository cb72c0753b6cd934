"""Fused groups on Ray Data: a stream of tasks through one actor pool for each group, answers back as payloads.

An error that ends the run travels as an answer too, not as an exception: Ray never sees it, and what was done before it is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from curation.group import GroupResult, GroupRunner
from curation.program import Program, call_from_json
from pipeline import cluster, payload
from pipeline.llm_engine import engine_cpus, engine_gpus
from pipeline.llm_pool import STAGES, engine_errors, through_engine
from pipeline.recipe import StepOp
from pipeline.sizes import pool_sizes
from pipeline.work import Task, in_engine
from shards.errors import FoveaError
from shards.media import Limits


class GroupActor:
    """Lives in a Ray actor; owns a GroupRunner, whose child process does the work. Crashes of samples stay below it."""

    def __init__(self, program: str, limits: Mapping[str, Any], memory: int, folder: str, flag: str, derived: str):
        self._stopped = Path(flag).exists
        if os.path.isdir(folder):
            os.chdir(folder)  # relative paths in a step's parameters start where the command does
        self._runner = GroupRunner(program_from_json(program), Limits(**limits), memory=memory, derived=derived)

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """One task or one payload of the pool before in, one payload out: {"payload": [bytes]}."""
        answers: list[GroupResult] = []
        header, before, units = payload.received(batch)
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
            header["failure"] = payload.failure(error)
        payload.add_answers(header, answers)
        return {"payload": pa.array([payload.encode(header, payload.joined(answers, before))], pa.large_binary())}


def stream(
    tasks: Sequence[Task], pools: Sequence[tuple[Program, StepOp | None]], limits: Limits, derived: str
) -> Iterator[tuple[dict[str, Any], dict[str, pa.Table]]]:
    """Run tasks through the pools; (header, tables by ledger table name) of each as it is done, in any order.

    derived: URL of the run's folder for the bytes of a splitter's children.
    Raises the FoveaError that ended a worker's task, and InfrastructureError where Ray itself fails. After such an error the other workers
    stop at the end of their chunk; what they have done till then is yielded first.
    """
    flag = Path(f"{tasks[0].file}.stop")
    flag.unlink(missing_ok=True)
    data = ray.data.from_items([asdict(t) for t in tasks], override_num_blocks=min(len(tasks), 5_000))
    engines = [alone for _, alone in pools if alone is not None and in_engine(alone)]
    cpus = max(1, min(cluster.cpus() - sum(engine_cpus(op.how) for op in engines), len(tasks)))
    share = 1 / (len(pools) + len(engines) * (STAGES - 1))
    actors = [alone for _, alone in pools if alone is None or not in_engine(alone)]
    sizes = iter(pool_sizes(actors, cpus, max(0.0, cluster.gpus() - sum(engine_gpus(op.how) for op in engines)), len(tasks)))
    for program, alone in pools:
        if alone is not None and in_engine(alone):
            data = through_engine(data, alone, program, limits, flag, cpus, share)
            continue
        gpus = alone.how.gpus if alone else 0.0
        data = data.map_batches(
            GroupActor,
            fn_constructor_kwargs={
                "program": program_to_json(program),
                "limits": asdict(limits),
                "memory": alone.how.memory if alone else 0,
                "folder": os.getcwd(),
                "flag": str(flag),
                "derived": derived,
            },
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=next(sizes)),
            num_cpus=share,
            num_gpus=gpus or None,
        )
    ended: dict[str, Any] | None = None
    batches = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    for batch in cluster.ours(engine_errors(batches, engines)):
        for value in batch.column("payload"):
            header, tables = payload.decode(value.as_buffer().to_pybytes())
            failure = header.pop("failure", None)
            yield header, tables
            if failure is not None and ended is None:
                ended = failure
                flag.touch()
    if ended is not None:
        flag.unlink()
        raise payload.error_of(ended)


def program_to_json(program: Program) -> str:
    return json.dumps([call.to_json() for call in program])


def program_from_json(text: str) -> Program:
    return tuple(call_from_json(value) for value in json.loads(text))

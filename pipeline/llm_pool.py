"""A caption step whose model runs in an engine of its own: the stages of ours around the `ray.data.llm` processor.

Asking actors unfold tasks into questions, a row each, so that the engine batches over many units as it likes; what else a task holds
travels beside them in one row that passes the engine untouched. One folding actor puts replies and tasks together again. Pictures live in
the rows between the two and nowhere else; Ray Data's back-pressure bounds them. Replies are cached as they come, so that a kill loses none.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayTaskError

from curation.caption_cache import open_cache
from curation.caption_reply import Reply, ReplyError
from curation.caption_vllm import PREFIX, asking, fold
from curation.group import GroupResult, GroupRunner
from curation.program import Program, StepCall, StepCost, bind, call_from_json
from curation.rows import row_schema
from pipeline import payload
from pipeline.llm_engine import ERROR, PASSES, build_engine, engines, require
from pipeline.recipe import Recipe, StepOp
from pipeline.work import in_engine
from shards.errors import FoveaError, InfrastructureError, SampleError
from shards.media import Limits

T = TypeVar("T")
_ERROR_LINE = re.compile(r"(?!.*UserCodeException)[\w.]*(?:Error|Exception|Exit)(?:: .*)?$")

# What goes into an engine: a row for each question, and one for each task with `carry` (its payload) and `count` (its questions).
QUESTIONS = pa.schema(
    [
        pa.field("task", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("pictures", pa.list_(pa.binary())),
        pa.field("carry", pa.large_binary()),
        pa.field("count", pa.int64()),
        pa.field("sent", pa.float64()),
        pa.field(ERROR, pa.string()),
    ]
)
REPLIES = ("task", "key", "text", "finish", "tokens", "carry", "count", "sent", ERROR)  # what is read of what comes out
STAGES = 6  # of ours and of the processor that take CPUs: asking, preprocess, two in front of the engine, postprocess, folding
PART = 32  # samples asked about at once: their pictures are in the actor's memory
GIVE_UP = 8  # answers that all fail: then it is not the pictures


def check(recipe: Recipe) -> None:
    """Raises RecipeError if a step of the recipe wants an engine that is not installed."""
    for op in recipe.ops:
        if isinstance(op, StepOp) and in_engine(op):
            require(f"{recipe.path}:{op.line}: step {op.name!r}")


def through_engine(data: Dataset, op: StepOp, program: Program, limits: Limits, flag: Path, cpus: int, share: float) -> Dataset:
    """`data` (tasks, or payloads of the pool before) with a caption step laid over it, which is all the program; payloads again.

    cpus, share: as many actors of a stage, with so much of a CPU each. Raises InfrastructureError for a model that is not there or no use.
    """
    (call,) = program
    shared = {"call": json.dumps(call.to_json()), "limits": asdict(limits)}
    folding = {**shared, "cache": op.how.cache, "engines": engines(op.how)}
    data = data.map_batches(
        AskingActor,
        fn_constructor_kwargs={**shared, "memory": op.how.memory, "folder": os.getcwd(), "flag": str(flag)},
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=cpus),
        num_cpus=share,
    )
    data = build_engine(op.what, op.how, cpus, share)(data)
    one = ActorPoolStrategy(size=1)  # it must see all rows of a task
    return data.map_batches(
        FoldingActor, fn_constructor_kwargs=folding, batch_size=None, batch_format="pyarrow", compute=one, num_cpus=share
    )


def engine_errors(batches: Iterable[T], ops: Sequence[StepOp]) -> Iterator[T]:
    """The batches. What is raised inside a stage of `ray.data.llm` becomes an InfrastructureError: it is no bug of ours."""
    try:
        yield from batches
    except RayTaskError as error:
        if not ops or isinstance(error.cause, FoveaError) or "ray/llm/" not in str(error):
            raise
        names = ", ".join(repr(op.name) for op in ops)
        raise InfrastructureError(f"step {names}: the engine failed: {_raised(str(error))[:300]}") from error


def _raised(trace: str) -> str:
    """The line of a trace of Ray that says what was raised first: below it are Ray's own wrappings."""
    lines = (line.strip() for line in trace.splitlines())
    found = [line for line in lines if _ERROR_LINE.match(line)]
    return found[0].removeprefix("ray.exceptions.") if found else trace.strip().splitlines()[-1]


class AskingActor:
    """Opens media, builds questions and looks replies up, in the child process of a GroupRunner."""

    def __init__(self, call: str, limits: Mapping[str, Any], memory: int, folder: str, flag: str):
        self._stopped: Callable[[], bool] = Path(flag).exists
        if os.path.isdir(folder):
            os.chdir(folder)
        self._call = _call(call)
        self._runner = GroupRunner([asking(self._call)], Limits(**limits), memory=memory)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """One task or one payload of the pool before in; rows of QUESTIONS out, the one that carries the rest last."""
        answers: list[GroupResult] = []
        header, before, units = payload.received(batch)
        asked: set[str] = set()
        try:
            for part in _parts(units):
                if "failure" in header or self._stopped():
                    break
                answer, failure = self._runner.run_kept(part, self._stopped)
                yield from _questions(header["task"], answer.onward, asked)
                answers.append(self._without_questions(answer))
                if failure is not None:
                    raise failure
        except FoveaError as error:
            header["failure"] = payload.failure(error)
        payload.add_answers(header, answers)
        carry = payload.encode(header, payload.joined(answers, before))
        row = {"task": header["task"], "carry": carry, "count": len(asked), ERROR: PASSES}
        yield pa.Table.from_pylist([row], schema=QUESTIONS)

    def _without_questions(self, answer: GroupResult) -> GroupResult:
        """Error rows as the caption step stores them; of the questions only what folding needs."""
        bound = bind(self._call)
        schema = row_schema(bound.step, bound.what, wide=False)
        asked = answer.rows[self._call.digest]
        failed = asked.filter(pc.is_valid(asked["error"]))
        columns = [failed[f.name] if f.name in failed.schema.names else pa.nulls(len(failed), f.type) for f in schema]
        answer.rows[self._call.digest] = pa.Table.from_arrays(columns, schema=schema)
        answer.wide = {}
        answer.onward = answer.onward.drop_columns([f"{PREFIX}question"])
        return answer


@dataclass(slots=True)
class Waiting:
    """A task on its way: what has come of it so far. count: its questions; None until the row that carries the rest is here."""

    replies: dict[str, Reply | SampleError] = field(default_factory=dict)
    seconds: float = 0.0
    carry: bytes = b""
    count: int | None = None


class FoldingActor:
    """Replies in, in any order; the payload of each task out, as soon as all its replies are here.

    A new one in its place knows nothing of the tasks on their way: they do not come out, their samples stay pending, and the run does them
    once more, with the replies that the cache has.
    """

    def __init__(self, call: str, limits: Mapping[str, Any], cache: str, engines: int):
        self._call = _call(call)
        self._limits = Limits(**limits)
        self._cache = open_cache(cache)
        self._engines = engines
        self._waiting: dict[int, Waiting] = {}
        self._until = 0.0
        self._good = 0
        self._failed, self._last = 0, ""
        self._full: InfrastructureError | None = None

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Rows of the engine in, as it gives them; payloads out, often none: {"payload": [bytes, …]}."""
        rows = batch.select([name for name in REPLIES if name in batch.column_names]).to_pylist()
        each = self._seconds([row["sent"] for row in rows if row["count"] is None])
        done: list[bytes] = []
        for row in rows:
            waiting = self._waiting.setdefault(row["task"], Waiting())
            if row["count"] is not None:
                waiting.carry, waiting.count = row["carry"], row["count"]
            else:
                waiting.replies[row["key"]] = self._came(row)
                waiting.seconds += each
            if waiting.count is not None and len(waiting.replies) >= waiting.count:
                del self._waiting[row["task"]]
                done.append(self._folded(waiting))
        return {"payload": pa.array(done, pa.large_binary())}

    def _came(self, row: Mapping[str, Any]) -> Reply | SampleError:
        if row.get(ERROR):
            self._failed, self._last = self._failed + 1, " ".join(row[ERROR].split())[:300]
            return ReplyError(f"failed: {self._last}")
        self._good += 1
        reply = Reply(row["text"], row["finish"], row["tokens"])
        try:
            self._cache.put(row["key"], reply)
        except InfrastructureError as error:
            self._full = error
        return reply

    def _folded(self, waiting: Waiting) -> bytes:
        header, tables = payload.decode(waiting.carry)
        work = tables.pop(payload.ONWARD, None)
        if self._failed >= GIVE_UP and not self._good:
            told = f"step {self._call.name!r}: the engine answered none of {self._failed} questions, the last with: {self._last}"
            header.setdefault("failure", payload.failure(InfrastructureError(told)))
        elif work is not None:
            folded = fold(self._call, work, waiting.replies, self._limits)
            name, digest = f"step-{self._call.digest}", self._call.digest
            tables[name] = pa.concat_tables([tables[name], folded.rows])
            tables[payload.ONWARD] = folded.onward
            cost = asdict(StepCost(self._call.name, errors=folded.errors, seconds=waiting.seconds))
            header["costs"].append({"digest": digest, "device_seconds": waiting.seconds, **cost})
        if self._full is not None:
            header.setdefault("failure", payload.failure(self._full))
        return payload.encode(header, tables)

    def _seconds(self, sent: Sequence[float]) -> float:
        """Engine seconds for each of the replies that just came: the time since those before, or since they were asked for."""
        if not sent:
            return 0.0
        now = time.time()
        begun, self._until = max(self._until, min(sent)), now
        return max(0.0, now - begun) * self._engines / len(sent)


def _parts(units: Iterable[pa.Table]) -> Iterator[pa.Table]:
    for unit in units:
        for start in range(0, len(unit), PART):
            yield unit.slice(start, PART)


def _questions(task: int, onward: pa.Table, asked: set[str]) -> Iterator[pa.Table]:
    """A table of the questions that the rows ask and that are not in `asked` yet, which takes them in; nothing if there are none."""
    rows = []
    for line in onward.select([f"{PREFIX}key", f"{PREFIX}question"]).to_pylist():
        for keys, questions in zip(line[f"{PREFIX}key"] or (), line[f"{PREFIX}question"] or (), strict=True):
            for key, question in zip(keys or (), questions or (), strict=True):
                if question is not None and key not in asked:
                    asked.add(key)
                    rows.append({"task": task, "key": key, **question, "sent": time.time(), ERROR: ""})
    if rows:
        yield pa.Table.from_pylist(rows, schema=QUESTIONS)


def _call(text: str) -> StepCall:
    call = call_from_json(json.loads(text))
    assert isinstance(call, StepCall)
    return call

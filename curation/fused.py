"""Runs the steps and rules of a fused group over one chunk of samples, inside the child process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curation.answers import bug, checked, error_of, message, stored_rows, work_values
from curation.program import BoundStep, Program, RuleCall, StepCost, bind
from curation.rows import (
    CONTENTS_SCHEMA,
    flat_table,
    is_medium_level,
    with_columns,
    work_fields,
)
from curation.rules import judge, rule_from_json
from curation.splitting import Splitting
from curation.step import Result
from curation.tries import as_infrastructure, tried
from curation.view import MediaView, Member, Room, SampleView, member_of
from shards.errors import InfrastructureError, LimitError, SampleError, SourceError
from shards.sample import content_fingerprint

UNREADABLE = "stamp:"  # content of media whose bytes cannot be read: this and their cheap stamp


@dataclass(slots=True)
class Chunk:
    """Results of one chunk; `by digest` tables have the schemas of `row_schema`. failure: what ended it; the steps before are whole."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    wide: dict[str, pa.Table] = field(default_factory=dict)
    contents: pa.Table = field(default_factory=CONTENTS_SCHEMA.empty_table)
    onward: pa.Table | None = None
    costs: dict[str, StepCost] = field(default_factory=dict)
    failure: InfrastructureError | None = None
    children: dict[str, pa.Table] = field(default_factory=dict)


class Group:
    """A program made ready: steps bound, models opened at their first use and kept."""

    def __init__(self, program: Program, room: Room) -> None:
        self.room = room
        self.calls: list[BoundStep | tuple[RuleCall, Any]] = [
            (call, rule_from_json(call.rule)) if isinstance(call, RuleCall) else bind(call) for call in program
        ]
        self.running = "none yet"
        self._functions: dict[int, Callable[[Sequence[Any]], Sequence[Result]]] = {}

    def run(self, table: pa.Table, stop: int | None = None) -> Chunk:
        """table: rows of a work table. `stop`: run only the calls before this place, but identify the media that the call there reads.

        Raises StepBug. What belongs to a sample is in the rows; an error of the infrastructure is `failure`, and nothing goes onward.
        """
        chunk = Chunk()
        members = [member_of(self.room, i, row) for i, row in enumerate(table.to_pylist())]
        contents: list[dict[str, Any]] = []
        try:
            for member in members:
                if member.content is None and member.known and member.view.media:
                    failure = self._identify(member, contents)
                    member.alive = failure is not None or member.content not in member.known
            for place, call in enumerate(self.calls[:stop]):
                self.room.step = place
                self.running = call[0].name if isinstance(call, tuple) else call.call.name
                if isinstance(call, tuple):
                    self._judge(call, table, members)
                else:
                    table = self._step(place, call, table, members, chunk, contents)
            self.room.step = -1 if stop is None else stop
            if stop is not None and isinstance(blamed := self.calls[stop], BoundStep) and "media" in blamed.call.roots:
                for member in members:
                    if member.alive and member.content is None and member.view.media:
                        self._identify(member, contents)
        except InfrastructureError as error:
            chunk.failure = error
            for member in members:
                member.alive = False
        finally:
            self.room.step = -1
            self.room.clear()
        chunk.contents = pa.Table.from_pylist(contents, schema=CONTENTS_SCHEMA)
        chunk.onward = with_content(table, contents).filter(pa.array([member.alive for member in members], pa.bool_()))
        return chunk

    def _judge(self, call: tuple[RuleCall, Any], table: pa.Table, members: Sequence[Member]) -> None:
        alive = [member for member in members if member.alive]
        if not alive:
            return
        self.room.begin(len(alive))
        _, rule = call
        flat = flat_table(table.take(pa.array([member.row for member in alive])), sorted(rule.columns))
        outcomes = judge(rule, flat)
        passed = {uid for uid, outcome in zip(outcomes["uid"].to_pylist(), outcomes["outcome"].to_pylist(), strict=True) if outcome == 0}
        for member in alive:
            member.alive = member.view.sample.uid in passed

    def _step(
        self, place: int, bound: BoundStep, table: pa.Table, members: Sequence[Member], chunk: Chunk, contents: list[dict[str, Any]]
    ) -> pa.Table:
        """One step over the chunk: its rows go to `chunk`, its columns to the table, the samples it fails leave."""
        call, started = bound.call, self.room.bytes_read
        cost = StepCost(call.name)
        for member in members:
            member.alive = member.alive and call.digest not in member.failed
        todo = [m for m in members if m.alive and m.kinds & bound.applies and call.digest not in m.have]
        errors: dict[int, str] = {}
        for member in todo:
            failure = self._identify(member, contents) if "media" in call.roots and member.content is None and member.view.media else None
            if failure is not None:
                errors[member.row] = failure
            elif "texts" in call.roots and member.too_long is not None:
                errors[member.row] = f"{LimitError.kind}: {member.too_long}"
        sound = [member for member in todo if member.row not in errors]
        if bound.call.reads:
            _show_columns(sound, table, call.reads)
        splits = bound.step.shape == "splitter"
        answers = self._split(place, bound, sound, cost, chunk, contents) if splits else self._answers(place, bound, sound, cost)
        for member in sound:
            if (failed := error_of(answers[member.row])) is not None:
                errors[member.row] = failed
        good = [member for member in sound if member.row not in errors]
        chunk.rows[call.digest] = stored_rows(bound, False, todo, answers, errors)
        if bound.has_wide:
            chunk.wide[call.digest] = stored_rows(bound, True, good, answers, errors)
        for member in todo:
            member.alive = member.row not in errors and not splits  # what was split goes on as its children
        cost.rows, cost.errors, cost.bytes_read = len(todo), len(errors), self.room.bytes_read - started
        chunk.costs[call.digest] = cost
        if splits:
            return table
        fields = work_fields(bound.step, bound.what, call.prefix)
        values = [work_values(bound, column.name, fld.type, good, answers) for column, fld in zip(bound.columns, fields, strict=True)]
        return with_columns(table, fields, [member.row for member in good], values)

    def _answers(self, place: int, bound: BoundStep, members: Sequence[Member], cost: StepCost) -> dict[int, list[Result | None]]:
        """Row -> answers, one for each medium (None where the step does not apply) or one for the sample.

        Batches are cut at fixed rows of the chunk, so that the same unit gives a model the same batches in every run.
        """
        answers: dict[int, list[Result | None]] = {}
        medium, size = bound.step.level == "medium", max(1, bound.how.batch)
        for start in sorted({member.row // size for member in members}):
            slots: list[tuple[int, int]] = []
            inputs: list[MediaView | SampleView] = []
            for member in (m for m in members if m.row // size == start):
                answers[member.row] = [None] * (len(member.view.media) if medium else 1)
                views = [v for v in member.view.media if v.ref.kind in bound.applies] if medium else [member.view]
                slots += [(member.row, view.number if isinstance(view, MediaView) else 0) for view in views]
                inputs += views
            for at in range(0, len(inputs), size):
                results = self._call(place, bound, inputs[at : at + size], cost)
                for (row, number), result in zip(slots[at : at + size], results, strict=True):
                    answers[row][number] = result
        return answers

    def _call(self, place: int, bound: BoundStep, inputs: Sequence[MediaView | SampleView], cost: StepCost) -> Sequence[Result]:
        function = self._function(place, bound)
        results = tried(lambda: self._once(function, bound, inputs, cost), self.room.pause)
        cost.calls += len(inputs)
        return checked(bound, inputs, results)

    def _function(self, place: int, bound: BoundStep) -> Callable[[Sequence[Any]], Sequence[Result]]:
        if place not in self._functions:
            self._functions[place] = tried(lambda: self._open(bound), self.room.pause)
        return self._functions[place]

    def _split(
        self, place: int, bound: BoundStep, members: Sequence[Member], cost: StepCost, chunk: Chunk, contents: list[dict[str, Any]]
    ) -> dict[int, list[Result | None]]:
        """Row -> the one answer of a splitter; the children go to `chunk`, what is known of their media to `contents`."""
        splitting = Splitting(self.room, bound, cost)
        try:
            answers: dict[int, list[Result | None]] = {m.row: [splitting.split(m, self._function(place, bound))] for m in members}
            chunk.children[bound.call.digest], known = splitting.finish()
        finally:
            splitting.close()
        contents += known
        return answers

    def _open(self, bound: BoundStep) -> Callable[[Sequence[Any]], Sequence[Result]]:
        self.room.mark(opening=True)
        assert bound.step.open is not None
        try:
            return bound.step.open(bound.what, bound.how)
        except Exception as error:
            where = f"step {bound.call.name!r} cannot start"
            found = as_infrastructure(error, where) or InfrastructureError(f"{where}: {error}\n{traceback.format_exc()}")
            raise found from error

    def _once(
        self, function: Callable[[Sequence[Any]], Sequence[Result]], bound: BoundStep, inputs: Sequence[Any], cost: StepCost
    ) -> Sequence[Result]:
        self.room.begin(len(inputs))
        begin = time.perf_counter()
        try:
            return function(inputs)
        except Exception as error:
            if (found := as_infrastructure(error, f"step {bound.call.name!r}")) is not None:
                raise found from error
            hint = " (a step returns a sample's error as its answer, it does not raise it)" if isinstance(error, SampleError) else ""
            raise bug(bound, inputs, f"raised {type(error).__name__}: {error}{hint}\n{traceback.format_exc()}") from error
        finally:
            cost.seconds += time.perf_counter() - begin
            self.room.begin(1)

    def _identify(self, member: Member, contents: list[dict[str, Any]]) -> str | None:
        """Gives a member its content fingerprint. Returns the error message when some bytes cannot be read."""
        self.room.begin(len(member.view.media), member.row)
        sums: list[str | None] = []
        failure: tuple[int, SampleError] | None = None
        for number, view in enumerate(member.view.media):
            try:
                sums.append(view.sha256())
            except (SourceError, LimitError) as error:
                sums.append(None)
                failure = failure or (number, error)
        if failure is None:
            member.content = content_fingerprint([(v.ref.kind, s) for v, s in zip(member.view.media, sums, strict=True) if s is not None])
        else:
            member.content = f"{UNREADABLE}{member.stamp}"
        contents.append({"uid": member.view.sample.uid, "stamp": member.stamp, "content": member.content, "sha256": sums})
        return None if failure is None else message(failure[1], failure[0], len(sums))


def with_content(table: pa.Table, contents: Sequence[dict[str, Any]]) -> pa.Table:
    """The work table with the content fingerprints found here filled in."""
    found = {row["uid"]: row["content"] for row in contents}
    values = [found.get(uid, known) for uid, known in zip(table["uid"].to_pylist(), table["content"].to_pylist(), strict=True)]
    return table.set_column(table.schema.get_field_index("content"), "content", pa.array(values, pa.string()))


def _show_columns(members: Sequence[Member], table: pa.Table, names: Sequence[str]) -> None:
    part = table.select(list(names)).take(pa.array([member.row for member in members], pa.int64()))
    medium = {name for name in names if is_medium_level(part.schema.field(name))}
    for member, row in zip(members, part.to_pylist(), strict=True):
        member.view.columns = row
        for number, view in enumerate(member.view.media):
            view.columns = {n: (v[number] if v is not None else None) if n in medium else v for n, v in row.items()}

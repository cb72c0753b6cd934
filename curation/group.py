"""Runs a fused group of steps and rules over one unit, in a child process: a bad sample costs one row, nobody above sees a failure.

A unit is cut into chunks, and all steps pass over one chunk before the next begins, so that pixels of one chunk only are alive. A chunk
holds as many media as the largest batch of the steps (at least 32) and at most 64 MB of encoded images (videos are read by reference),
cut by position in the unit: the same unit gives the same chunks and batches in every run. When a chunk kills its child, the sample whose
medium was in hand is tried alone, otherwise the halves are, until one sample is left; one that kills twice gets an error row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from curation.fused import UNREADABLE, Chunk
from curation.listing import CHILDREN
from curation.program import BoundStep, Program, RuleCall, StepCall, StepCost, bind, call_from_json
from curation.rows import CONTENTS_SCHEMA, fingerprint, row_schema, with_columns, work_fields
from curation.sandbox import Crash, Sandbox, child_path
from shards.errors import CrashError, InfrastructureError, StepBug
from shards.media import Limits

__all__ = ["GroupResult", "GroupRunner", "Program", "RuleCall", "StepCall", "StepCost", "call_from_json"]

log = logging.getLogger("fovea")

MEMORY = 4_000_000_000  # bytes of the child, models included, unless told
CHUNK_MEDIA = 32
CHUNK_BYTES = 64_000_000


@dataclass(slots=True)
class GroupResult:
    """What became of one unit; every table is in the order of the batch.

    rows      by step digest: uid, fp, error (NULL = ok), narrow stored columns, `_more`. Only what was computed here.
    wide      by step digest, for steps with wide columns: uid, fp, wide stored columns, `_more`. Only ok rows.
    contents  uid, stamp, content, sha256 of samples whose media were identified here; content "stamp:<stamp>" where bytes cannot be read.
    children  by step digest, for splitters: rows of `curation.listing.CHILDREN`; their contents are among `contents`.
    onward    the batch with the columns added: samples that passed every rule and erred nowhere. Input of the next group.
    costs     by step digest. media_opened: by all tries. crashes: children that died or were killed.
    """

    rows: dict[str, pa.Table]
    wide: dict[str, pa.Table]
    contents: pa.Table
    onward: pa.Table
    costs: dict[str, StepCost]
    media_opened: int
    crashes: int
    children: dict[str, pa.Table] = field(default_factory=dict)


class GroupRunner:
    """Keeps one child process for many units; it is started with the first of them, and models are loaded at their first use.

    memory       bytes of the child above which it is killed; 0 = 4 GB.
    derived      URL of the store that gets the bytes of a splitter's children.
    python_path  folders of the user's own steps; None = the parent's sys.path entries outside its installation.
    Raises RecipeError for a program that cannot be bound.
    """

    def __init__(
        self,
        program: Sequence[StepCall | RuleCall],
        limits: Limits,
        *,
        memory: int = 0,
        python_path: Sequence[str] | None = None,
        derived: str = "",
    ):
        self._program: Program = tuple(program)
        self._steps: dict[int, BoundStep] = {i: bind(call) for i, call in enumerate(self._program) if isinstance(call, StepCall)}
        self._sandbox = Sandbox(self._program, limits, memory or MEMORY, child_path(python_path), derived)
        self._chunk_media = max([CHUNK_MEDIA, *(step.how.batch for step in self._steps.values())])
        self._crashes = 0

    def __enter__(self) -> GroupRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child."""
        self._sandbox.close()

    def run(self, batch: pa.Table) -> GroupResult:
        """One unit (`curation.rows.work_schema`, ordered by ordinal) through the group.

        Raises StepBug for a bug in a step; InfrastructureError where a child cannot start, a model cannot load, or disk, network or
        memory fail.
        """
        result, failure = self.run_kept(batch)
        if failure is not None:
            raise failure
        return result

    def run_kept(
        self, batch: pa.Table, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[GroupResult, StepBug | InfrastructureError | None]:
        """As `run`, but what was done before an error comes with it. `stopped`: asked before each chunk; true ends the unit there."""
        opened, crashes = self._sandbox.opened, self._crashes
        chunks: list[Chunk] = []
        failure: StepBug | InfrastructureError | None = None
        for start, length in self._cut(batch):
            if failure is not None or stopped():
                break
            try:
                chunks += self._solve(batch.slice(start, length))
            except (StepBug, InfrastructureError) as error:
                failure = error
            else:
                failure = next((chunk.failure for chunk in chunks if chunk.failure is not None), None)
        result = self._merge(batch, chunks, in_order=crashes == self._crashes)
        result.media_opened, result.crashes = self._sandbox.opened - opened, self._crashes - crashes
        return result, failure

    def _cut(self, batch: pa.Table) -> list[tuple[int, int]]:
        """(start, length) of the chunks."""
        cuts, start, media, size = [], 0, 0, 0
        for i, refs in enumerate(batch["media"].to_pylist()):
            count = max(1, len(refs or ()))
            weight = sum(max(0, ref["length"]) for ref in refs or () if ref["kind"] != "video")
            if i > start and (media + count > self._chunk_media or size + weight > CHUNK_BYTES):
                cuts.append((start, i - start))
                start, media, size = i, 0, 0
            media, size = media + count, size + weight
        return [*cuts, (start, len(batch) - start)] if len(batch) else cuts

    def _solve(self, job: pa.Table, hint: bool = True, kills: int = 0) -> list[Chunk]:
        """Results of a job, whatever it does to its children. `hint`: believe that the sample in hand is the one to blame."""
        try:
            return [self._ask(job)]
        except Crash as error:
            crash = error
        self._crashes += 1
        log.warning("a child died (%s) with %d samples%s", self._blame(crash), len(job), self._sandbox.stderr_tail())
        if len(job) == 1:
            return [self._bury(job, crash)] if kills else self._solve(job, kills=1)
        suspect = crash.moment.sample
        if hint and 0 <= suspect < len(job):
            before = self._crashes
            alone = self._solve(job.slice(suspect, 1), kills=int(crash.moment.decoding))
            rest = pa.concat_tables([job.slice(0, suspect), job.slice(suspect + 1)])
            return alone + self._solve(rest, hint=self._crashes > before)
        middle = len(job) // 2
        return self._solve(job.slice(0, middle)) + self._solve(job.slice(middle))

    def _ask(self, job: pa.Table, stop: int | None = None) -> Chunk:
        header, tables = self._sandbox.ask({"stop": stop}, [job])
        if header["type"] == "bug":
            raise StepBug(header["step"], header["uids"], header["what"])
        if header["type"] == "infrastructure":
            raise InfrastructureError(header["message"])
        contents, onward, *stored = tables
        costs = {digest: StepCost(**cost) for digest, cost in header["costs"].items()}
        failure = InfrastructureError(*header["failure"]) if header["failure"] else None
        rows, wide, children = ({digest: stored.pop(0) for digest in header[name]} for name in ("rows", "wide", "children"))
        return Chunk(rows, wide, contents, onward, costs, failure, children)

    def _bury(self, job: pa.Table, crash: Crash) -> Chunk:
        """The results of a sample that kills its child: what the steps before the deadly one say, then the error row of that step."""
        stop, found = crash.moment.step, None
        while True:
            if stop < 0 and found is None:  # not even its bytes can be read without harm
                job, found, stop = self._unreadable(job)
            call = self._program[stop]
            if stop < 0 or isinstance(call, RuleCall):
                what = f"killed its process with this sample alone: {crash.reason}"
                raise StepBug(call.name if stop >= 0 else "none: the runner itself", job["uid"].to_pylist(), what)
            try:
                chunk = self._ask(job, stop)
                break
            except Crash as another:
                self._crashes += 1
                crash, stop = another, another.moment.step if another.moment.step < stop else -1
        if found is not None:
            chunk.contents = found
        if chunk.onward is None or not len(chunk.onward):
            return chunk
        survivor = chunk.onward.to_pylist()[0]
        step = self._steps[stop]
        error = f"{CrashError.kind}: {self._blame(crash)}"
        row = {"uid": survivor["uid"], "fp": fingerprint(step.call.roots, survivor["content"], survivor["text_fp"]), "error": error}
        chunk.rows[step.call.digest] = pa.Table.from_pylist([row], schema=row_schema(step.step, step.what, wide=False))
        chunk.costs[step.call.digest] = StepCost(step.call.name, rows=1, errors=1)
        chunk.onward = chunk.onward.slice(0, 0)
        return chunk

    def _unreadable(self, job: pa.Table) -> tuple[pa.Table, pa.Table, int]:
        """The job with a content of last resort (so that nobody reads its media again), its contents row, the step that gets the error."""
        row = job.to_pylist()[0]
        content = f"{UNREADABLE}{row['media_stamp']}"
        found = {"uid": row["uid"], "stamp": row["media_stamp"], "content": content, "sha256": [None] * len(row["media"])}
        kinds = {medium["kind"] for medium in row["media"]}
        stop = next(
            (
                place
                for place, step in self._steps.items()
                if "media" in step.call.roots and kinds & step.applies and step.call.digest not in (row["have"] or ())
            ),
            -1,
        )
        job = job.set_column(job.schema.get_field_index("content"), "content", pa.array([content], pa.string()))
        return job, pa.Table.from_pylist([found], schema=CONTENTS_SCHEMA), stop

    def _blame(self, crash: Crash) -> str:
        place = crash.moment.step
        return f"{crash.reason} in step {self._program[place].name}" if 0 <= place < len(self._program) else crash.reason

    def _merge(self, batch: pa.Table, chunks: Sequence[Chunk], in_order: bool) -> GroupResult:
        """`in_order`: the chunks lie as the batch does; otherwise rows are put back in its order."""

        def join(parts: list[pa.Table], empty: pa.Table) -> pa.Table:
            table = pa.concat_tables(parts) if parts else empty
            if in_order:
                return table
            return table.take(pc.sort_indices(pc.index_in(table["uid"], value_set=batch["uid"].combine_chunks())))

        rows, wide, costs, children = {}, {}, {}, {}
        for bound in self._steps.values():
            digest = bound.call.digest
            schema = row_schema(bound.step, bound.what, wide=False)
            rows[digest] = join([c.rows[digest] for c in chunks if digest in c.rows], schema.empty_table())
            if bound.has_wide:
                schema = row_schema(bound.step, bound.what, wide=True)
                wide[digest] = join([c.wide[digest] for c in chunks if digest in c.wide], schema.empty_table())
            if bound.step.shape == "splitter":
                children[digest] = pa.concat_tables([CHILDREN.empty_table(), *(c.children[digest] for c in chunks if digest in c.children)])
            costs[digest] = StepCost(bound.call.name)
            for chunk in chunks:
                if digest in chunk.costs:
                    costs[digest].add(chunk.costs[digest])
        contents = join([chunk.contents for chunk in chunks], CONTENTS_SCHEMA.empty_table())
        onward = join([self._complete(chunk.onward) for chunk in chunks if chunk.onward is not None], self._complete(batch.slice(0, 0)))
        return GroupResult(rows, wide, contents, onward, costs, 0, 0, children)

    def _complete(self, table: pa.Table) -> pa.Table:
        """With every column of the program, NULL where it did not come so far."""
        for bound in self._steps.values():
            fields = work_fields(bound.step, bound.what, bound.call.prefix)
            if any(field.name not in table.schema.names for field in fields):
                table = with_columns(table, fields, [], [pa.nulls(0, field.type) for field in fields])
        return table

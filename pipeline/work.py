"""The work list of a segment: a row for each sample that waits for a step, with everything its steps read, cut by units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.program import Program, RuleCall, StepCall
from curation.rows import row_schema, work_field, work_schema
from curation.rules import BASE_COLUMNS, rule_to_json
from pipeline.children import records_sql
from pipeline.ledger import name, quote
from pipeline.recipe import RuleOp, StepOp
from pipeline.segments import Segment, fingerprint_sql, step_table
from pipeline.verdicts import Judge

TASK_ROWS = 1024  # of one Ray task: one large unit, or several small ones that are still handled one by one


@dataclass(frozen=True, slots=True)
class Task:
    """Row groups first … last of a work file; a row group is one unit."""

    file: str
    first: int
    last: int
    rows: int


def program_of(segment: Segment) -> Program:
    """The segment's annotators and rules, or its splitter, as the child process runs them."""
    calls: list[StepCall | RuleCall] = []
    for _, op in segment.ops:
        if isinstance(op, RuleOp):
            calls.append(RuleCall(op.name, rule_to_json(op.rule)))
        elif op.step.shape != "global":
            calls.append(StepCall(op.name, op.op, asdict(op.what), asdict(op.how), op.digest, op.prefix, op.roots, op.reads))
    return tuple(calls)


def pools_of(segment: Segment) -> list[tuple[Program, StepOp | None]]:
    """The program cut into actor pools: neighbouring CPU steps share one, a step with its own GPU, memory or engine has its own."""
    pools: list[tuple[list[StepCall | RuleCall], StepOp | None]] = []
    ops = [op for _, op in segment.ops if isinstance(op, RuleOp) or op.step.shape != "global"]
    for op, call in zip(ops, program_of(segment), strict=True):
        alone = op if isinstance(op, StepOp) and (op.how.gpus > 0 or op.how.memory > 0 or in_engine(op)) else None
        last = pools[-1][1] if pools else None
        shares = alone is None and pools and (last is None or (isinstance(op, RuleOp) and not in_engine(last)))
        if shares:
            pools[-1][0].append(call)
        else:
            pools.append(([call], alone))
    if len(pools) > 1 and all(isinstance(call, RuleCall) for call in pools[-1][0]):
        pools.pop()  # nobody works on what these rules let through
    return [(tuple(calls), alone) for calls, alone in pools]


def in_engine(op: StepOp) -> bool:
    """Whether a step's model runs in an engine that has actors of its own (pipeline/llm_pool.py)."""
    return op.op == "caption" and op.how.backend == "vllm"


def work_sql(judge: Judge, segment: Segment) -> str:
    """The samples of a judged segment that are pending at one of its steps, in the order (source, unit, ordinal)."""
    annotators = [(i, op) for i, op in segment.ops if isinstance(op, StepOp) and op.step.shape != "global"]
    read = _read(segment)
    select, joins = judge.columns_sql(read, before=segment.ops[-1][0] + 1)
    have, failed = [], []
    for i, op in annotators:
        scan = judge.scan(step_table(op), row_schema(op.step, op.what, wide=False))
        joins.append(f"left join {scan} h{i} on h{i}.uid = b.uid and h{i}.fp = {fingerprint_sql(op.roots)}")
        have.append(f"case when h{i}.uid is not null and h{i}.error is null then {quote(op.digest)} end")
        failed.append(f"case when h{i}.error is not null then {quote(op.digest)} end")
    state = f"state{segment.number}"
    unknown = f"(select uid from {state} where status = 'pending' and content is null)"  # new or touched: the few whose history matters
    known = f"(select uid, list(content) as known from {judge.scan('contents')} semi join {unknown} using (uid) group by uid)"
    columns = [
        "b.uid", "b.source", "b.key", "b.unit", "b.ordinal", "b.kind", "r.media", "r.texts", "b.media_stamp", "b.content",
        "case when b.content is null then coalesce(k.known, []) else [] end as known", "b.text_fp",
        *(
            f"list_filter([{', '.join(cases)}]::varchar[], lambda x: x is not null) as {column}"
            for column, cases in (("have", have), ("failed", failed))
        ),
        *(f"b.{name(c)}" for c in _base(segment)), *select,
    ]  # fmt: skip
    which = ", ".join(str(i) for i, _ in annotators) or "null"
    return (
        f"select {', '.join(columns)} from {state} b join {records_sql(judge)} r on r.uid = b.uid and r.origin = b.origin "
        f"left join {known} k on k.uid = b.uid {' '.join(joins)} where b.op in ({which}) and b.status = 'pending' "
        "order by b.source, b.unit, b.ordinal, b.uid"
    )


def work_fields_of(judge: Judge, segment: Segment) -> pa.Schema:
    """Schema of the work list: the runner's base fields, base columns that rules read, then the columns that steps or rules read."""
    read = _read(segment)
    fields = [pa.field(c, BASE_COLUMNS[c].type) for c in _base(segment)]
    for op in judge.recipe.ops[: segment.ops[-1][0] + 1]:
        if isinstance(op, StepOp):
            fields += [work_field(op.step, c, op.prefix) for c in op.step.columns(op.what) if op.prefix + c.name in read]
    return work_schema(fields)


def _read(segment: Segment) -> set[str]:
    return {c for _, op in segment.ops for c in (op.rule.columns if isinstance(op, RuleOp) else op.reads)}


def _base(segment: Segment) -> list[str]:
    own = set(work_schema().names)
    return sorted(c for c in _read(segment) if c in BASE_COLUMNS and c not in own)


def write_work(judge: Judge, segment: Segment, path: Path, schema: pa.Schema) -> list[Task]:
    """Write the work list, a row group for each unit, and cut it into tasks. Batches never cross a unit."""
    tasks: list[Task] = []
    first = rows = group = 0
    with pq.ParquetWriter(path, schema, compression="lz4") as writer:
        for unit in _units(judge.connection.sql(work_sql(judge, segment)).to_arrow_reader(TASK_ROWS)):
            if rows and rows + unit.num_rows > TASK_ROWS:
                tasks.append(Task(str(path), first, group, rows))
                first, rows = group, 0
            writer.write_table(unit.select(schema.names).cast(schema), row_group_size=unit.num_rows)
            group += 1
            rows += unit.num_rows
    if rows:
        tasks.append(Task(str(path), first, group, rows))
    return tasks


def read_task(task: Task) -> Iterator[pa.Table]:
    """The units of a task, one table each."""
    with pq.ParquetFile(task.file) as file:
        for group in range(task.first, task.last):
            yield file.read_row_group(group)


def _units(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    held: pa.Table | None = None
    for batch in reader:
        table = pa.Table.from_batches([batch])
        held = table if held is None else pa.concat_tables([held, table])
        start = 0
        for at in _borders(held):
            yield held.slice(start, at - start).combine_chunks()
            start = at
        held = held.slice(start)
    if held is not None and held.num_rows:
        yield held.combine_chunks()


def _borders(rows: pa.Table) -> list[int]:
    """Row numbers at which another unit begins."""
    differs = np.zeros(max(rows.num_rows - 1, 0), dtype=bool)
    for column in ("source", "unit"):
        values = rows.column(column).combine_chunks()
        differs |= pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return (np.flatnonzero(differs) + 1).tolist()

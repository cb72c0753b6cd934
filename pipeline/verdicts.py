"""Verdicts: one SQL query for each segment of a recipe. docs/ledger.md says what each verdict means."""

from __future__ import annotations

from collections.abc import Collection

import duckdb
import pyarrow as pa

from curation.rows import row_schema
from curation.rules import BASE_COLUMNS
from pipeline.children import children_sql
from pipeline.decide import DAMAGED, decision_sql, outcome_of, reason_sql, several_sql, step_sql
from pipeline.ledger import Ledger, first, name
from pipeline.recipe import Recipe, RuleOp, StepOp
from pipeline.segments import (
    Segment,
    applies_sql,
    fingerprint_sql,
    global_schema,
    global_table,
    segments,
    step_table,
    wide_table,
    work_value,
)

# What a segment hands to the next: identity, fingerprints and the columns that rules of any segment may read.
_CARRIED = (
    *("uid", "source", "key", "unit", "ordinal", "kind", "n_media", "media_kinds", "media_bytes", "media_stamp", "content", "text_fp"),
    *("origin", "family"),
)
_NARROW_BASE = tuple(c for c, column in BASE_COLUMNS.items() if not column.wide)
_WIDE_BASE = tuple(c for c, column in BASE_COLUMNS.items() if column.wide)


class Judge:
    """Judges the samples of a ledger by a recipe, segment after segment, in temporary tables `state<k>` of a connection.

    state<k>: _CARRIED columns, the base columns of rules, then `op` (index of the deciding operator, DAMAGED, or NULL = passed this far),
    `status` ('pending', 'errored', 'rejected', 'split' or NULL), `outcome` (of a rule), `error` (of a step; of a split sample: into what).
    One row for each sample that reached segment k; the children of a splitter reach the segment after it, from `base<k>`.
    With `uid` (one, or a child's and its ancestors'), only these samples are judged, and global results are taken from the newest
    population.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, ledger: Ledger, recipe: Recipe, uid: str | Collection[str] | None = None):
        self.connection = connection
        self.ledger = ledger
        self.recipe = recipe
        self.uid = uid
        self.segments = segments(recipe)
        self.populations: dict[str, str] = {}
        self.judged = -1

    def run(self) -> None:
        """Judge all segments."""
        for segment in self.segments:
            self.judge(segment)

    def judge(self, segment: Segment) -> None:
        """Make `state<segment.number>`; all earlier segments must have been judged."""
        source = self._survivors_sql(segment.number - 1) if segment.number else self._listing_sql()
        before = self.segments[segment.number - 1].splitter if segment.number else None
        if before is not None:
            self._arrive(segment.number, before[1], source)
            source = f"base{segment.number}"
        global_step = segment.global_step
        if global_step is not None and self.uid is None:
            op = global_step[1]
            self.populations[op.digest] = self.population_digest(segment.number, op)
        query = self._segment_sql(segment, source)
        self.connection.execute(f"create or replace temp table state{segment.number} as {query}")
        self.judged = segment.number

    def _survivors_sql(self, number: int) -> str:
        """The rows of `state<number>` that passed; what of their content was found out since it was made is filled in."""
        state = f"state{number} where op is null"
        if not first(self.connection, f"select 1 from {state} and content is null limit 1"):
            return f"(select {', '.join(self._carried())} from {state})"
        values = ["coalesce(s.content, c.content) as content" if column == "content" else f"s.{column}" for column in self._carried()]
        known = f"left join {self.scan('contents')} c on c.uid = s.uid and c.stamp = s.media_stamp"
        return f"(select {', '.join(values)} from (select * from {state}) s {known})"

    def population_sql(self, number: int, op: StepOp) -> str:
        """Rows of the samples that a global step of segment `number` sees: survivors of the segment before that it applies to."""
        carried, after_splitter = ", ".join(self._carried()), self.segments[number - 1].splitter is not None
        arrived = f"base{number} where damage is null" if after_splitter else f"state{number - 1} where op is null"
        return f"(select {carried} from {arrived} and {applies_sql(op.kinds)})"

    def population_digest(self, number: int, op: StepOp) -> str:
        fp = f"coalesce({fingerprint_sql(op.roots)}, 'stamp:' || b.media_stamp)"  # nobody has read the media: their stamp stands for them
        query = f"select count(*), bit_xor(md5_number(b.uid || '|' || {fp})) from {self.population_sql(number, op)} b"
        count, xor = first(self.connection, query)
        return f"{count:x}-{(xor or 0) & ((1 << 128) - 1):032x}"

    def population_columns_sql(self, segment: Segment, op: StepOp) -> str:
        """uid, kind and the columns the global step reads, under their final names: list<T> for columns of level medium, else T."""
        select, joins = self.columns_sql(op.reads, before=segment.ops[0][0])
        population = self.population_sql(segment.number, op)
        base = [f"b.{name(c)}" for c in op.reads if c in self._carried()]
        columns = ", ".join(["b.uid", "b.kind", *base, *select])
        return f"select {columns} from {population} b {' '.join(joins)} order by b.uid"

    def columns_sql(self, wanted: Collection[str], before: int, first: bool = False) -> tuple[list[str], list[str]]:
        """(select list, joins) that give columns of the operators before number `before`, for a relation `b` with fingerprints.

        In work form (one value for each medium as a list, for columns of level "medium"), or with `first` the first medium's value.
        """
        select, joins = [], []
        for i, op in enumerate(self.recipe.ops[:before]):
            if not isinstance(op, StepOp):
                continue
            found = [(c, stored) for c, stored in zip(op.columns, op.stored, strict=True) if c.name in wanted]
            if not found:
                continue
            if op.step.shape == "global":
                joins.append(f"left join {self.global_scan(op)} s{i} on s{i}.uid = b.uid")
                select += [f"s{i}.{name(stored)} as {name(c.name)}" for c, stored in found]
                continue
            for side, wide, table in ((f"s{i}", False, step_table(op)), (f"w{i}", True, wide_table(op))):
                of_side = [(c, stored) for c, stored in found if c.wide == wide]
                if of_side:
                    scan = self.scan(table, row_schema(op.step, op.what, wide=wide))
                    joins.append(f"left join {scan} {side} on {side}.uid = b.uid and {side}.fp = {fingerprint_sql(op.roots)}")
                    values = [f"{side}.{name(stored)}" if first else work_value(op, side, stored) for _, stored in of_side]
                    select += [f"{value} as {name(c.name)}" for value, (c, _) in zip(values, of_side, strict=True)]
        return select, joins

    def verdict_sql(self) -> str:
        """(uid, verdict, step, reason, op) of every sample; all segments must have been judged."""
        parts = []
        for k in range(len(self.segments)):
            passed = " where op is not null" if k + 1 < len(self.segments) else ""
            parts.append(f"select uid, coalesce(status, 'kept') as verdict, op, outcome, error from state{k}{passed}")
        union = " union all ".join(parts)
        step, reason = step_sql(self.recipe), reason_sql(self.recipe)
        return f"(select uid, verdict, {step} as step, {reason} as reason, op::smallint as op from ({union}))"

    def _carried(self) -> list[str]:
        return list(dict.fromkeys([*_CARRIED, *_NARROW_BASE, *self._wide_base()]))

    def _wide_base(self) -> list[str]:
        read = {c for op in self.recipe.ops if isinstance(op, RuleOp) for c in op.rule.columns}
        return [c for c in _WIDE_BASE if c in read]

    def scan(self, table: str, schema: pa.Schema | None = None) -> str:
        """SQL of a ledger table's live rows; of the one sample if this judge has one."""
        return self.ledger.scan(self.connection, table, schema, self.uid)

    def _listing_sql(self) -> str:
        texts = [f"json_extract_string(r.texts, '$.{c}') as {c}" for c in self._wide_base()]
        records = f" left join {self.scan('records')} r on r.uid = l.uid" if texts else ""
        columns = ["l.*", "case when l.n_media = 0 then '-' else c.content end as content", "'' as origin", "l.uid as family", *texts]
        contents = f"left join {self.scan('contents')} c on c.uid = l.uid and c.stamp = l.media_stamp"
        return f"(select {', '.join(columns)} from {self.scan('listing')} l {contents}{records})"

    def _arrive(self, number: int, op: StepOp, survivors: str) -> None:
        """`base<number>`: who comes out of a splitter, the samples it does not apply to and the children of the others."""
        columns = [c for c in self._carried() if c not in self._wide_base()]
        children = children_sql(
            self, op, f"(select * from state{number - 1} where status = 'split')", [*columns, "damage"], self._wide_base()
        )
        query = f"select *, null::varchar as damage from {survivors} union all by name {children}"
        self.connection.execute(f"create or replace temp table base{number} as {query}")

    def _segment_sql(self, segment: Segment, source: str) -> str:
        steps = [(i, op) for i, op in segment.ops if isinstance(op, StepOp)]
        rules = [(i, op) for i, op in segment.ops if isinstance(op, RuleOp)]
        joined, columns = self._joined(segment, steps, rules, source)
        single = f"select *{''.join(', ' + outcome_of(i, op.rule) for i, op in rules)} from joined where n_media <= 1"
        ctes = [f"joined as ({joined})", f"single as ({single})"]
        if rules:
            ctes += several_sql(rules, columns)
            judged = "select * from single union all by name select * from several"
        else:
            judged = "select * from single union all select * from joined where n_media > 1"
        ctes.append(f"judged as ({judged})")
        after = self.segments[segment.number - 1].splitter if segment.number else (DAMAGED, None)
        op, status, outcome, error = decision_sql(segment, None if after is None else after[0])
        carried = ", ".join(self._carried())
        decided = f"select {carried}, {op} as op, {outcome} as outcome, {error} as error, * exclude ({carried}) from judged"
        return f"with {', '.join(ctes)} select {carried}, op, {status} as status, outcome, error from ({decided})"

    def _joined(
        self, segment: Segment, steps: list[tuple[int, StepOp]], rules: list[tuple[int, RuleOp]], source: str
    ) -> tuple[str, dict[str, tuple[int, str, bool]]]:
        """SQL of the base rows with h<i>, e<i> of each step and the columns that rules read; those columns as (op, stored, per medium)."""
        read = {c for _, op in rules for c in op.rule.columns}
        select, joins = ["b.*", "case when b.n_media = 0 then 'text' when b.n_media = 1 then b.kind end as medium_kind"], []
        columns: dict[str, tuple[int, str, bool]] = {}
        for i, op in enumerate(self.recipe.ops):
            if not isinstance(op, StepOp) or i > (segment.ops[-1][0] if segment.ops else -1):
                continue
            final = {c.name: stored for c, stored in zip(op.columns, op.stored, strict=True) if c.name in read}
            here = any(i == j for j, _ in steps)
            if not here and not final:
                continue
            medium = op.step.shape == "annotator" and op.step.level == "medium"
            if op.step.shape == "global":
                joins.append(f"left join {self.global_scan(op)} s{i} on s{i}.uid = b.uid")
                select += [f"{'true' if self._global_known(op) else 'false'} as h{i}", f"null::varchar as e{i}"]
            else:
                scan = self.scan(step_table(op), row_schema(op.step, op.what, wide=False))
                joins.append(f"left join {scan} s{i} on s{i}.uid = b.uid and s{i}.fp = {fingerprint_sql(op.roots)}")
                select += [f"s{i}.uid is not null as h{i}", f"s{i}.error as e{i}"]
                select += [f"s{i}.n as n{i}", f"s{i}.kind as k{i}"] if op.step.shape == "splitter" else []
            if medium and final:
                select.append(f"s{i}._more as more{i}")
            for column, stored in final.items():
                select.append(f"s{i}.{name(stored)} as {name(column)}")
                columns[column] = (i, stored, medium)
        return f"select {', '.join(select)} from {source} b {' '.join(joins)}", columns

    def _global_known(self, op: StepOp) -> bool:
        return self.global_name(op) is not None

    def global_scan(self, op: StepOp) -> str:
        """SQL of the step's result for this population; empty if there is none yet."""
        table = self.global_name(op)
        return self.scan(table if table is not None else global_table(op, "none"), global_schema(op))

    def global_name(self, op: StepOp) -> str | None:
        """The stored result that holds: of this population, or the newest one when a single sample is judged."""
        tables = self.ledger.log.state.tables()
        if op.digest in self.populations:
            wanted = global_table(op, self.populations[op.digest])
            known = wanted in tables or wanted in self.ledger.overlays or self.populations[op.digest].startswith("0-")
            return wanted if known else None
        found = [(max(f.path for f in files), t) for t, files in tables.items() if t.startswith(global_table(op, ""))]
        return max(found)[1] if found else None

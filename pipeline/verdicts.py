"""Verdicts: one SQL query for each segment of a recipe (a global step begins a new one). docs/ledger.md says what each verdict means."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from curation.rows import row_schema
from curation.rules import BASE_COLUMNS, Rule, combine_sql, outcome_sql, reason
from pipeline.ledger import Ledger, first, name, quote
from pipeline.recipe import Recipe, RuleOp, StepOp

DAMAGED = -1  # the op of a record its source could not read

# What a segment hands to the next: identity, fingerprints and the columns that rules of any segment may read.
_CARRIED = ("uid", "source", "key", "unit", "ordinal", "kind", "n_media", "media_kinds", "media_bytes", "media_stamp", "content", "text_fp")
_NARROW_BASE = tuple(c for c, column in BASE_COLUMNS.items() if not column.wide)
_WIDE_BASE = tuple(c for c, column in BASE_COLUMNS.items() if column.wide)


@dataclass(frozen=True, slots=True)
class Segment:
    """Operators that are judged together: (index in recipe.ops, op). The first of a later segment is its global step."""

    number: int
    ops: tuple[tuple[int, StepOp | RuleOp], ...]

    @property
    def global_step(self) -> tuple[int, StepOp] | None:
        index, op = self.ops[0] if self.ops else (0, None)
        return (index, op) if isinstance(op, StepOp) and op.step.shape == "global" else None


def segments(recipe: Recipe) -> list[Segment]:
    """The recipe's operators, cut before each global step."""
    groups: list[list[tuple[int, StepOp | RuleOp]]] = [[]]
    for index, op in enumerate(recipe.ops):
        if isinstance(op, StepOp) and op.step.shape == "global":
            groups.append([])
        groups[-1].append((index, op))
    return [Segment(i, tuple(ops)) for i, ops in enumerate(groups)]


def step_table(op: StepOp) -> str:
    return f"step-{op.digest}"


def wide_table(op: StepOp) -> str:
    return f"wide-{op.digest}"


def global_table(op: StepOp, population: str) -> str:
    return f"global-{op.digest}-{population}"


def global_schema(op: StepOp) -> pa.Schema:
    """Columns of a global step's table: uid, then its own, unprefixed."""
    return pa.schema([pa.field("uid", pa.string()), *(pa.field(c.name, c.type) for c in op.step.columns(op.what))])


def applies_sql(kinds: frozenset[str], kind: str = "kind") -> str:
    """A step applies to a sample of its kinds; a mixed sample has images and videos."""
    listed = sorted(kinds | ({"mixed"} if kinds & {"image", "video"} else set()))
    return f"{kind} in ({', '.join(map(quote, listed))})"


def fingerprint_sql(roots: Sequence[str]) -> str:
    """fp of a step's row from what it reads, transitively (docs/ledger.md)."""
    if set(roots) == {"media", "texts"}:
        return "b.content || '+' || b.text_fp"
    return {"media": "b.content", "texts": "b.text_fp"}[roots[0]] if roots else "'-'"


class Judge:
    """Judges the samples of a ledger by a recipe, segment after segment, in temporary tables `state<k>` of a connection.

    state<k>: _CARRIED columns, the base columns of rules, then `op` (index of the deciding operator, DAMAGED, or NULL = passed this far),
    `status` ('pending', 'errored', 'rejected' or NULL), `outcome` (of a rule), `error` (of a step). One row for each sample that reached
    segment k. With `uid`, only that sample is judged, and global results are taken from the newest population.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, ledger: Ledger, recipe: Recipe, uid: str | None = None):
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
        if segment.number == 0:
            source = self._listing_sql()
        else:
            source = f"(select {', '.join(self._carried())} from state{segment.number - 1} where op is null)"
        global_step = segment.global_step
        if global_step is not None and self.uid is None:
            op = global_step[1]
            self.populations[op.digest] = self.population_digest(segment.number, op)
        query = self._segment_sql(segment, source)
        self.connection.execute(f"create or replace temp table state{segment.number} as {query}")
        self.judged = segment.number

    def population_sql(self, number: int, op: StepOp) -> str:
        """Rows of the samples that a global step of segment `number` sees: survivors of the segment before that it applies to."""
        carried = ", ".join(self._carried())
        return f"(select {carried} from state{number - 1} where op is null and {applies_sql(op.kinds)})"

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
        return f"(select uid, verdict, {self._step_case()} as step, {self._reason_case()} as reason, op::smallint as op from ({union}))"

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
        columns = ["l.*", "case when l.n_media = 0 then '-' else c.content end as content", *texts]
        contents = f"left join {self.scan('contents')} c on c.uid = l.uid and c.stamp = l.media_stamp"
        return f"(select {', '.join(columns)} from {self.scan('listing')} l {contents}{records})"

    def _segment_sql(self, segment: Segment, source: str) -> str:
        steps = [(i, op) for i, op in segment.ops if isinstance(op, StepOp)]
        rules = [(i, op) for i, op in segment.ops if isinstance(op, RuleOp)]
        joined, columns = self._joined(segment, steps, rules, source)
        single = f"select *{''.join(', ' + _outcome(i, op.rule) for i, op in rules)} from joined where n_media <= 1"
        ctes = [f"joined as ({joined})", f"single as ({single})"]
        if rules:
            ctes += self._several(rules, columns)
            judged = "select * from single union all by name select * from several"
        else:
            judged = "select * from single union all select * from joined where n_media > 1"
        ctes.append(f"judged as ({judged})")
        op, status, outcome, error = self._decision(segment)
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
            if medium and final:
                select.append(f"s{i}._more as more{i}")
            for column, stored in final.items():
                select.append(f"s{i}.{name(stored)} as {name(column)}")
                columns[column] = (i, stored, medium)
        return f"select {', '.join(select)} from {source} b {' '.join(joins)}", columns

    def _several(self, rules: list[tuple[int, RuleOp]], columns: dict[str, tuple[int, str, bool]]) -> list[str]:
        """CTEs for samples of several media: rules are judged on a flat row for each medium, then combined."""
        flat = []
        for column, (i, stored, medium) in columns.items():
            value = name(column)
            flat.append(f"case when m = 0 then {value} else more{i}[m].{name(stored)} end as {value}" if medium else value)
        base = sorted({c for _, op in rules for c in op.rule.columns} - set(columns))
        rows = "select *, unnest(range(n_media::bigint)) as m from joined where n_media > 1"
        each = ", ".join(["uid", "m", "media_kinds[m + 1] as medium_kind", *map(name, base), *flat])
        outcomes = "".join(f", {outcome_sql(op.rule)} as o{i}" for i, op in rules)
        combined = "".join(f", {combine_sql(op.rule, f'o{i}', 'm')} as o{i}" for i, op in rules)
        return [
            f"flat as (select {each} from ({rows}))",
            f"combined as (select uid{combined} from (select uid, m{outcomes} from flat) group by uid)",
            "several as (select joined.*, combined.* exclude (uid) from joined join combined using (uid))",
        ]

    def _decision(self, segment: Segment) -> tuple[str, str, str, str]:
        """SQL of op, status, outcome and error: the operators in order, the first that does not let the sample pass decides."""
        first = ["when damage is not null then -1"] if segment.number == 0 else []
        errors = [f"when op = {DAMAGED} then damage"] if segment.number == 0 else []
        rejected, outcomes = [], []
        for i, op in segment.ops:
            if isinstance(op, RuleOp):
                first.append(f"when o{i} <> 0 then {i}")
                rejected.append(i)
                outcomes.append(f"when op = {i} then o{i}")
            else:
                first.append(f"when {applies_sql(op.kinds)} and (not h{i} or e{i} is not null) then {i}")
                errors.append(f"when op = {i} then e{i}")
        op_sql = f"case {' '.join(first)} end" if first else "null::int"
        rules = (
            f"when op in ({', '.join(map(str, rejected))}) then case when outcome > 0 then 'rejected' else 'errored' end"
            if rejected
            else ""
        )
        # An errored step always has a text, so a step that decides without one is a missing row.
        steps = [i for i, op in segment.ops if isinstance(op, StepOp)]
        step_status = (
            f"when op in ({', '.join(map(str, steps))}) then case when error is null then 'pending' else 'errored' end" if steps else ""
        )
        status = f"case when op is null then null when op = {DAMAGED} then 'errored' {step_status} {rules} end"
        outcome = f"case {' '.join(outcomes)} end" if outcomes else "null::smallint"
        error = f"case {' '.join(errors)} end" if errors else "null::varchar"
        return op_sql, status, outcome, error

    def _global_known(self, op: StepOp) -> bool:
        return self._global_name(op) is not None

    def global_scan(self, op: StepOp) -> str:
        """SQL of the step's result for this population; empty if there is none yet."""
        table = self._global_name(op)
        return self.scan(table if table is not None else global_table(op, "none"), global_schema(op))

    def _global_name(self, op: StepOp) -> str | None:
        """The stored result that holds: of this population, or the newest one when a single sample is judged."""
        tables = self.ledger.log.state.tables()
        if op.digest in self.populations:
            wanted = global_table(op, self.populations[op.digest])
            known = wanted in tables or wanted in self.ledger.overlays or self.populations[op.digest].startswith("0-")
            return wanted if known else None
        found = [(max(f.path for f in files), t) for t, files in tables.items() if t.startswith(global_table(op, ""))]
        return max(found)[1] if found else None

    def _step_case(self) -> str:
        cases = [f"when op = {DAMAGED} then 'source'"]
        cases += [f"when op = {i} then {quote(op.name)}" for i, op in enumerate(self.recipe.ops)]
        return f"case {' '.join(cases)} end"

    def _reason_case(self) -> str:
        cases = []
        for i, op in enumerate(self.recipe.ops):
            if isinstance(op, RuleOp):
                for k in range(1, len(op.rule.conjuncts) + 1):
                    cases.append(f"when op = {i} and outcome = {k} then {quote(reason(op.rule, k))}")
                    cases.append(f"when op = {i} and outcome = {-k} then {quote(reason(op.rule, -k))}")
        return f"case {' '.join(cases)} else error end" if cases else "error"


def work_value(op: StepOp, side: str, stored: str) -> str:
    """A stored column in work form: one value for each medium as a list at level "medium"."""
    value = f"{side}.{name(stored)}"
    if op.step.level != "medium":
        return value
    more = f"list_transform(coalesce({side}._more, []), lambda x: x.{name(stored)})"
    return f"case when {side}.uid is not null then list_concat([{value}], {more}) end"


def _outcome(index: int, rule: Rule) -> str:
    """The outcome of a rule for a sample with one medium or none, on its joined row."""
    return f"{outcome_sql(rule)} as o{index}"

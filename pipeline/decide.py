"""What decides about a sample: SQL over the joined rows of one segment. The operators in order; the first that does not let it pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curation.rules import Rule, combine_sql, outcome_sql, reason
from pipeline.ledger import name, quote
from pipeline.recipe import Recipe, RuleOp
from pipeline.segments import Segment, applies_sql

DAMAGED = -1  # the op of a record its source could not read


def decision_sql(segment: Segment, damaged: int | None) -> tuple[str, str, str, str]:
    """SQL of op, status, outcome and error over rows with h<i>, e<i> of each step and o<i> of each rule (n<i>, k<i> of a splitter).

    damaged: the op that decides about samples with `damage`: DAMAGED, or the splitter whose children arrive; None: there are none.
    """
    deciding = [] if damaged is None else [f"when damage is not null then {damaged}"]
    status = [] if damaged is None else [f"when op = {damaged} then 'errored'"]
    errors = [] if damaged is None else [f"when op = {damaged} then damage"]
    outcomes = []
    for i, op in segment.ops:
        if isinstance(op, RuleOp):
            deciding.append(f"when o{i} <> 0 then {i}")
            status.append(f"when op = {i} then case when o{i} > 0 then 'rejected' else 'errored' end")
            outcomes.append(f"when op = {i} then o{i}")
            continue
        splits = op.step.shape == "splitter"
        deciding.append(f"when {applies_sql(op.kinds)} and {'true' if splits else f'(not h{i} or e{i} is not null)'} then {i}")
        status.append(f"when op = {i} then case when not h{i} then 'pending' when e{i} is not null then 'errored' else 'split' end")
        said = f"coalesce(e{i}, n{i} || ' ' || k{i} || case when n{i} = 1 then '' else 's' end)" if splits else f"e{i}"
        errors.append(f"when op = {i} then {said}")
    op_sql = f"case {' '.join(deciding)} end" if deciding else "null::int"
    status_sql = f"case when op is null then null {' '.join(status)} end"
    outcome = f"case {' '.join(outcomes)} end" if outcomes else "null::smallint"
    return op_sql, status_sql, outcome, f"case {' '.join(errors)} end" if errors else "null::varchar"


def outcome_of(index: int, rule: Rule) -> str:
    """The outcome of a rule for a sample with one medium or none, on its joined row."""
    return f"{outcome_sql(rule)} as o{index}"


def several_sql(rules: Sequence[tuple[int, RuleOp]], columns: Mapping[str, tuple[int, str, bool]]) -> list[str]:
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


def step_sql(recipe: Recipe) -> str:
    """The name of the operator `op`."""
    cases = [f"when op = {DAMAGED} then 'source'"]
    cases += [f"when op = {i} then {quote(op.name)}" for i, op in enumerate(recipe.ops)]
    return f"case {' '.join(cases)} end"


def reason_sql(recipe: Recipe) -> str:
    """What it said, from op, outcome and error."""
    cases = []
    for i, op in enumerate(recipe.ops):
        if isinstance(op, RuleOp):
            for k in range(1, len(op.rule.conjuncts) + 1):
                cases.append(f"when op = {i} and outcome = {k} then {quote(reason(op.rule, k))}")
                cases.append(f"when op = {i} and outcome = {-k} then {quote(reason(op.rule, -k))}")
    return f"case {' '.join(cases)} else error end" if cases else "error"

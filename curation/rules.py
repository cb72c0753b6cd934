"""Rules: predicates over scores. Parsed and typed before a run, judged by DuckDB, split so that the reason is the first part that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import duckdb
import pyarrow as pa

from curation.expressions import RuleError, take_apart
from curation.functions import locked_duckdb
from curation.step import ALL_KINDS
from shards.sample import digest_of

__all__ = [
    "BASE_COLUMNS",
    "FLAT_KEYS",
    "Conjunct",
    "Rule",
    "RuleColumn",
    "RuleError",
    "combine_sql",
    "judge",
    "outcome_sql",
    "parse_rule",
    "reason",
    "rule_digest",
    "rule_from_json",
    "rule_to_json",
]

Quantifier = Literal["all", "any"]
FLAT_KEYS = ("uid", "m", "medium_kind")  # columns of a flat relation that no rule can read and no step may write


@dataclass(frozen=True, slots=True)
class RuleColumn:
    """A column a rule may read: its type as a scalar, the kinds it applies to, and whether there is one value a sample or a medium."""

    type: pa.DataType
    kinds: frozenset[str] = ALL_KINDS
    level: Literal["sample", "medium"] = "sample"
    wide: bool = False


BASE_COLUMNS: Mapping[str, RuleColumn] = {
    "source": RuleColumn(pa.string()),
    "key": RuleColumn(pa.string()),
    "kind": RuleColumn(pa.string()),
    "n_media": RuleColumn(pa.int16()),
    "media_bytes": RuleColumn(pa.int64()),
    "caption_chars": RuleColumn(pa.int32()),
    "transcription_chars": RuleColumn(pa.int32()),
    "text_chars": RuleColumn(pa.int32()),
    "turns": RuleColumn(pa.int32()),
    "caption": RuleColumn(pa.string(), wide=True),
    "transcription": RuleColumn(pa.string(), wide=True),
    "text": RuleColumn(pa.string(), wide=True),
}


@dataclass(frozen=True, slots=True)
class Conjunct:
    """text: as the user wrote it · sql: what is run · kinds: of media (or "text") it applies to · per_medium: reads a medium's column."""

    text: str
    sql: str
    columns: frozenset[str]
    kinds: frozenset[str]
    per_medium: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """A checked rule. `kinds`: what the recipe says it is `for`. `quantifier`: over the media of one sample."""

    name: str
    expression: str
    parts: tuple[Conjunct, ...]
    kinds: frozenset[str] = ALL_KINDS
    quantifier: Quantifier = "all"

    @property
    def conjuncts(self) -> tuple[str, ...]:
        return tuple(part.text for part in self.parts)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset().union(*(part.columns for part in self.parts))


def parse_rule(
    name: str,
    expression: str,
    known: Mapping[str, RuleColumn],
    kinds: frozenset[str] | None = None,
    quantifier: Quantifier = "all",
) -> Rule:
    """A rule over the columns of `known`. Raises RuleError for what is not allowed or has no meaning."""
    if quantifier not in get_args(Quantifier):
        raise RuleError(f"the quantifier is 'all' or 'any', not {quantifier!r}")
    if kinds is not None and (not kinds or kinds - ALL_KINDS):
        raise RuleError(f"a rule is for one or more of {', '.join(sorted(ALL_KINDS))}, not {', '.join(sorted(kinds)) or 'nothing'}")
    chosen = ALL_KINDS if kinds is None else kinds
    parts = []
    for piece in take_apart(expression, known):
        for column in sorted(piece.columns):
            if known[column].wide and column not in BASE_COLUMNS:
                raise RuleError(f"{column!r} is a wide column (kept beside the table of samples) and cannot be used in a rule")
        applies = chosen.intersection(*(known[column].kinds for column in piece.columns))
        if not applies:
            about = ", ".join(f"{column} ({', '.join(sorted(known[column].kinds))})" for column in sorted(piece.columns))
            raise RuleError(f"{piece.text!r} would never apply: the rule is for {', '.join(sorted(chosen))}, its columns are for {about}")
        per_medium = any(known[column].level == "medium" for column in piece.columns)
        parts.append(Conjunct(piece.text, piece.sql, piece.columns, applies, per_medium))
    _check_types(parts, known)
    return Rule(name, expression, tuple(parts), chosen, quantifier)


def _check_types(parts: list[Conjunct], known: Mapping[str, RuleColumn]) -> None:
    used = sorted(frozenset().union(*(part.columns for part in parts)))
    # One row of NULLs, not none: a literal that cannot be cast ("width > 'wide'") fails only where it is evaluated.
    typed = pa.table({"uid": pa.nulls(1, pa.string())} | {column: pa.nulls(1, known[column].type) for column in used})
    connection = locked_duckdb()
    connection.register("typed", typed)
    try:
        for part in parts:
            try:
                rows = connection.execute(f"SELECT ({part.sql}) FROM typed")  # noqa: S608
                found = str(rows.description[0][1])
                rows.fetchall()
            except (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError) as error:
                told = str(error).split("\n\nLINE ")[0].replace("\n", " ")
                raise RuleError(f"{part.text!r}: {told}") from error
            if found != "BOOLEAN":
                raise RuleError(f"{part.text!r} is {found}, not a condition: compare it with something")
    finally:
        connection.unregister("typed")


def outcome_sql(rule: Rule) -> str:
    """SMALLINT expression over a flat relation (a row for each medium, or one for a sample without; the rule's columns and medium_kind).

    0 = passes · k > 0 = conjunct k, counted from 1, is false · −k = it is NULL although it applies (a missing score, or a value that the
    expression fails on: a cast, an overflow). The first conjunct that does not pass decides. In an `any` rule a row is NULL that passes
    only because no conjunct about media applies to that medium: it is no vote.
    """
    cases = []
    for k, part in enumerate(rule.parts, 1):
        when = "" if part.kinds == ALL_KINDS else f"medium_kind IN ({_quoted(part.kinds)}) AND "
        value = f"TRY(({part.sql}))"
        cases.append(f"WHEN {when}{value} IS NULL THEN -{k} WHEN {when}NOT {value} THEN {k}")
    votes = [part.kinds for part in rule.parts if part.per_medium]
    otherwise = "0"
    if rule.quantifier == "any" and votes and frozenset().union(*votes) != ALL_KINDS:
        otherwise = f"CASE WHEN medium_kind IN ({_quoted(frozenset().union(*votes))}) THEN 0 END"
    return f"CAST(CASE {' '.join(cases)} ELSE {otherwise} END AS SMALLINT)"


def combine_sql(rule: Rule, outcome_column: str, order_column: str) -> str:
    """SMALLINT aggregate over the flat rows of one sample (GROUP BY uid): its outcome, from those of its rows.

    all: the first row (by order_column) that does not pass decides. any: 0 if a row passes; else a missing score, which might have
    passed; else the first row that failed; 0 if the rule is about none of the media.
    """
    first = f"arg_min({outcome_column}, {order_column}) FILTER (WHERE {outcome_column}"
    if rule.quantifier == "all":
        return f"CAST(coalesce({first} <> 0), 0) AS SMALLINT)"
    return f"CAST(CASE WHEN bool_or({outcome_column} = 0) THEN 0 ELSE coalesce({first} < 0), {first} > 0), 0) END AS SMALLINT)"


def judge(rule: Rule, flat: pa.Table) -> pa.Table:
    """Outcomes of samples: (uid string, outcome int16), a row for each uid, in order of uid.

    flat: uid string, m integer (place of the medium), medium_kind string ("text", "image", "video") and the rule's columns as scalars.
    """
    connection = locked_duckdb()
    connection.register("flat", flat.select([*FLAT_KEYS, *sorted(rule.columns)]))
    try:
        rows = connection.sql(
            f"SELECT uid, {combine_sql(rule, 'outcome', 'm')} AS outcome "  # noqa: S608
            f"FROM (SELECT uid, m, {outcome_sql(rule)} AS outcome FROM flat) GROUP BY uid ORDER BY uid"
        )
        table: pa.Table = rows.to_arrow_table()
    finally:
        connection.unregister("flat")
    return table.cast(pa.schema([("uid", pa.string()), ("outcome", pa.int16())]))


def reason(rule: Rule, outcome: int) -> str:
    """Why a sample did not pass, for people: "<rule>: <the conjunct as written>", or "missing score: <conjunct>". Outcome ≠ 0."""
    text = rule.parts[abs(outcome) - 1].text
    return f"{rule.name}: {text}" if outcome > 0 else f"missing score: {text}"


def rule_to_json(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "expression": rule.expression,
        "kinds": sorted(rule.kinds),
        "quantifier": rule.quantifier,
        "parts": [
            {"text": p.text, "sql": p.sql, "columns": sorted(p.columns), "kinds": sorted(p.kinds), "per_medium": p.per_medium}
            for p in rule.parts
        ],
    }


def rule_from_json(value: Mapping[str, Any]) -> Rule:
    """Inverse of `rule_to_json`. Trusts its input: a rule is checked where the recipe is read, and travels inside the program."""
    parts = tuple(
        Conjunct(p["text"], p["sql"], frozenset(p["columns"]), frozenset(p["kinds"]), bool(p["per_medium"])) for p in value["parts"]
    )
    return Rule(value["name"], value["expression"], parts, frozenset(value["kinds"]), value["quantifier"])


def rule_digest(rule: Rule) -> str:
    """Identity of all that a rule says: its verdicts and its reasons (16 hex digits)."""
    return digest_of("rule", rule_to_json(rule))


def _quoted(kinds: frozenset[str]) -> str:
    return ", ".join(f"'{kind}'" for kind in sorted(kinds))

"""An audit of deduplicate steps: who is a copy of whom and why, from a run's ledger. Reads only; docs/duplicates.md says what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.deduplicate import open_ladder
from curation.ladder_held import Held
from curation.ladder_pairs import Kept
from curation.ladder_search import Ladder
from curation.ordering import order_columns
from curation.population import OneByOne, Population
from curation.reference import PREFIX, parse_label
from pipeline import references
from pipeline.children import everybody, records_sql
from pipeline.curate import verdicts_are_current
from pipeline.fields import did_you_mean
from pipeline.globals import open_population
from pipeline.ledger import Ledger, first
from pipeline.recipe import Recipe, StepOp
from pipeline.segments import Segment, global_table
from pipeline.verdicts import Judge
from shards.errors import LedgerError, RecipeError
from shards.sample import MediaRef

MEMBERS = 8  # copies of a group that are named


@dataclass(frozen=True, slots=True)
class Member:
    """A sample of a group, or one of a pair.

    role      "sample"; "reference": of what the corpus is held against; "earlier": of the dataset version that is held against.
    of, rung, similarity: as the step wrote them (None of a sample that is no copy). verdict: "kept", …, None where it has none.
    values    what keep_best reads: column → value (of the first medium).
    media, text: what to draw; of a step that compares texts alone only these.
    """

    uid: str
    source: str
    key: str
    role: str = "sample"
    verdict: str | None = None
    of: str | None = None
    rung: str | None = None
    similarity: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    media: tuple[MediaRef, ...] = ()
    text: str = ""

    def told(self) -> dict[str, Any]:
        """For machines: without what is only drawn."""
        names = ("uid", "source", "key", "role", "verdict", "of", "rung", "similarity", "values")
        return {n: getattr(self, n) for n in names}


@dataclass(frozen=True, slots=True)
class Group:
    """The sample that stays, how many copies it stands for, the least alike of them, and why it is the one that stays."""

    keeper: Member
    size: int
    copies: tuple[Member, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Told:
    """What one deduplicate step did.

    samples: in its population; copies, groups: of two or more; by_rung: rung → copies; by_sources: (source of the copy, source of what
    stays, rung, copies), most first; sizes: (samples in a group, groups), ascending; shown: the largest groups.
    """

    step: str
    ordering: str
    samples: int
    copies: int
    groups: int
    by_rung: dict[str, int]
    by_sources: list[tuple[str, str, str, int]]
    sizes: list[tuple[int, int]]
    shown: list[Group]


@dataclass(frozen=True, slots=True)
class Opened:
    """A deduplicate step whose result is known.

    ladder, kept, held  what was compared, under which keys pairs are stored, what it was held against (curation.deduplicate).
    result: SQL of its rows (uid, of, rung, similarity, group). everybody: a view of all samples. verdicts: SQL of (uid, verdict, …).
    """

    ledger: Ledger
    recipe: Recipe
    judge: Judge
    segment: Segment
    op: StepOp
    ladder: Ladder
    kept: Kept
    held: Held
    result: str
    everybody: str
    verdicts: str

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        return self.judge.connection

    @property
    def population(self) -> Population:
        return self.ladder.population


def steps_of(recipe: Recipe, step: str | None = None) -> list[StepOp]:
    """The recipe's deduplicate steps, or the one of that name. Raises RecipeError."""
    found = [op for op in recipe.ops if isinstance(op, StepOp) and op.op == "deduplicate"]
    if not found:
        raise RecipeError(
            f"{recipe.path}: the recipe of this run has no deduplicate step, so nothing was looked at; add `- deduplicate` after probe"
        )
    if step is None:
        return found
    named = [op for op in found if op.name == step]
    if not named:
        raise RecipeError(f"{recipe.path}: no deduplicate step is named {step!r}{did_you_mean(step, [op.name for op in found])}")
    return named


@contextmanager
def opened(ledger: Ledger, recipe: Recipe, steps: Sequence[StepOp], scratch: Path) -> Iterator[Iterator[Opened]]:
    """The steps with their populations, each opened when its turn comes, over one connection.

    scratch: an empty folder for vectors. Raises LedgerError for a step without a result for the samples as they are now.
    """
    connection = ledger.connect()
    try:
        judge = Judge(connection, ledger, recipe)
        current = verdicts_are_current(ledger, recipe)
        last = max(s.number for s in judge.segments if s.global_step is not None and s.global_step[1] in steps)
        for segment in judge.segments:
            if segment.number <= last or not current:
                judge.judge(segment)
        verdicts = ledger.scan(connection, "verdicts") if current else judge.verdict_sql()
        yield (_open(judge, op, verdicts, scratch / str(number)) for number, op in enumerate(steps))
    finally:
        connection.close()


def tell(step: Opened, groups: int = 10) -> Told:
    """Counts of all groups, and the `groups` largest of them."""
    ask, result, population = step.connection.execute, step.result, step.population
    (copies, of_groups) = first(step.connection, f'select count("of"), count(distinct "of") from {result}')
    by_rung = dict(ask(f'select rung, count(*) from {result} where "of" is not null group by 1 order by 2 desc, 1').fetchall())
    source = (
        f"case when starts_with(r.\"of\", '{PREFIX}') then 'reference ' || split_part(r.\"of\"[{len(PREFIX) + 1}:], '/', 1) "
        "else coalesce(o.source, 'an earlier version') end"
    )
    by_sources = ask(
        f"select c.source, {source}, r.rung, count(*) from {result} r join {step.everybody} c on c.uid = r.uid "
        f'left join {step.everybody} o on o.uid = r."of" where r."of" is not null group by all order by 4 desc, 1, 2, 3'
    ).fetchall()
    grouped = f'(select "of", count(*) as copies from {result} where "of" is not null group by 1)'
    sizes = ask(f"select copies + 1, count(*) from {grouped} group by 1 order by 1").fetchall()
    largest = ask(f'select "of", copies from {grouped} order by 2 desc, 1 limit {int(groups)}').fetchall()
    return Told(
        step.op.name,
        step.op.what.keep_best,
        population.samples,
        int(copies),
        int(of_groups),
        {str(rung): int(n) for rung, n in by_rung.items()},
        [(str(a), str(b), str(rung), int(n)) for a, b, rung, n in by_sources],
        [(int(size), int(n)) for size, n in sizes],
        _groups(step, {str(uid): int(n) for uid, n in largest}),
    )


def members(step: Opened, uids: Sequence[str]) -> dict[str, Member]:
    """What is known of these samples, by uid; of what an earlier version kept and this run has no more, only its uid."""
    wanted = list(dict.fromkeys(uids))
    connection = step.connection
    connection.register("audit_uids", pa.table({"uid": pa.array(wanted, pa.string())}))
    among = "where uid in (select uid from audit_uids)"
    who = _by_uid(connection, f"select uid, source, key, origin from {step.everybody} {among}")
    verdicts = _by_uid(connection, f"select uid, verdict from {step.verdicts} {among}")
    said = _by_uid(connection, f'select uid, "of", rung, similarity from {step.result} {among}')
    records = _by_uid(
        connection, f"select r.* from {records_sql(step.judge)} r join {step.everybody} e on e.uid = r.uid and e.origin = r.origin "
        "where r.uid in (select uid from audit_uids)",
    )  # fmt: skip
    connection.unregister("audit_uids")
    values, fixed = _values(step, wanted)
    media = _reference_media(step, wanted)
    found = {}
    for uid in wanted:
        named = parse_label(uid)
        if named is not None:
            found[uid] = Member(uid, f"reference {named[0]}", named[1], "reference", values=values.get(uid, {}), media=media.get(uid, ()))
            continue
        listed, record, copy = who.get(uid, {}), records.get(uid, {}), said.get(uid, {})
        found[uid] = Member(
            uid,
            listed.get("source", "an earlier version"),
            listed.get("key", uid),
            "earlier" if uid in fixed or not listed else "sample",
            verdict=verdicts.get(uid, {}).get("verdict"),
            of=copy.get("of"),
            rung=copy.get("rung"),
            similarity=copy.get("similarity"),
            values=values.get(uid, {}),
            media=tuple(MediaRef.from_row(m) for m in record.get("media") or () if step.op.what.on != "texts"),
            text=_text(json.loads(record.get("texts") or "{}")),
        )
    return found


def _open(judge: Judge, op: StepOp, verdicts: str, scratch: Path) -> Opened:
    segment = next(s for s in judge.segments if s.global_step is not None and s.global_step[1] is op)
    digest = judge.populations[op.digest]
    tables = judge.ledger.log.state.tables()
    run = judge.ledger.store.url("")
    if global_table(op, digest) not in tables and not digest.startswith("0-"):
        older = any(table.startswith(global_table(op, "")) for table in tables)
        told = "it has one of other samples than there are now" if older else "it has not run yet"
        raise LedgerError(f"step {op.name} has no result in {run}: {told}. Run `fovea curate RECIPE --run {run}` to its end first")
    ladder, kept, held = open_ladder(op.what, open_population(judge, segment, op, OneByOne(), scratch))
    result = f"(select * from {judge.global_scan(op)})"
    return Opened(judge.ledger, judge.recipe, judge, segment, op, ladder, kept, held, result, everybody(judge), verdicts)


def _groups(step: Opened, largest: dict[str, int]) -> list[Group]:
    if not largest:
        return []
    step.connection.register("audit_groups", pa.table({"of": pa.array(list(largest), pa.string())}))
    shown: dict[str, list[str]] = {}
    for of, uid in step.connection.execute(
        f'select "of", uid from {step.result} where "of" in (select "of" from audit_groups) '
        f'qualify row_number() over (partition by "of" order by similarity, uid) <= {MEMBERS} order by "of", similarity, uid'
    ).fetchall():
        shown.setdefault(of, []).append(uid)
    step.connection.unregister("audit_groups")
    known = members(step, [*largest, *(uid for uids in shown.values() for uid in uids)])
    columns = order_columns(step.op.what.keep_best)
    found = []
    for of, copies in largest.items():
        named = tuple(known[uid] for uid in shown[of])
        found.append(Group(known[of], copies + 1, named, _why(step.op.what.keep_best, columns, known[of], named)))
    return found


def _why(ordering: str, columns: Sequence[str], keeper: Member, copies: Sequence[Member]) -> str:
    if keeper.role == "reference":
        return "it is of a reference: whatever is near it goes, however good it is"
    if keeper.role == "earlier":
        return "an earlier version of the dataset kept it: newcomers lose to it"
    differ = [c for c in columns if any(keeper.values.get(c) != copy.values.get(c) for copy in copies)]
    if differ:
        return f"it is the first by {ordering}"
    return f"all are equal in {ordering}; its uid is the smallest" if columns else "its uid is the smallest, for no keep_best is given"


def _reference_media(step: Opened, uids: Sequence[str]) -> dict[str, tuple[MediaRef, ...]]:
    """The media of samples of references, by their labels."""
    asked = {named: uid for uid in uids if (named := parse_label(uid)) is not None}
    table = references.kept(step.ledger, step.recipe, step.op) if asked else None
    if table is None:
        return {}
    rows = table.filter(pc.is_in(table["key"], value_set=pa.array([key for _, key in asked], pa.string()))).to_pylist()
    return {
        asked[row["name"], row["key"]]: tuple(MediaRef.from_row(m) for m in row["media"] or ())
        for row in rows
        if (row["name"], row["key"]) in asked
    }


def _values(step: Opened, uids: Sequence[str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """uid → what keep_best reads of it, and which of them stay whatever they are near to."""
    columns = order_columns(step.op.what.keep_best)
    table = step.held.table.select(list(dict.fromkeys(["uid", *columns])))
    places = np.flatnonzero(pc.is_in(table["uid"], value_set=pa.array(uids, pa.string())).to_numpy())
    rows = table.take(pa.array(places)).to_pylist()
    plain: Callable[[Any], Any] = lambda value: (value[0] if value else None) if isinstance(value, list) else value  # noqa: E731
    fixed = step.ladder.taken.fixed[places]
    values = {row["uid"]: {c: plain(row[c]) for c in columns} for row in rows}
    return values, {row["uid"] for row, stays in zip(rows, fixed, strict=True) if stays}


def _by_uid(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, dict[str, Any]]:
    return {row["uid"]: row for row in connection.sql(query).to_arrow_table().to_pylist()}


def _text(texts: dict[str, Any]) -> str:
    """The words of a sample that has no media, as they are drawn."""
    said = [f"{turn.get('from', '')}: {turn.get('value', '')}" for turn in texts.get("conversations") or () if isinstance(turn, dict)]
    return "\n".join([*(str(texts[k]) for k in ("text", "caption", "transcription") if texts.get(k)), *said])

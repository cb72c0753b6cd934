"""The children of splitters as SQL: who they are now, in which units they are worked on, what their records hold.

Rows of `children-<digest>` are keyed by the child's uid and the fingerprint of its parent's row, so those of a file that changed, or of
another What, stay as history. `origin` says which of them is meant: '' for a sample that a source lists, else `<digest>:<parent's fp>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from curation.listing import CHILDREN, LISTING
from pipeline.ledger import quote
from pipeline.recipe import StepOp
from pipeline.segments import CHILDREN_TABLES, Segment, children_table, fingerprint_sql, splitters
from shards.paths import to_text
from shards.sources.spec import UNIT_BYTES, UNIT_SAMPLES

if TYPE_CHECKING:
    from pipeline.verdicts import Judge

_HALF_SAMPLES, _HALF_BYTES = UNIT_SAMPLES // 2, UNIT_BYTES // 2
# What a child's row says of itself; unit, ordinal, content, origin and family come from where it stands.
_OWN = tuple(c for c in LISTING.names if c not in ("unit", "ordinal"))


def origin_sql(op: StepOp, fp: str) -> str:
    return f"{quote(op.digest + ':')} || {fp}"


def children_sql(judge: Judge, op: StepOp, parents: str, columns: Sequence[str], texts: Sequence[str] = ()) -> str:
    """Rows of the children of `parents` (SQL of rows with uid, source, unit, ordinal, content, text_fp, family): `columns`, which may be
    of LISTING and content, origin, family, then the named `texts` of their records.

    Units are cut from the order (parent's unit, its place there, the child's place): children of one parent stay together, those of a
    unit's parents share units of ≤ 1,024 samples and ≤ 128 MB (videos count nothing), and a parent with more than half of that has units
    of its own. So they depend on what was split alone, not on when.
    """
    wanted = {
        **{c: f"c.{c}" for c in _OWN},
        "unit": "c.child_unit",
        "ordinal": "(row_number() over (partition by c.source, c.child_unit order by c.parent_ordinal, c.parent, c.ordinal) - 1)::int",
        "content": "case when c.n_media = 0 then '-' else k.content end",
        "origin": origin_sql(op, "c.fp"),
        "family": "c.family",
    }
    select = [f"{wanted[c]} as {c}" for c in columns] + [f"json_extract_string(c.texts, '$.{c}') as {c}" for c in texts]
    scan = judge.scan(children_table(op), CHILDREN)
    weight = "case when c.kind = 'video' then 0 else c.media_bytes end"
    before = "rows between unbounded preceding and 1 preceding"
    word = quote(f"/{op.op}#")  # not its alias, which changes nothing
    return (
        f"(with kids as (select c.*, {weight} as weight, b.unit as parent_unit, b.ordinal as parent_ordinal, b.family "
        f"from {scan} c join {parents} b on b.uid = c.parent and c.fp = {fingerprint_sql(op.roots)}), "
        "sized as (select parent, any_value(source) as source, any_value(parent_unit) as parent_unit, "
        "any_value(parent_ordinal) as parent_ordinal, count(*) as n, sum(weight) as w, "
        f"n > {_HALF_SAMPLES} or w > {_HALF_BYTES} as large from kids group by parent), "
        "begun as (select parent, large, "
        f"coalesce(sum(case when large then 0 else n end) over earlier, 0) // {_HALF_SAMPLES} as by_count, "
        f"coalesce(sum(case when large then 0 else w end) over earlier, 0) // {_HALF_BYTES} as by_size from sized "
        f"window earlier as (partition by source, parent_unit order by parent_ordinal, parent {before})), "
        "inside as (select k.*, g.large, g.by_count, g.by_size, row_number() over within - 1 as place, "
        "coalesce(sum(k.weight) over (partition by k.parent order by k.ordinal rows between unbounded preceding and 1 preceding), 0) "
        "as size_before from kids k join begun g on g.parent = k.parent window within as (partition by k.parent order by k.ordinal)), "
        "c as (select *, parent_unit || case when not large then "
        f"{word} || by_count::bigint || '.' || by_size::bigint else '/' || parent || '#' || (place // {UNIT_SAMPLES})::bigint || '.' || "
        f"(size_before // {_HALF_BYTES})::bigint || case when weight > {_HALF_BYTES} then '.' || place else '' end end as child_unit "
        f"from inside) select {', '.join(select)} from c "
        f"left join {judge.scan('contents')} k on k.uid = c.uid and k.stamp = c.media_stamp)"
    )


def records_sql(judge: Judge) -> str:
    """(uid, origin, media, texts) of all samples; the paths of what lies in the run are made absolute here, so that a run may be moved."""
    root = quote(to_text(judge.ledger.store.url()).rstrip("/") + "/")
    parts = [f"select uid, '' as origin, media, texts from {judge.scan('records')}"]
    for _, op in splitters(judge.recipe):
        media = f"list_transform(media, lambda m: struct_update(m, path := {root} || m.path))"
        scan = judge.scan(children_table(op), CHILDREN)
        parts.append(f"select uid, {origin_sql(op, 'fp')} as origin, {media} as media, texts from {scan}")
    return f"({' union all '.join(parts)})"


def known_contents(judge: Judge, segment: Segment) -> set[tuple[str, str]]:
    """(uid, stamp) in `contents` of what may be made again of the samples that wait in a splitter's segment: a page that looks the same in
    the new file, or under another What. Their rows are there already, and the first one stays."""
    tables = [table for table in judge.ledger.log.state.tables() if table.startswith(CHILDREN_TABLES)]
    if segment.splitter is None or not tables:
        return set()
    made = " union all ".join(f"select uid, parent from {judge.scan(table, CHILDREN)}" for table in tables)
    return set(
        judge.connection.execute(
            f"select distinct c.uid, c.stamp from {judge.scan('contents')} c join ({made}) k on k.uid = c.uid "
            f"join state{segment.number} b on b.uid = k.parent and b.status = 'pending'"
        ).fetchall()
    )


def without(contents: pa.Table, known: set[tuple[str, str]]) -> pa.Table:
    """The rows of `contents` that are not known."""
    if not known:
        return contents
    keys = zip(contents["uid"].to_pylist(), contents["stamp"].to_pylist(), strict=True)
    return contents.filter(pa.array([key not in known for key in keys], pa.bool_()))


def everybody(judge: Judge) -> str:
    """A temporary view with LISTING, content, origin and family of every sample and of every child that a splitter made of what a sample
    is now; its name. Whether a child's parent gets as far as the splitter is for the verdicts to say."""
    columns = [*LISTING.names, "content", "origin", "family"]
    listed = ", ".join(f"l.{c}" for c in LISTING.names)
    judge.connection.execute(
        f"create or replace temp view everybody0 as select {listed}, case when l.n_media = 0 then '-' else c.content end as content, "
        f"'' as origin, l.uid as family from {judge.scan('listing')} l "
        f"left join {judge.scan('contents')} c on c.uid = l.uid and c.stamp = l.media_stamp"
    )
    view = "everybody0"
    for number, (_, op) in enumerate(splitters(judge.recipe), 1):
        children = children_sql(judge, op, view, columns)
        judge.connection.execute(f"create or replace temp view everybody{number} as select * from {view} union all by name {children}")
        view = f"everybody{number}"
    return view


def ancestors(judge: Judge, uid: str) -> list[str]:
    """The sample that a child was made of, and what that was made of, nearest first; [] for a sample that a source lists."""
    found: list[str] = []
    while True:
        queries = [
            f"select parent from {judge.ledger.scan(judge.connection, children_table(op), CHILDREN, (found or [uid])[-1])}"
            for _, op in splitters(judge.recipe)
        ]
        rows = judge.connection.execute(" union ".join(queries)).fetchall() if queries else []
        if not rows:
            return found
        found.append(str(rows[0][0]))

"""A sample's whole life: source, every score, the rule that rejected it or the duplicate that replaced it, its shard, its items."""

from __future__ import annotations

import json
from typing import Any

from curation.listing import CHILDREN, LISTING
from curation.reference import parse_label
from curation.rows import row_schema
from pipeline.children import ancestors, everybody, records_sql
from pipeline.curate import verdicts_are_current
from pipeline.dataset import dataset_url
from pipeline.ledger import Ledger, first, name, quote
from pipeline.recipe import Recipe, RuleOp, StepOp
from pipeline.segments import children_table, fingerprint_sql, global_schema, global_table, splitters, step_table
from pipeline.verdicts import Judge
from shards.errors import LedgerError
from shards.index import ITEM_FIELDS
from shards.manifest import MANIFEST, load_manifest
from shards.store import open_store

_TOLD_APART = ("uid", "source", "key", "content", "origin", "family")


def explain(ledger: Ledger, recipe: Recipe, uid: str) -> dict[str, Any]:
    """What the ledger and the dataset know of a sample. `uid` may be a unique beginning of 6 or more digits. Raises LedgerError.

    Keys: uid, source, key, verdict, step, reason, listing, media, texts, life (operators in order with what each said), placement, items,
    children (uid, key, verdict, step, reason of each, in order; [] where it was not split). A child's life begins with its parent.
    """
    connection = ledger.connect()
    try:
        uid = _find(ledger, recipe, connection, uid)
        judge = _judged(ledger, recipe, connection, uid)
        me = f"uid = {quote(uid)}"
        verdict = _one(connection, f"{judge.verdict_sql()} where {me}")
        if not verdict:
            raise LedgerError(
                f"{uid} is a child of a sample that is not split any more: `fovea explain` the sample {ancestors(judge, uid)[0]}"
            )
        listing = _one(connection, f"{everybody(judge)} where {me}")
        record = _one(connection, f"{records_sql(judge)} where {me} and origin = {quote(listing['origin'])}")
        contents = _one(connection, f"{judge.scan('contents')} where {me} and stamp = {quote(listing['media_stamp'] or '')}")
        return {
            "uid": uid,
            "source": listing["source"],
            "key": listing["key"],
            "verdict": verdict["verdict"],
            "step": verdict["step"],
            "reason": verdict["reason"],
            "listing": {k: v for k, v in listing.items() if k not in _TOLD_APART and v is not None},
            "media": [{**m, "sha256": s} for m, s in zip(record["media"], _digests(contents, record), strict=True)],
            "texts": {k: v for k, v in json.loads(record["texts"]).items() if v},
            "life": _life(judge, verdict, listing),
            "children": _children(ledger, recipe, connection, uid) if verdict["verdict"] == "split" else [],
            **_in_dataset(ledger, recipe, uid, connection),
        }
    finally:
        connection.close()


def _judged(ledger: Ledger, recipe: Recipe, connection: Any, uid: str) -> Judge:
    """A judge of this sample and of what it is made of, segments judged."""
    judge = Judge(connection, ledger, recipe, [uid, *ancestors(Judge(connection, ledger, recipe), uid)])
    if verdicts_are_current(ledger, recipe):
        judge.populations.update(ledger.log.state.verdicts["populations"])
    judge.run()
    return judge


def _children(ledger: Ledger, recipe: Recipe, connection: Any, uid: str) -> list[dict[str, Any]]:
    """The children of a split sample in order, with their verdicts."""
    view = everybody(Judge(connection, ledger, recipe))
    rows = connection.sql(f"select uid, key from {view} where parent = {quote(uid)} order by ordinal").to_arrow_table().to_pylist()
    judge = Judge(connection, ledger, recipe, [*(row["uid"] for row in rows), uid, *ancestors(Judge(connection, ledger, recipe), uid)])
    if verdicts_are_current(ledger, recipe):
        judge.populations.update(ledger.log.state.verdicts["populations"])
    judge.run()
    said = connection.sql(f"select uid, verdict, step, reason from {judge.verdict_sql()}").to_arrow_table().to_pylist()
    verdicts = {row["uid"]: row for row in said}
    return [{**row, **verdicts[row["uid"]]} for row in rows]


def _find(ledger: Ledger, recipe: Recipe, connection: Any, uid: str) -> str:
    if len(uid) < 6:
        raise LedgerError(f"{uid!r} is too short for a uid: give 6 digits or more")
    whole = len(uid) == 32
    tables = {"listing": LISTING, **{children_table(op): CHILDREN for _, op in splitters(recipe)}}
    queries = [
        f"select uid from {ledger.scan(connection, t, schema, uid if whole else None)} where starts_with(uid, {quote(uid)})"
        for t, schema in tables.items()
    ]
    found = connection.execute(f"{' union '.join(queries)} limit 3").fetchall()
    if not found:
        raise LedgerError(
            f'no sample {uid} in {ledger.store.url("")}; find uids with `fovea query RUN "select uid, source, key from samples"`'
        )
    if len(found) > 1:
        raise LedgerError(f"several samples begin with {uid}: {', '.join(u for (u,) in found)}, …; give more digits")
    return str(found[0][0])


def _life(judge: Judge, verdict: dict[str, Any], listing: dict[str, Any]) -> list[dict[str, Any]]:
    """The operators in order: what each step wrote (narrow columns), which rule rejected; operators after the deciding one saw nothing.

    Of a child: the splitter that made it, with its parent, then the operators after that.
    """
    life: list[dict[str, Any]] = []
    uid, decided = listing["uid"], verdict["op"]
    born = next((i for i, op in splitters(judge.recipe) if listing["origin"].startswith(f"{op.digest}:")), None)
    last = len(judge.segments) - 1
    states = {op_index: k for k, segment in enumerate(judge.segments) for op_index, _ in segment.ops}
    for i, op in enumerate(judge.recipe.ops):
        if decided is not None and decided >= 0 and i > decided:
            break
        if decided == -1:
            break
        if born is not None and i < born:
            continue
        if isinstance(op, StepOp) and i == born:
            parent = {"parent": listing["parent"], "parent_key": _identity(judge, listing["parent"])["key"]}
            life.append({"step": op.name, "digest": op.digest, "applies": True, "scores": parent, "parent": listing["parent"]})
            continue
        if isinstance(op, RuleOp):
            said = f"{verdict['verdict']}: {verdict['reason']}" if i == decided else "passed"
            life.append({"rule": op.name, "if": op.rule.expression, "said": said, "implied_by": op.implied_by})
            continue
        scores = _scores(judge, op, min(states.get(i, last), judge.judged), uid)
        applies = bool(_kinds(listing) & op.kinds)
        life.append({"step": op.name, "digest": op.digest, "applies": applies, "scores": scores})
        if op.op == "deduplicate" and scores is not None:
            life[-1].update(_copies(judge, op, uid, scores["of"]))
    return life


def _copies(judge: Judge, op: StepOp, uid: str, of: str | None) -> dict[str, Any]:
    """copy_of: who stands for this sample (uid, source, key), a reference or an earlier version's among them; else stands_for: how many
    copies of it there are."""
    if of is None:
        scan = judge.ledger.scan(judge.connection, judge.global_name(op) or global_table(op, "none"), global_schema(op))
        (copies,) = first(judge.connection, f'select count(*) from {scan} where "of" = {quote(uid)}')
        return {"stands_for": int(copies)} if copies else {}
    reference = parse_label(of)
    if reference is not None:
        return {"copy_of": {"uid": of, "source": f"reference {reference[0]}", "key": reference[1]}}
    return {"copy_of": {"source": "an earlier version", "key": of, **_identity(judge, of)}}


def _kinds(listing: dict[str, Any]) -> set[str]:
    """The kinds of a sample's media, or text."""
    return set(listing["media_kinds"] or [listing["kind"]])


def _identity(judge: Judge, uid: str) -> dict[str, Any]:
    tables = {"listing": LISTING, **{children_table(op): CHILDREN for _, op in splitters(judge.recipe)}}
    queries = [f"select source, key from {judge.ledger.scan(judge.connection, t, s, uid)}" for t, s in tables.items()]
    return {"uid": uid, **_one(judge.connection, f"({' union '.join(queries)})")}


def _scores(judge: Judge, op: StepOp, state: int, uid: str) -> dict[str, Any] | None:
    base = f"(select * from state{state} where uid = {quote(uid)})"
    if op.step.shape == "global":
        query = f"(select s.* exclude (uid) from {base} b join {judge.global_scan(op)} s on s.uid = b.uid)"
    else:
        scan = judge.scan(step_table(op), row_schema(op.step, op.what, wide=False))
        query = f"(select s.* exclude (uid) from {base} b join {scan} s on s.uid = b.uid and s.fp = {fingerprint_sql(op.roots)})"
    row = judge.connection.sql(f"select * from {query}").to_arrow_table().to_pylist()
    if not row:
        return None
    found = {k: v for k, v in row[0].items() if k not in ("fp", "_more") and not (k == "error" and v is None)}
    more = row[0].get("_more")
    return {**found, "further media": more} if more else found


def _in_dataset(ledger: Ledger, recipe: Recipe, uid: str, connection: Any) -> dict[str, Any]:
    placed = first(connection, f"select shard from {ledger.scan(connection, 'placements', uid=uid)}")
    store = open_store(dataset_url(ledger, recipe))
    if not placed or not store.exists(MANIFEST):
        return {"placement": None, "items": []}
    shard = next((s for s in load_manifest(store).shards if s.path == placed[0]), None)
    if shard is None:
        return {"placement": None, "items": []}
    index = store.local_path(shard.index) or store.url(shard.index)
    profiles = [f"{name(p)}: {name(p)}" for p in load_manifest(store).profiles]
    measured = f", {{{', '.join(profiles)}}} as measured" if profiles else ", null as measured"
    fixed = [f.name for f in ITEM_FIELDS if f.name in ("task", "n", "split", "offset", "bytes")]
    query = f"select {', '.join(map(name, fixed))}{measured}, media from read_parquet({quote(str(index))}) where uid = {quote(uid)}"
    rows = connection.sql(query).to_arrow_table().to_pylist()
    if not rows:
        return {"placement": None, "items": []}
    items = [{"task": r["task"], "n": r["n"], "measured": _counts(r["measured"])} for r in rows if r["task"]]
    placement = {"shard": shard.path, "split": rows[0]["split"], "offset": rows[0]["offset"], "bytes": rows[0]["bytes"]}
    written = [{"name": m["name"], "transform": m["transform"]} for m in rows[0]["media"] or [] if m["transform"]]
    return {
        "placement": {**placement, **({"transformed": written} if written else {})},
        "items": items,
    }


def _counts(measured: dict[str, Any] | None) -> dict[str, Any]:
    return {profile: {k: v for k, v in m.items() if k != "media"} for profile, m in (measured or {}).items() if m}


def _digests(contents: dict[str, Any], record: dict[str, Any]) -> list[str | None]:
    found = contents.get("sha256") or []
    return found if len(found) == len(record["media"]) else [None] * len(record["media"])


def _one(connection: Any, relation: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = connection.sql(f"select * from {relation} limit 1").to_arrow_table().to_pylist()
    return rows[0] if rows else {}

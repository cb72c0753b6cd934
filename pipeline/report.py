"""The report of a run: the funnel with reasons, what each step cost, what lies in the dataset. Markdown for people, JSON beside it."""

from __future__ import annotations

import json
from typing import Any

import duckdb

from pipeline.funnel import funnel
from pipeline.ledger import Ledger
from pipeline.query import connect
from pipeline.recipe import Recipe

ADDED = "\n<!-- what follows is not from the ledger; it stays when the report is made anew -->\n"
STAGE_HEAD = ["step", "in", "rejected", "errored", "split", "pending", "out", "calls", "seconds"]
VERDICTS = ("kept", "rejected", "errored", "split", "pending")


def report(ledger: Ledger, recipe: Recipe) -> dict[str, Any]:
    """inputs, verdicts, sources (source → verdict → count), funnel (`pipeline.funnel.Stage` in order), funnel_by_source (source → the
    same), reasons (verdict, step, reason, count), costs, dataset."""
    connection = connect(ledger, recipe)
    try:
        sources = _nested(connection, "select source, verdict, count(*) from samples group by all order by all")
        reasons = _rows(
            connection,
            "select verdict, step, case when step = 'source' then 'damaged' "
            "when verdict = 'errored' and not starts_with(reason, 'missing score') then regexp_extract(reason, '^[a-z ]+') "
            "when verdict = 'split' then regexp_replace(reason, '^[0-9]+ (.*?)s?$', '\\1s') else reason end as reason, "
            "count(*) as samples, min(uid) as example from samples where verdict <> 'kept' "
            "group by all order by verdict, samples desc, step, reason",
        )
        kept = sum(v.get("kept", 0) for v in sources.values())
        costs = _rows(connection, "select * from costs order by seconds desc, step")
        for cost in costs:
            cost["seconds_per_kept"] = cost["seconds"] / kept if kept else None
        shards = _rows(
            connection,
            "select split, count(*) as shards, sum(samples) as samples, sum(items) as items, sum(bytes) as bytes "
            "from shards group by 1 order by 1",
        )
        tasks = _rows(connection, "select task, count(*) as items from items group by 1 order by 2 desc, 1")
        stages = funnel(connection, ledger, recipe)
    finally:
        connection.close()
    verdicts = {v: sum(s.get(v, 0) for s in sources.values()) for v in VERDICTS}
    return {
        "name": recipe.name,
        "inputs": sum(verdicts.values()),
        "verdicts": verdicts,
        "sources": sources,
        "funnel": stages.pop(""),
        "funnel_by_source": stages,
        "reasons": reasons,
        "costs": costs,
        "dataset": {"splits": shards, "tasks": tasks},
    }


def write_report(ledger: Ledger, found: dict[str, Any]) -> None:
    """report.json and report.md in the run directory. What somebody added to report.md below the line ADDED stays."""
    old = ledger.store.read("report.md").decode() if ledger.store.exists("report.md") else ""
    _, line, added = old.partition(ADDED)
    ledger.store.put_replace("report.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    ledger.store.put_replace("report.md", (to_markdown(found) + line + added).encode())


def to_markdown(found: dict[str, Any]) -> str:
    verdicts = found["verdicts"]
    lines = [f"# {found['name']}", "", " + ".join(f"{verdicts[v]:,} {v}" for v in VERDICTS) + f" = {found['inputs']:,} inputs", ""]
    lines += _table(["source", *VERDICTS], [[s, *(v.get(k, 0) for k in VERDICTS)] for s, v in sorted(found["sources"].items())])
    lines += ["", "## The funnel", "", *_table(STAGE_HEAD, [stage_row(stage) for stage in found["funnel"]])]
    lines += ["", "## The funnel of each source", ""]
    by_source = sorted(found["funnel_by_source"].items())
    lines += _table(["source", *STAGE_HEAD], [[s, *stage_row(stage)] for s, stages in by_source for stage in stages if stage["entered"]])
    lines += ["", "A source's seconds are the step's, in proportion to the calls of its samples: they are not measured apart.", ""]
    lines += ["## Why samples are out", ""]
    rows = [[r["verdict"], r["step"], r["reason"], r["samples"], f"`{r['example'][:12]}`"] for r in found["reasons"]]
    lines += _table(["verdict", "step", "reason", "samples", "example"], rows) if rows else ["Every sample was kept."]
    lines += ["", "## What it cost", ""]
    rows = [
        [c["step"], c["calls"], c["errors"], f"{c['seconds']:.1f}", _per_kept(c), f"{c['bytes_read'] / 1e6:.1f}"] for c in found["costs"]
    ]
    lines += _table(["step", "calls", "errors", "seconds", "ms per kept sample", "MB read"], rows)
    lines += ["", "Seconds are wall time in the step, summed over workers and over all runs in this directory.", "", "## The dataset", ""]
    dataset = found["dataset"]
    rows = [[s["split"], s["shards"], s["samples"], s["items"], f"{s['bytes'] / 1e6:.1f}"] for s in dataset["splits"]]
    lines += _table(["split", "shards", "samples", "items", "MB"], rows) if rows else ["None was written yet."]
    if dataset["tasks"]:
        lines += ["", *_table(["task", "items"], [[t["task"], t["items"]] for t in dataset["tasks"]])]
    return "\n".join(lines) + "\n"


def stage_row(stage: dict[str, Any]) -> list[Any]:
    """A stage of the funnel under STAGE_HEAD."""
    counts = [stage[k] for k in ("entered", "rejected", "errored", "split", "pending", "out", "calls")]
    return [stage["step"], *counts, None if stage["seconds"] is None else f"{stage['seconds']:.1f}"]


def _per_kept(cost: dict[str, Any]) -> str:
    return "" if cost["seconds_per_kept"] is None else f"{1000 * cost['seconds_per_kept']:.1f}"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    def cell(value: Any) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|").replace("\n", " ")

    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]


def _nested(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for source, verdict, count in connection.execute(query).fetchall():
        found.setdefault(source, {})[verdict] = count
    return found


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    cursor = connection.execute(query)
    names = [d[0] for d in cursor.description]
    return [
        {k: int(v) if k in ("samples", "items", "bytes", "shards") else v for k, v in zip(names, row, strict=True)}
        for row in cursor.fetchall()
    ]

"""SQL over a run: views `samples`, `items`, `shards`, `costs` in a DuckDB connection. Reads only."""

from __future__ import annotations

from dataclasses import asdict

import duckdb
import pyarrow as pa

from pipeline.children import everybody
from pipeline.curate import verdicts_are_current
from pipeline.dataset import dataset_url
from pipeline.ledger import LISTING, Ledger, name
from pipeline.recipe import Recipe
from pipeline.verdicts import Judge
from shards.manifest import MANIFEST, ShardInfo, load_manifest
from shards.store import open_store

_COSTS = pa.schema(
    [
        ("step", pa.string()),
        ("digest", pa.string()),
        ("calls", pa.int64()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("seconds", pa.float64()),
        ("device_seconds", pa.float64()),
        ("bytes_read", pa.int64()),
    ]
)


def connect(ledger: Ledger, recipe: Recipe) -> duckdb.DuckDBPyConnection:
    """A connection with the four views; `samples` has every sample with its verdict as of now, then every narrow score's first value."""
    connection = ledger.connect()
    judge = Judge(connection, ledger, recipe)
    if verdicts_are_current(ledger, recipe):
        judge.populations.update(ledger.log.state.verdicts["populations"])
        verdicts = ledger.scan(connection, "verdicts")
    else:
        judge.run()
        connection.execute(f"create temp table verdicts_now as select * from {judge.verdict_sql()}")
        verdicts = "verdicts_now"
    connection.execute(f"create view samples as {samples_sql(judge, verdicts)}")
    _dataset_views(connection, ledger, recipe)
    costs = [{"step": c.name, **{k: v for k, v in asdict(c).items() if k != "name"}} for c in ledger.log.state.costs.values()]
    connection.register("costs_rows", pa.Table.from_pylist(costs, _COSTS))
    connection.execute("create view costs as select * from costs_rows")
    return connection


def samples_sql(judge: Judge, verdicts: str) -> str:
    """uid, source, key, verdict, step, reason, the rest of the listing (of a child: `parent`), then the narrow scores by final name."""
    narrow = [c.name for op in judge.recipe.ops if hasattr(op, "columns") for c in op.columns if not c.wide]
    select, joins = judge.columns_sql(narrow, before=len(judge.recipe.ops), first=True)
    front = ("uid", "source", "key")
    rest = [c for c in LISTING.names if c not in (*front, "damage") and c not in narrow]
    columns = [f"b.{c}" for c in front] + ["v.verdict", "v.step", "v.reason"] + [f"b.{name(c)}" for c in rest] + select
    judged = f"{everybody(judge)} b left join {verdicts} v on v.uid = b.uid {' '.join(joins)}"
    return f"select {', '.join(columns)} from {judged} where b.origin = '' or v.uid is not null"


def _dataset_views(connection: duckdb.DuckDBPyConnection, ledger: Ledger, recipe: Recipe) -> None:
    store = open_store(dataset_url(ledger, recipe))
    fields = {"int": "bigint", "str": "varchar"}
    shards = load_manifest(store).shards if store.exists(MANIFEST) else ()
    if not shards:
        columns = ", ".join(f"null::{fields[str(t)]} as {name(n)}" for n, t in ShardInfo.__annotations__.items())
        connection.execute(f"create view shards as select {columns} where false")
        connection.execute("create view items as select null::varchar as uid, null::varchar as task, null::int as n where false")
        return
    connection.register("shard_rows", pa.Table.from_pylist([asdict(s) for s in shards]))
    connection.execute("create view shards as select * from shard_rows")
    paths = [store.local_path(s.index) or store.url(s.index) for s in shards]
    listed = ", ".join("'" + str(p).replace("'", "''") + "'" for p in paths)
    connection.execute(f"create view items as select * from read_parquet([{listed}], union_by_name=true) where task <> ''")

"""Old tars in a new version: those that still hold kept samples as they are stay, with a new index where something else changed."""

from __future__ import annotations

import pyarrow as pa

from pipeline.layout import Layout
from pipeline.ledger import first, name, quote
from pipeline.verdicts import Judge
from shards.index import ITEM_FIELDS, MEASURE_TYPE
from shards.manifest import Manifest, ShardInfo, version_folder
from shards.publish import publish_index
from shards.reader import read_index
from shards.store import Store
from shards.twin import decode_index


def reuse(judge: Judge, layout: Layout, store: Store, old: Manifest, version: str) -> list[tuple[ShardInfo, bool]]:
    """(entry, whether its index is new) of the old tars that still hold kept samples as they are; those samples leave `kept_new`."""
    con = judge.connection
    con.register("old_shards", pa.table({"shard": pa.array([shard.path for shard in old.shards], pa.string())}))
    con.execute(  # placements are committed before the manifest: after a kill between them they name shards that no manifest does
        "create or replace temp table placed as select k.uid, p.shard from kept k "
        f"join {judge.scan('placements')} p on p.uid = k.uid and p.sample = k.sample semi join old_shards o on o.shard = p.shard"
    )
    found: list[tuple[ShardInfo, bool]] = []
    for shard in old.shards:
        con.execute(f"create or replace temp table here as select uid from placed where shard = {quote(shard.path)}")
        count = first(con, "select count(*) from here")[0]
        if count == 0:
            continue
        index = decode_index(read_index(store, shard), shard.index)
        table = _reindexed(judge, layout, index)
        if table.equals(index):
            found.append((shard, False))
        else:
            found.append((publish_index(store, version_folder(version), shard, table), True))
    con.execute("create or replace temp table kept_new as select * from kept anti join placed using (uid)")
    return found


def _reindexed(judge: Judge, layout: Layout, index: pa.Table) -> pa.Table:
    """The index of an old tar as it is now: rows of samples that stay (temp table `here`), with today's scores and measures."""
    con = judge.connection
    fixed = index.select([f.name for f in ITEM_FIELDS]).append_column("_row", pa.array(range(index.num_rows), pa.int64()))
    con.register("old_index", fixed)
    select, joins = judge.columns_sql([c for _, _, c in layout.scores], before=len(judge.recipe.ops), first=True)
    values = ", ".join(["b.uid", *select])
    con.execute(
        f"create or replace temp table now_scores as select {values} "
        f"from (select k.* from kept k semi join here using (uid)) b {' '.join(joins)}"
    )
    parts = [f"i.{name(f.name)}" for f in ITEM_FIELDS]
    parts += [f"s.{name(c)} as {name(n)}" for n, _, c in layout.scores]
    measured_joins = []
    for k, (op, profile) in enumerate(layout.measures):
        column = next(c.name for c in op.columns if c.wide)
        chosen, joined = judge.columns_sql([column], before=len(judge.recipe.ops))
        con.execute(
            f"create or replace temp table now_measure{k} as select b.uid, {', '.join(chosen)} "
            f"from (select k.* from kept k semi join here using (uid)) b {' '.join(joined)}"
        )
        place = "case when i.n >= 0 then row_number() over (partition by i.uid order by i._row) end"
        parts.append(f"m{k}.{name(column)}[{place}] as {name(profile.name)}")
        measured_joins.append(f"left join now_measure{k} m{k} on m{k}.uid = i.uid")
    query = f"select {', '.join(parts)} from old_index i join now_scores s on s.uid = i.uid {' '.join(measured_joins)} order by i._row"
    table = con.sql(query).to_arrow_table()
    con.unregister("old_index")
    return _to_schema(table, layout.schema)


def _to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns rebuilt under the index's exact types (DuckDB gives equal values under nullable ones)."""
    columns = []
    for field in schema:
        values = table.column(field.name).to_pylist()
        if field.type == MEASURE_TYPE:
            keys = [f.name for f in MEASURE_TYPE]
            values = [None if v is None else {k: v[k] for k in keys} for v in values]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema.remove_metadata())

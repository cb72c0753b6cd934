"""What the sources hold now: containers listed, changed ones scanned on Ray, the listing brought up to date in one commit."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import duckdb
import pyarrow as pa
import ray

from curation.listing import listing_row
from pipeline import cluster
from pipeline.ledger import CONTAINERS, LISTING, RECORDS, Ledger, first, name, quote
from shards.sample import MediaKind, digest_of
from shards.sources import FORMATS, Container, SourceSpec, list_containers, scan

log = logging.getLogger("fovea")

SCANNED = pa.schema([*LISTING, *[f for f in RECORDS if f.name != "uid"]])
ROWS_PER_TABLE = 20_000
_FRESH = "c.is_new or c.is_changed or c.is_moved"
_STALE = "select uid from compared where is_changed or is_moved or is_gone"
IN_FLIGHT = 32  # containers scanned at once; each runs at most 4 tables ahead


@dataclass(frozen=True, slots=True)
class Changes:
    """Samples of all sources: new, changed (stamp, texts or damage), gone since the last look, in all; moved: only lie elsewhere now."""

    new: int
    changed: int
    gone: int
    total: int
    moved: int = 0


def update_listing(ledger: Ledger, sources: Sequence[SourceSpec]) -> Changes:
    """Bring `listing`, `records` and `containers` up to date. Opens no media. One commit, or none if nothing changed."""
    connection = ledger.connect()
    try:
        return _update(connection, ledger, sources)
    finally:
        connection.close()


def compare(connection: duckdb.DuckDBPyConnection, ledger: Ledger, sources: Sequence[SourceSpec]) -> tuple[Changes, list[dict[str, str]]]:
    """Look at the sources; nothing is written. Leaves temp tables `scanned` (rows of SCANNED from containers that may have changed) and
    `compared` (uid, is_new, is_changed, is_moved, is_gone). Second: the containers there are now."""
    stamps = dict(connection.execute(f"select source || '\n' || name, stamp from {ledger.scan(connection, 'containers')}").fetchall())
    seen: list[dict[str, str]] = []
    unchanged: list[dict[str, str]] = []
    changed: list[tuple[SourceSpec, Container]] = []
    for spec in sources:
        containers = list(list_containers(spec))
        told = _told(spec, containers)
        for container in containers:
            row = {"source": spec.name, "name": container.name, "stamp": digest_of(container.stamp, container.path, told)}
            seen.append(row)
            if not container.external and stamps.get(f"{spec.name}\n{container.name}") == row["stamp"]:
                unchanged.append(row)
            else:
                changed.append((spec, container))
    connection.register("seen_rows", pa.Table.from_pylist(unchanged, CONTAINERS))
    schema = ", ".join(f'"{f.name}" {t}' for f, t in _duckdb_types(connection))
    connection.execute(f"create temp table scanned ({schema})")
    for table in scan_all(changed):
        connection.register("part", table)
        connection.execute("insert into scanned select * from part")
    return _compare(connection, ledger), seen


def _told(spec: SourceSpec, containers: Sequence[Container]) -> str:
    """What decides, besides a container's own bytes, which samples it gives: how the recipe reads it, and for records, whose ids are the
    source's and not the file's, what lies beside it. And the kinds of media, so that one learnt later is looked for in old places."""
    beside = [[c.name, c.stamp] for c in containers] if FORMATS[spec.format].records else []
    return digest_of([dict(spec.fields), spec.where, spec.explode, dict(spec.options), get_args(MediaKind)], beside)


def overlay(connection: duckdb.DuckDBPyConnection, ledger: Ledger, sources: Sequence[SourceSpec]) -> Changes:
    """As if the sources had been listed and committed, in this connection alone: for `fovea plan`."""
    changes, _ = compare(connection, ledger, sources)
    connection.execute(f"create temp table fresh as select s.* from scanned s join compared c using (uid) where {_FRESH}")
    for table, schema in (("listing", LISTING), ("records", RECORDS)):
        columns = ", ".join(map(name, schema.names))
        old = f"select {columns} from {ledger.scan(connection, table)} anti join ({_STALE}) using (uid)"
        connection.execute(f"create temp table now_{table} as {old} union all select {columns} from fresh")
        ledger.overlays[table] = f"(select * from now_{table})"
    return changes


def _compare(connection: duckdb.DuckDBPyConnection, ledger: Ledger) -> Changes:
    doubles = connection.execute("select uid, any_value(source), any_value(key) from scanned group by uid having count(*) > 1").fetchall()
    if doubles:
        uid, source, key = doubles[0]
        log.warning(
            "%d keys are listed twice; the first in order stays (for example %s of source %s, uid %s)", len(doubles), key, source, uid
        )
        connection.execute(
            "create or replace temp table scanned as select * from scanned "
            "qualify row_number() over (partition by uid order by unit, ordinal) = 1"
        )
    listing, records = ledger.scan(connection, "listing"), ledger.scan(connection, "records")
    container = "regexp_replace(o.unit, '#[0-9]+$', '')"
    connection.execute(
        "create temp table compared as select coalesce(n.uid, o.uid) as uid, o.uid is null as is_new, "
        "n.uid is null and u.name is null as is_gone, "
        "n.uid is not null and o.uid is not null and (n.media_stamp is distinct from o.media_stamp or n.text_fp is distinct from o.text_fp "
        "or n.damage is distinct from o.damage or n.kind is distinct from o.kind) as is_changed, "
        "coalesce(p.uid is not null and not is_changed, false) as is_moved "
        f"from scanned n full join {listing} o on n.uid = o.uid left join seen_rows u on u.source = o.source and u.name = {container} "
        f"left join (select r.uid from scanned m join {records} r using (uid) join {listing} w using (uid) "
        "where m.media is distinct from r.media or m.unit is distinct from w.unit) p on p.uid = n.uid"
    )
    lost = (
        f"select o.source, count(*) from compared c join {listing} o using (uid) where c.is_gone "
        "and o.source not in (select source from seen_rows union all select source from scanned) group by o.source order by o.source"
    )
    for source, had in connection.execute(lost).fetchall():
        log.warning("source %s gives no samples any more: the %d it gave leave this run; is its path right and mounted?", source, had)
    new, changed, gone, total, moved = first(
        connection,
        "select count(*) filter (is_new), count(*) filter (is_changed), count(*) filter (is_gone), count(*) filter (not is_gone), "
        "count(*) filter (is_moved) from compared",
    )
    return Changes(new, changed, gone, total, moved)


def _update(connection: duckdb.DuckDBPyConnection, ledger: Ledger, sources: Sequence[SourceSpec]) -> Changes:
    """Append the new rows, replace the files that hold changed or gone ones."""
    changes, seen = compare(connection, ledger, sources)
    known = connection.execute(f"select source, name, stamp from {ledger.scan(connection, 'containers')}").fetchall()
    if sorted(known) == sorted((c["source"], c["name"], c["stamp"]) for c in seen) and not any(
        (changes.new, changes.changed, changes.moved, changes.gone)
    ):
        return changes
    remove, files = [], []
    if changes.changed or changes.moved or changes.gone:
        for table in ("listing", "records"):
            stale = _files_with(connection, ledger, table, _STALE)
            for i, path in enumerate(stale):
                kept = connection.sql(
                    f"select * from read_parquet({quote(ledger.readable(path))}) anti join ({_STALE}) using (uid)"
                ).to_arrow_table()
                if kept.num_rows:
                    files.append(ledger.write(table, kept, f"k{i}"))
                remove.append(path)
    fresh = connection.sql(f"select s.* from scanned s join compared c using (uid) where {_FRESH} order by uid")
    for i, rows in enumerate(_tables(fresh.to_arrow_reader(ROWS_PER_TABLE), 1_000_000)):
        files.append(ledger.write("listing", rows.select(LISTING.names).cast(LISTING), f"n{i}"))
        files.append(ledger.write("records", rows.select(RECORDS.names).cast(RECORDS), f"n{i}"))
    remove += [f.path for f in ledger.files("containers")]
    ledger.commit("scan", {"containers": pa.Table.from_pylist(seen, CONTAINERS)}, files=files, remove=remove, note=asdict(changes))
    return changes


def scan_all(changed: list[tuple[SourceSpec, Container]]) -> Iterator[pa.Table]:
    """Tables of SCANNED: on Ray where there are several containers, bounded in flight; here where there is one."""
    if len(changed) <= 2 or not ray.is_initialized():
        for spec, container in changed:
            yield from scan_tables(spec, container)
        return
    task = ray.remote(num_returns="streaming", max_retries=3, _generator_backpressure_num_objects=4)(scan_tables)
    running: deque[ray.ObjectRefGenerator] = deque()
    for spec, container in changed:
        running.append(task.remote(spec, container))
        if len(running) == IN_FLIGHT:
            yield from map(cluster.get, cluster.ours(running.popleft()))
    while running:
        yield from map(cluster.get, cluster.ours(running.popleft()))


def scan_tables(spec: SourceSpec, container: Container) -> Iterator[pa.Table]:
    """The samples of one container as tables of SCANNED."""
    rows: list[dict[str, object]] = []
    for sample in scan(spec, container):
        rows.append(listing_row(sample))
        if len(rows) == ROWS_PER_TABLE:
            yield pa.Table.from_pylist(rows, SCANNED)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, SCANNED)


def _files_with(connection: duckdb.DuckDBPyConnection, ledger: Ledger, table: str, uids: str) -> list[str]:
    """Paths of the live files of a table that hold any of the uids."""
    found = []
    for file in ledger.files(table):
        query = f"select 1 from read_parquet({quote(ledger.readable(file.path))}) where uid in ({uids}) limit 1"
        if first(connection, query):
            found.append(file.path)
    return found


def _duckdb_types(connection: duckdb.DuckDBPyConnection) -> Iterable[tuple[pa.Field, str]]:
    connection.register("typed", SCANNED.empty_table())
    types = [row[1] for row in connection.execute("describe select * from typed").fetchall()]
    return zip(SCANNED, types, strict=True)


def _tables(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in reader:
        held.append(batch)
        if sum(b.num_rows for b in held) >= rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)

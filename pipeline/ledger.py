"""The ledger: tables of Parquet files behind a commit log, read by DuckDB. docs/ledger.md is its contract."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from curation.listing import LISTING as LISTING
from curation.listing import RECORDS as RECORDS
from curation.splitting import DERIVED
from pipeline import lease as leases
from pipeline.log import FORMAT, CommitLog, Cost, LedgerFile
from shards.errors import InfrastructureError, LedgerError
from shards.store import RemoteStore, Store, open_store

ROW_GROUP = 20_000
ROWS_PER_FILE = 1_000_000

CONTAINERS = pa.schema([pa.field("source", pa.string()), pa.field("name", pa.string()), pa.field("stamp", pa.string())])
CONTENTS = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("stamp", pa.string()),
        pa.field("content", pa.string()),
        pa.field("sha256", pa.list_(pa.string())),
    ]
)
PLACEMENTS = pa.schema([pa.field("uid", pa.string()), pa.field("shard", pa.string()), pa.field("sample", pa.string())])
VERDICTS = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("step", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("op", pa.int16()),
    ]
)
FIXED_TABLES: Mapping[str, pa.Schema] = {
    "listing": LISTING,
    "records": RECORDS,
    "containers": CONTAINERS,
    "contents": CONTENTS,
    "placements": PLACEMENTS,
    "verdicts": VERDICTS,
}


@dataclass(slots=True)
class Ledger:
    """Open for reading by anybody; `lease` is set in the one process that may commit.

    overlays: table → SQL that is read instead of its files, in one connection: what a plan assumes, never written.
    """

    store: Store
    log: CommitLog
    lease: leases.Lease | None = None
    overlays: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    def files(self, table: str) -> list[LedgerFile]:
        return [f for f in self.log.state.files.values() if f.table == table]

    def rows(self, table: str) -> int:
        return sum(f.rows for f in self.files(table))

    def write(self, table: str, rows: pa.Table | pa.RecordBatchReader, part: str) -> LedgerFile:
        """Write one file of a table, sorted by uid where rows are a Table; it is no part of the ledger before a commit names it."""
        path = f"tables/{table}/{self.log.state.seq + 1:020d}-{self._lease().number}-{part}.parquet"
        with tempfile.TemporaryDirectory(dir=self.scratch(), prefix=".tmp-write-") as scratch:
            local = Path(scratch) / "rows.parquet"
            count = _write_parquet(rows, local)
            size = local.stat().st_size
            if not self.store.put_new_file(path, str(local)):
                raise LedgerError(f"{self.store.url(path)} exists: another process writes to this run; this one stops (nothing is lost)")
        return LedgerFile(table, path, count, size)

    def commit(
        self,
        what: str,
        tables: Mapping[str, pa.Table],
        *,
        remove: Sequence[str] = (),
        costs: Sequence[Cost] = (),
        note: Mapping[str, Any] | None = None,
        files: Sequence[LedgerFile] = (),
    ) -> int:
        """Write the tables' files (empty ones are left out) and the entry that makes them live. `files` were written before."""
        lease = self._lease()
        lease.check()
        add = [self.write(name, table, str(i)) for i, (name, table) in enumerate(tables.items()) if table.num_rows]
        return self.log.append(what, lease=lease.number, add=[*files, *add], remove=remove, costs=costs, note=note)

    def sweep(self) -> int:
        """Delete files that no entry names any more: superseded ones and those of a killed process, and what no child of a splitter refers
        to. Only at the start of a run, so that whoever reads the run at this moment keeps his files until the next."""
        self._lease().check()
        dead = [path for path in self.store.list("tables/") if path not in self.log.state.files]
        derived = self.store.list(f"{DERIVED}/")
        if derived:
            used = self._blobs()
            dead += [path for path in derived if path not in used]
        if derived or self.store.local_path(DERIVED) is not None:
            open_store(self.store.url(DERIVED)).sweep(0)
        for path in dead:
            self.store.delete(path)
        return len(dead)

    def _blobs(self) -> set[str]:
        """The files of the run that hold the media of children, those of history among them: a row that is there is never made again."""
        tables = [table for table in self.log.state.tables() if table.startswith("children-")]
        connection = self.connect()
        try:
            queries = [f"select blob from {self.scan(connection, table)} where blob is not null" for table in tables]
            return {blob for (blob,) in connection.execute(" union ".join(queries)).fetchall()} if queries else set()
        finally:
            connection.close()

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection that spills to the run's scratch and is bounded to a quarter of the machine's memory (at most 8 GB)."""
        connection = duckdb.connect()
        bound = min(8 << 30, psutil.virtual_memory().total // 4)
        connection.execute(f"SET memory_limit = '{bound >> 20}MiB'")
        connection.execute("SET temp_directory = " + quote(str(self.scratch() / f".tmp-duckdb-{os.getpid()}")))
        connection.execute("SET preserve_insertion_order = false")
        if isinstance(self.store, RemoteStore):
            connection.register_filesystem(self.store.fs)
        return connection

    def scan(
        self, connection: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema | None = None, uid: str | Collection[str] | None = None
    ) -> str:
        """SQL of a relation with a table's live rows, `(select …)`; of one uid, or several, if given. An empty table needs its schema."""
        paths = [quote(self.readable(f.path)) for f in self.files(table)]
        if table in self.overlays:
            return self.overlays[table]
        if not paths:
            schema = schema or FIXED_TABLES[table]
            name = f"empty_{abs(hash((table, tuple(schema.names)))):x}"
            connection.register(name, schema.empty_table())
            return f"(select * from {name})"
        uids = [uid] if isinstance(uid, str) else uid
        where = f" where uid in ({', '.join(map(quote, uids))})" if uids is not None else ""
        return f"(select * from read_parquet([{', '.join(paths)}], union_by_name=true){where})"

    def compact(self) -> int:
        """Merge the small files of each table that has many; the number of files that went away. Rows are unchanged."""
        removed = 0
        for table, files in self.log.state.tables().items():
            wanted = 1 + sum(f.rows for f in files) // ROWS_PER_FILE
            if len(files) < wanted + 4:
                continue
            connection = self.connect()
            order = "uid" if "uid" in pq.read_schema(self.store.open(files[0].path)).names else "all"
            query = f"select * from {self.scan(connection, table)} order by {order}"
            merged = list(self._rewrite(table, connection.sql(query).to_arrow_reader(ROW_GROUP)))
            connection.close()
            self.commit("compact", {}, files=merged, remove=[f.path for f in files])
            removed += len(files) - len(merged)
        return removed

    def needs_compaction(self) -> bool:
        """docs/ledger.md: files ≤ rows / 100,000 + commits since the last compaction + one for each table."""
        state = self.log.state
        rows = sum(f.rows for f in state.files.values())
        return len(state.files) > rows / 100_000 + min(state.commits_since_compaction, 32) + len(state.tables())

    def _rewrite(self, table: str, reader: pa.RecordBatchReader) -> Iterable[LedgerFile]:
        for part, rows in enumerate(_chunks(reader, ROWS_PER_FILE)):
            yield self.write(table, rows, f"c{part}")

    def _lease(self) -> leases.Lease:
        if self.lease is None:
            raise LedgerError(f"{self.store.url('')} was opened for reading only")
        return self.lease

    def scratch(self) -> Path:
        """A folder for files of this moment: `work/` of the run, which workers see too; for readers and remote runs the machine's own."""
        local = self.store.local_path("work")
        if local is None or (self.lease is None and not local.is_dir()):
            return Path(tempfile.gettempdir())
        local.mkdir(parents=True, exist_ok=True)
        return local

    def readable(self, path: str) -> str:
        """What DuckDB opens: a path of this machine, or the URL."""
        local = self.store.local_path(path)
        return str(local) if local is not None else self.store.url(path)

    def read(self, file: LedgerFile) -> pa.Table:
        with self.store.open(file.path) as opened:
            return pq.ParquetFile(opened).read(use_threads=False)  # Arrow's threads must not outlive a Python file (shards/twin.py)


def open_ledger(run: str, *, write: bool = False) -> Ledger:
    """Open a run directory (a path or an fsspec URL). write=True makes it if need be and takes the lease. Raises LedgerError."""
    store = open_store(run)
    header = f'{{"format": "{FORMAT}"}}\n'.encode()
    if write:
        store.put_new("run.json", header)
    elif not store.exists("run.json"):
        raise LedgerError(f"{run} is no run: it has no run.json. `fovea curate RECIPE --run {run}` makes one")
    if store.read("run.json") != header:
        raise LedgerError(f"{run}/run.json does not say {FORMAT!r}: another version of fovea wrote this run")
    lease = leases.acquire(store) if write else None
    return Ledger(store, CommitLog(store), lease)


def first(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The first row of a query's result, () if there is none; the result is read to its end, as the connection's next work demands."""
    rows = connection.execute(query).fetchall()
    return tuple(rows[0]) if rows else ()


def quote(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def name(text: str) -> str:
    """An SQL identifier."""
    return '"' + text.replace('"', '""') + '"'


def _write_parquet(rows: pa.Table | pa.RecordBatchReader, path: Path) -> int:
    if isinstance(rows, pa.Table):
        if "uid" in rows.column_names:
            rows = rows.sort_by("uid")
        rows = rows.to_reader(ROW_GROUP)
    count = 0
    try:
        with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
            for batch in rows:
                writer.write_batch(batch)
                count += batch.num_rows
    except OSError as error:
        raise InfrastructureError(f"cannot write {path}: {error}; free space there and run again") from error
    return count


def _chunks(reader: pa.RecordBatchReader, rows: int) -> Iterable[pa.Table]:
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in reader:
        held.append(batch)
        count += batch.num_rows
        if count >= rows:
            yield pa.Table.from_batches(held, reader.schema)
            held, count = [], 0
    if held:
        yield pa.Table.from_batches(held, reader.schema)

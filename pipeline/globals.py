"""A global step on its population: columns, vectors and known pairs out of the ledger, the result committed under both digests."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.population import OneByOne, PairsInMemory, Population, Workers
from curation.rows import row_schema
from curation.vectors import Vectors, write_vectors
from pipeline import cluster
from pipeline.annotate import Tally
from pipeline.ledger import Ledger, first, name
from pipeline.log import Cost
from pipeline.ray_workers import RayWorkers, full_disk
from pipeline.recipe import StepOp
from pipeline.references import Held, held_against
from pipeline.segments import Segment, fingerprint_sql, global_schema, global_table, wide_table
from pipeline.verdicts import Judge
from shards.errors import InfrastructureError
from shards.sample import digest_of
from shards.store import RemoteStore

T = TypeVar("T")

log = logging.getLogger("fovea")

SCRATCH = "global-"  # what the names of their folders begin with
VECTORS_AT_ONCE = 8_192
POPULATIONS_KEPT = 3
PLANNED_VECTORS = 1_000_000  # rows whose vectors a plan lays into blocks, where it computes no searches: 2 GB on disk at 512 numbers

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, media, values: see write_vectors


def run_global(judge: Judge, segment: Segment, op: StepOp, workers: Workers | None = None, tally: Tally | None = None) -> None:
    """Compute a global step over its population and commit the result under (step, population). workers: None = the Ray cluster.

    tally: of what other steps do for its references.
    What a killed try left in its scratch folder is used; the folder goes when the result is committed.
    """
    at = time.monotonic()
    population = judge.populations[op.digest]
    folder = judge.ledger.scratch() / f"{SCRATCH}{op.digest}-{population}"
    for old in folder.parent.glob(f"{SCRATCH}*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    if workers is None:
        workers = RayWorkers(op.how.actors or cluster.cpus(), here=isinstance(judge.ledger.store, RemoteStore))
    with full_disk():
        rows = _reduce(open_population(judge, segment, op, workers, folder, tally), op)
    cost = Cost(op.digest, op.name, calls=1, rows=rows.num_rows, seconds=time.monotonic() - at)
    judge.ledger.commit("global", {global_table(op, population): rows}, costs=[cost], note={"population": population})
    shutil.rmtree(folder, ignore_errors=True)


def plan_global(judge: Judge, segment: Segment, op: StepOp, most: int) -> pa.Table | None:
    """The result without Ray and without a trace, or None where that would be work for a cluster: searches among more than `most` rows, or
    vectors of more than PLANNED_VECTORS."""
    with tempfile.TemporaryDirectory(prefix="fovea-plan-") as folder:
        population = open_population(judge, segment, op, _Few(), Path(folder))
        if population.table.num_rows <= most:
            population = open_population(judge, segment, op, OneByOne(), Path(folder))
        try:
            return _reduce(population, op)
        except _TooMany:
            return None


def open_population(judge: Judge, segment: Segment, op: StepOp, workers: Workers, scratch: Path, tally: Tally | None = None) -> Population:
    """What a global step sees of a judged segment. Columns are read now, vectors when they are asked for.

    References that the ledger does not know yet are computed and committed (`pipeline.references.held_against`).
    """
    number = judge.recipe.ops.index(op)
    numbered = f"population{number}"
    judge.connection.execute(
        f"create or replace temp table {numbered} as "
        "select (row_number() over (order by b.uid) - 1)::bigint as _row, null::varchar as _label, b.* "
        f"from {judge.population_sql(segment.number, op)} b"
    )
    held = held_against(judge, op, tally)
    samples = first(judge.connection, f"select count(*) from {numbered}")[0]
    if held is not None:
        rows = pa.array(np.arange(samples, samples + held.rows.num_rows), pa.int64())
        judge.connection.register("held", held.rows.append_column("_row", rows).rename_columns({"label": "_label"}))
        judge.connection.execute(f"insert into {numbered} by name select * from held")
        judge.connection.unregister("held")
    wide = _wide_columns(judge, op)
    narrow = [c for c in op.reads if c not in wide]
    select, joins = judge.columns_sql(narrow, before=segment.ops[0][0])
    known = {part.split(" as ")[-1] for part in select}
    base = [f"b.{name(c)}" for c in narrow if name(c) not in known]
    columns = ", ".join(["coalesce(b._label, b.uid) as uid", "b.kind", *base, *select])
    query = f"select {columns} from {numbered} b {' '.join(joins)} order by b._row"
    table = judge.connection.sql(query).to_arrow_table()
    scratch.mkdir(parents=True, exist_ok=True)
    population = judge.populations[op.digest]
    vectors = _LedgerVectors(judge, numbered, table.num_rows, wide, scratch, held, PLANNED_VECTORS if isinstance(workers, _Few) else None)
    return Population(
        table=table,
        vectors=vectors,
        digests=_digests(judge, op),
        how=op.how,
        workers=workers,
        scratch=scratch,
        pairs=LedgerPairs(judge.ledger, population if held is None else digest_of(population, held.digest())),
        dataset=judge.recipe.write.path if "://" in judge.recipe.write.path else judge.ledger.store.url(judge.recipe.write.path),
        references=table.num_rows - samples,
    )


def _reduce(population: Population, op: StepOp) -> pa.Table:
    assert op.step.reduce is not None
    result = op.step.reduce(op.what, population)
    if result.num_rows != population.samples:
        raise InfrastructureError(
            f"step {op.name} answered {result.num_rows} rows for a population of {population.samples}: a bug of the step"
        )
    schema = global_schema(op)
    return result.select(schema.names).cast(schema)


def pairs_table(key: str, population: str) -> str:
    return f"pairs-{key}-{population}"


@dataclass(frozen=True, slots=True)
class LedgerPairs:
    """`curation.population.Pairs` in the ledger's tables `pairs-<key>-<population>`. Of a key those of POPULATIONS_KEPT populations stay:
    two like steps of one recipe may have two.

    Who has no lease reads what is there and keeps what it finds to itself.
    """

    ledger: Ledger
    population: str
    own: PairsInMemory = field(default_factory=PairsInMemory)

    def load(self, key: str) -> pa.Table | None:
        files = self.ledger.files(pairs_table(key, self.population))
        return pa.concat_tables([self.ledger.read(f) for f in files]) if files else self.own.load(key)

    def save(self, key: str, pairs: pa.Table) -> None:
        if self.ledger.lease is None:
            self.own.save(key, pairs)
            return
        table = pairs_table(key, self.population)
        if self.ledger.files(table):
            return
        tables: dict[str, list[str]] = {}  # in the order of their commits
        for known in self.ledger.log.state.files.values():
            if known.table.startswith(pairs_table(key, "")):
                tables.setdefault(known.table, []).append(known.path)
        others = [path for old in list(tables)[: 1 - POPULATIONS_KEPT] for path in tables[old]]
        file = self.ledger.write(table, pairs, "p")  # also where there is none: that is known then
        self.ledger.commit("global", {}, files=[file], remove=others, note={"pairs": key, "population": self.population})


class _TooMany(Exception):
    """Work that is not done while planning."""


class _Few:
    """Workers that do nothing: for a plan, which waits for nobody."""

    cpus = 1

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        raise _TooMany


def _wide_columns(judge: Judge, op: StepOp) -> dict[str, tuple[StepOp, str]]:
    """final name → (the step that wrote it, stored name), of the wide columns that a global step reads."""
    found = {}
    for other in judge.recipe.ops:
        if isinstance(other, StepOp) and other is not op:
            found.update({c.name: (other, s) for c, s in zip(other.columns, other.stored, strict=True) if c.wide and c.name in op.reads})
    return found


def _digests(judge: Judge, op: StepOp) -> dict[str, str]:
    steps = [other for other in judge.recipe.ops if isinstance(other, StepOp)]
    return {c.name: other.digest for other in steps for c in other.columns if c.name in op.reads}


@dataclass(slots=True)
class _LedgerVectors(Mapping[str, Vectors]):
    """Vectors by column, laid into blocks when one is asked for. most: rows above which they are not; None = never."""

    judge: Judge
    numbered: str
    rows: int
    wide: dict[str, tuple[StepOp, str]]
    scratch: Path
    held: Held | None
    most: int | None = None
    made: dict[str, Vectors] = field(default_factory=dict)

    def __getitem__(self, column: str) -> Vectors:
        if column not in self.made:
            op, _ = self.wide[column]
            if self.most is not None and self.rows > self.most:
                raise _TooMany
            more = np.zeros((0, 2), np.int64)
            if op.step.level == "medium":
                query = f"select _row, unnest(range(1, n_media::bigint)) as m from {self.numbered} where n_media > 1 order by _row, m"
                several = self.judge.connection.execute(query).fetchnumpy()
                more = np.stack([several["_row"], several["m"]], axis=1)
            kind = next(c.type for c in op.columns if c.name == column).value_type
            vectors = write_vectors(
                self.scratch / f"vectors-{len(self.made)}",
                self.rows,
                more,
                self._batches(column),
                dtype="float32" if pa.types.is_floating(kind) else "uint32",
                digest=op.digest,
            )
            if vectors.refused:
                log.warning(
                    "%s: %d vectors are zero or not finite; they take no part in what is done by %s", op.name, vectors.refused, column
                )
            self.made[column] = vectors
        return self.made[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.wide)

    def __len__(self) -> int:
        return len(self.wide)

    def _batches(self, column: str) -> Iterator[Batch]:
        op, stored = self.wide[column]
        scan = self.judge.scan(wide_table(op), row_schema(op.step, op.what, wide=True))
        joined = f"from {self.numbered} b join {scan} w on w.uid = b.uid and w.fp = {fingerprint_sql(op.roots)}"
        queries = [f"select b._row as r, 0::bigint as m, w.{name(stored)} as v {joined} where w.{name(stored)} is not null"]
        if op.step.level == "medium":
            unnested = (
                f"select b._row as r, generate_subscripts(w._more, 1)::bigint as m, unnest(w._more) as more {joined} where len(w._more) > 0"
            )
            queries.append(f"select r, m, more.{name(stored)} as v from ({unnested}) where more.{name(stored)} is not null")
        width = 0
        for query in queries:
            for batch in self.judge.connection.sql(query).to_arrow_reader(VECTORS_AT_ONCE):
                values = batch.column("v")
                widths = pc.unique(pc.list_value_length(values)).to_pylist()
                for width in widths:  # more than one is for write_vectors to refuse
                    part = batch if len(widths) == 1 else batch.filter(pc.equal(pc.list_value_length(values), width))
                    flat = part.column("v").flatten().to_numpy(zero_copy_only=False)
                    yield part.column("r").to_numpy(), part.column("m").to_numpy(), flat.reshape(part.num_rows, width)
        if self.held is not None and column == self.held.column:
            yield from self.held.batches(self.rows - self.held.rows.num_rows, width)

"""A step's vectors of a run as a file by itself, which other corpora are held against (docs/decontaminate.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curation import reference_vectors
from curation.rows import row_schema
from pipeline.children import everybody
from pipeline.fields import did_you_mean
from pipeline.ledger import Ledger, name
from pipeline.query import connect
from pipeline.recipe import Recipe, StepOp
from pipeline.segments import fingerprint_sql, wide_table
from pipeline.verdicts import Judge
from shards.errors import InfrastructureError, RecipeError

KEPT = "verdict = 'kept'"
ROW_GROUP = 8_192


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: vectors of `width` numbers each, of the step `digest`."""

    path: str
    vectors: int
    width: int
    digest: str


def export(ledger: Ledger, recipe: Recipe, column: str, path: str | Path, where: str = KEPT) -> Exported:
    """Write the vectors in `column` of the samples of which `where` holds, an SQL predicate over the view `samples` of `fovea query`.

    The file is as `curation.reference_vectors` says: key "<source>/<key>", with "#1", "#2", … behind it for further media of a sample; in
    order of key, so that equal runs give equal files. It appears whole, in place of what was there. Memory does not grow with it.

    Raises RecipeError for a column that holds no vectors, InfrastructureError where there are none, or where the disk fails.
    """
    op, stored = _step_of(recipe, column)
    connection = connect(ledger, recipe)
    out = Path(path)
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        vectors, width = _write(_rows(connection, ledger, recipe, op, stored, where), op.digest, part)
        if not vectors:
            raise InfrastructureError(f"no sample of this run has vectors in {column!r} and fulfils {where!r}; nothing was written")
        os.replace(part, out)
    except duckdb.Error as error:
        raise RecipeError(f"the predicate {where!r} cannot be used: {error}") from error
    except OSError as error:
        raise InfrastructureError(f"cannot write {out}: {error}; give a path in a folder that is there, on a disk with space") from error
    finally:
        part.unlink(missing_ok=True)
        connection.close()
    return Exported(str(out), vectors, width, op.digest)


def _step_of(recipe: Recipe, column: str) -> tuple[StepOp, str]:
    """The step that writes a column of vectors, and what it calls it."""
    found = {
        c.name: (op, stored)
        for op in recipe.ops
        if isinstance(op, StepOp) and op.step.shape == "annotator"
        for c, stored in zip(op.columns, op.stored, strict=True)
        if c.wide and pa.types.is_list(c.type) and pa.types.is_floating(c.type.value_type)
    }
    if column not in found:
        raise RecipeError(f"{recipe.path}: no step writes vectors to a column {column!r}{did_you_mean(column, found)}")
    return found[column]


def _rows(connection: Any, ledger: Ledger, recipe: Recipe, op: StepOp, stored: str, where: str) -> Iterator[pa.RecordBatch]:
    judge = Judge(connection, ledger, recipe)
    scan = judge.scan(wide_table(op), row_schema(op.step, op.what, wide=True))
    query = f"select uid from samples where ({where}\n)"
    if len(connection.extract_statements(query)) != 1:
        raise RecipeError(f"the predicate {where!r} cannot be used: it is more than one condition; leave out what stands behind the ';'")
    connection.execute(f"create temp table exported as {query}")
    of = f"w.uid = b.uid and w.fp = {fingerprint_sql(op.roots)}"
    joined = f"from {everybody(judge)} b semi join exported e on e.uid = b.uid join {scan} w on {of}"
    value = name(stored)
    queries = [f"select b.source || '/' || b.key as key, 0::bigint as m, w.{value} as embedding {joined} where w.{value} is not null"]
    if op.step.level == "medium":
        each = f"select b.source || '/' || b.key as key, unnest(range(1, len(w._more) + 1)) as m, unnest(w._more) as more {joined}"
        queries.append(f"select key || '#' || m as key, m, more.{value} as embedding from ({each}) where more.{value} is not null")
    query = f"select key, embedding from ({' union all '.join(queries)}) order by key, m"
    yield from connection.sql(query).to_arrow_reader(ROW_GROUP)


def _write(batches: Iterator[pa.RecordBatch], digest: str, path: Path) -> tuple[int, int]:
    """(vectors, width of the first of them)."""
    schema = reference_vectors.schema(digest)
    vectors = width = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            table = pa.table([column.cast(f.type) for column, f in zip(batch.columns, schema, strict=True)], schema=schema)
            writer.write_table(table, row_group_size=ROW_GROUP)
            width = width or len(batch.column(1)[0])
            vectors += batch.num_rows
    return vectors, width

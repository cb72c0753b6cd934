"""What a global step holds its population against: samples of references through the recipe's own annotators, and files of vectors.

Samples of references are no samples of the run: they are in no listing and have no verdict. What steps said of them lies in the steps' own
tables under uids that no source can have, and who they are in a table `references-<digest>`. That digest is also over what lies at a
reference's place (`curation.reference.reference_identity`), so the table is made once, and the place is not looked at again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import reference_vectors
from curation.reference import PREFIX, Reference, label
from pipeline.annotate import Tally, annotate, pending
from pipeline.children import records_sql
from pipeline.ledger import LISTING, RECORDS, Ledger
from pipeline.recipe import Recipe, StepOp
from pipeline.scan import SCANNED, scan_all
from pipeline.segments import applies_sql
from pipeline.verdicts import Judge
from shards.errors import InfrastructureError, RecipeError
from shards.sample import MEDIA_REF_TYPE, digest_of
from shards.sources import list_containers

log = logging.getLogger("fovea")

REFERENCES = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("name", pa.string()),
        pa.field("key", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("n_media", pa.int16()),
        pa.field("content", pa.string()),
        pa.field("text_fp", pa.string()),
        pa.field("media", pa.list_(MEDIA_REF_TYPE)),
        pa.field("error", pa.string()),
    ]
)
SHOWN = 5  # samples that err are logged by name up to so many of a reference

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, media, values: see curation.vectors.write_vectors


@dataclass(slots=True)
class Done:
    """What was done for references (`pipeline.annotate.Tally`)."""

    calls: dict[str, int] = field(default_factory=dict)
    media_opened: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """The rows behind a population, in order of (name, key).

    rows   label, uid, kind, n_media, content, text_fp: of samples, as the ledger's tables of steps know them; a vector of a file is a row
           that they know nothing of: its uid is its label, its kind "image".
    files  (reference, number of its first row): those whose vectors lie in a file; they are of `column`.
    """

    rows: pa.Table
    files: tuple[tuple[Reference, int], ...] = ()
    column: str = ""

    def digest(self) -> str:
        """Of all that is held against: rows, and the bytes of files."""
        content = hashlib.sha256()
        for name in ("label", "content", "text_fp"):
            for batch in self.rows.select([name]).to_batches(max_chunksize=65_536):
                content.update("".join(f"{value}\n" for value in batch.column(0).to_pylist()).encode("utf-8", "surrogatepass"))
        return digest_of(content.hexdigest(), [reference_vectors.identity(reference.path) for reference, _ in self.files])

    def batches(self, start: int, width: int) -> Iterator[Batch]:
        """The files' vectors; `start`: the population's row of the first row here; `width` of the step's vectors, 0 = any one."""
        for reference, number in self.files:
            keys = reference_vectors.read_keys(reference.path)
            place = np.empty(len(keys), np.int64)
            place[np.asarray(pc.sort_indices(keys))] = np.arange(len(keys))
            for rows, values in reference_vectors.read_vectors(
                reference.path, width or reference_vectors.read_header(reference.path).width
            ):
                if len(rows):
                    yield start + number + place[rows], np.zeros(len(rows), np.int64), values


def held_against(judge: Judge, op: StepOp, tally: Tally | None = None) -> Held | None:
    """What `op` is held against; None where that is nothing.

    What is not in the ledger is computed on Ray and committed, so that needs a ledger that may be written to and a connected cluster.
    Raises InfrastructureError for a reference of which nothing can be read, RecipeError for a file of another step's vectors.
    """
    references = references_of(op)
    if not references:
        return None
    column = check_vectors(judge.recipe, op)
    samples = [r for r in references if r.format != "embeddings"]
    known = kept(judge.ledger, judge.recipe, op) if samples else REFERENCES.empty_table()
    if known is None:
        known = _compute(judge, op, samples, tally or Done())
    parts, files, count = [], [], 0
    for reference in references:
        if reference.format == "embeddings":
            part = _of_file(reference)
            files.append((reference, count))
        else:
            part = known.filter(pc.equal(known["name"], reference.name))
        parts.append(_rows(part))
        count += part.num_rows
    return Held(pa.concat_tables(parts), tuple(files), column)


def references_of(op: StepOp) -> tuple[Reference, ...]:
    """In order of name."""
    found = op.step.references(op.what) if op.step.references is not None else ()
    return tuple(sorted(found, key=lambda reference: reference.name))


def references_table(recipe: Recipe, op: StepOp) -> str:
    """The table of REFERENCES: of a step, and of the steps before it that its references go through."""
    return f"references-{digest_of(op.digest, [o.digest for o in _needed(recipe, op)])}"


def kept(ledger: Ledger, recipe: Recipe, op: StepOp) -> pa.Table | None:
    """REFERENCES as the ledger has them, in order of (name, key); None where they have not been computed."""
    files = ledger.files(references_table(recipe, op))
    return pa.concat_tables([ledger.read(f) for f in files]).sort_by([("name", "ascending"), ("key", "ascending")]) if files else None


def check_vectors(recipe: Recipe, op: StepOp) -> str:
    """The column whose vectors files of them are held against; "" where no reference is one. Looks at the files' headers alone.

    Raises RecipeError for a file that another step made than the one that writes the column.
    """
    files = [r for r in references_of(op) if r.format == "embeddings"]
    if not files:
        return ""
    made = next(
        (
            (other, column)
            for other in recipe.ops
            if isinstance(other, StepOp)
            for column in other.columns
            if column.wide and column.name in op.reads and pa.types.is_floating(column.type.value_type)
        ),
        None,
    )
    for reference in files:
        where = f"{recipe.path}:{op.line}: step {op.name!r}: reference {reference.name!r}"
        if made is None:
            raise RecipeError(f"{where} is a file of vectors, and {op.name} compares none; give it the `embedding` of an embed step")
        other, column = made
        header = reference_vectors.read_header(reference.path)
        if header.digest != other.digest:
            raise RecipeError(
                f"{where}: the vectors in {reference.path} ({header.width} numbers) were made by the step {header.digest}, those of "
                f"{column.name} are made by {other.name}, {other.digest}: they cannot be compared. Write the file from a run whose "
                f"{other.name} has the same model, weights and settings (`fovea embeddings RUN --out FILE`), or give the pictures"
            )
    return made[1].name if made is not None else ""


def unseen(judge: Judge, op: StepOp) -> str:
    """For a plan: how many samples of references the steps have yet to see, in words; "" for none. Starts nothing, writes nothing."""
    check_vectors(judge.recipe, op)
    samples = [r for r in references_of(op) if r.format != "embeddings"]
    if not samples or kept(judge.ledger, judge.recipe, op) is not None:
        return ""
    steps = _needed(judge.recipe, op)
    held = _judge_of(judge, samples, steps)
    try:
        count = 0
        for segment in held.segments:  # one that waits for a splitter is counted as itself
            held.judge(segment)
            count += pending(held, segment)
        return f"{count:,} samples of {', '.join(r.name for r in samples)} through {' + '.join(o.name for o in steps)}" if count else ""
    finally:
        held.connection.close()


def _compute(judge: Judge, op: StepOp, references: Sequence[Reference], tally: Tally) -> pa.Table:
    """REFERENCES of the samples, their steps run as far as they have not been, committed."""
    steps = _needed(judge.recipe, op)
    held = _judge_of(judge, references, steps)
    try:
        for segment in held.segments:
            held.judge(segment)
            if judge.ledger.lease is None and pending(held, segment):
                raise InfrastructureError(f"step {op.name}: its references have not been looked at yet; `fovea curate` does that")
            annotate(held, segment, tally, lambda what, done, total: None)
        last = len(held.segments) - 1
        parts = [f"select * from state{k} where status = 'errored'" for k in range(last)] + [f"select * from state{last}"]
        # an error of a later step leaves what the earlier ones said; of a record or the first step, nothing
        query = (
            f"select b.uid, b.source[{len(PREFIX) + 1}:] as name, b.key, b.kind, b.n_media, b.content, b.text_fp, r.media, b.error, "
            f"b.op as op, {_compared_sql(op, steps)} as applies from ({' union all by name '.join(parts)}) b "
            f"left join {records_sql(held)} r on r.uid = b.uid and r.origin = b.origin order by name, b.key"
        )
        found = held.connection.sql(query).to_arrow_table()
    finally:
        held.connection.close()
    for reference in references:
        _look_at(reference, op, steps, found.filter(pc.equal(found["name"], reference.name)))
    rows = found.filter(found["applies"]).select(REFERENCES.names).cast(REFERENCES)
    if judge.ledger.lease is not None:
        judge.ledger.commit("global", {references_table(judge.recipe, op): rows}, note={"references": [r.name for r in references]})
    return rows


def _look_at(reference: Reference, op: StepOp, steps: Sequence[StepOp], rows: pa.Table) -> None:
    """Log what errs. Raises InfrastructureError for a reference of which nothing can be read, or nothing compared."""
    failed = rows.filter(pc.is_valid(rows["error"]))
    unread = 0
    for number, row in enumerate(failed.to_pylist()):
        unread += not any(row["kind"] in o.kinds or row["kind"] == "mixed" for o in steps[: max(row["op"], 0)])
        if number < SHOWN:
            log.warning("%s: %s: %s", op.name, label(reference.name, row["key"]), row["error"])
    if failed.num_rows > SHOWN:
        log.warning("%s: %d samples of reference %s err in all", op.name, failed.num_rows, reference.name)
    applies = rows.filter(rows["applies"]).num_rows
    if unread == rows.num_rows:
        why = f" (the first: {failed['error'][0]})" if unread else ""
        raise InfrastructureError(
            f"step {op.name}: of reference {reference.name!r} at {reference.path} none of {rows.num_rows} samples can be read{why}; "
            "mend what lies there, or take the reference out of the recipe"
        )
    if not applies:
        kinds = ", ".join(sorted(set(rows["kind"].to_pylist())))
        raise InfrastructureError(
            f"step {op.name}: reference {reference.name!r} at {reference.path} holds only {kinds}, of which "
            f"{' + '.join(o.name for o in steps)} will tell nothing that {op.name} compares; mend its path, or take it out of the recipe"
        )


def _judge_of(judge: Judge, references: Sequence[Reference], steps: tuple[StepOp, ...]) -> Judge:
    """A judge of the references' samples by `steps`, over a connection of its own; its ledger lists them and nobody else."""
    connection = judge.connection.cursor()
    containers = [(r.source, c) for r in references for c in list_containers(r.source)]
    connection.register("reference_types", SCANNED.empty_table())
    connection.execute("create temp table reference_scanned as select * from reference_types")
    for table in scan_all(containers):
        connection.register("reference_part", table)
        connection.execute("insert into reference_scanned select * from reference_part")
        connection.unregister("reference_part")
    connection.execute(
        "create or replace temp table reference_scanned as select * from reference_scanned "
        "qualify row_number() over (partition by uid order by unit, ordinal) = 1"
    )
    lists = {
        table: f"(select {', '.join(schema.names)} from reference_scanned)"
        for table, schema in (("listing", LISTING), ("records", RECORDS))
    }
    ledger = Ledger(judge.ledger.store, judge.ledger.log, judge.ledger.lease, lists)
    return Judge(connection, ledger, replace(judge.recipe, ops=steps))


def _compared_sql(op: StepOp, steps: Sequence[StepOp]) -> str:
    """Whether a row of `b` is of a kind that `op` sees and that any of the steps says something about."""
    said = [applies_sql(o.kinds, "b") for o in steps if o.step.shape != "splitter"]
    return f"{applies_sql(op.kinds, 'b')} and ({' or '.join(said) or 'true'})"


def _needed(recipe: Recipe, op: StepOp) -> tuple[StepOp, ...]:
    """The annotators before `op` that write what it compares, and what those read, and the splitters among them. No rule."""
    wanted = set(op.reads if op.step.compares is None else op.step.compares(op.what))
    found: list[StepOp] = []
    for other in reversed(recipe.ops[: recipe.ops.index(op)]):
        if not isinstance(other, StepOp) or other.step.shape == "global":
            continue
        if other.step.shape == "splitter" or any(column.name in wanted for column in other.columns):
            wanted.update(other.reads)
            found.append(replace(other, max_errors=None))
    return tuple(reversed(found))


def _of_file(reference: Reference) -> pa.Table:
    """REFERENCES of a file of vectors."""
    keys = reference_vectors.read_keys(reference.path)
    keys = keys.take(pc.sort_indices(keys))
    count = len(keys)
    values = {
        "uid": pc.binary_join_element_wise(pa.scalar(f"{PREFIX}{reference.name}"), keys, "/"),
        "name": pa.repeat(reference.name, count),
        "key": keys,
        "kind": pa.repeat("image", count),
        "n_media": pa.repeat(pa.scalar(1, pa.int16()), count),
        "text_fp": pa.repeat("", count),
    }
    return pa.table([values[f.name] if f.name in values else pa.nulls(count, f.type) for f in REFERENCES], schema=REFERENCES)


def _rows(part: pa.Table) -> pa.Table:
    """Of REFERENCES: label, then what a population's row needs."""
    labels = pc.binary_join_element_wise(pc.binary_join_element_wise(PREFIX, part["name"], ""), part["key"], "/")
    return part.select(["uid", "kind", "n_media", "content", "text_fp"]).add_column(0, "label", labels)

"""The tables of the runner: the work table of one unit (in and onward) and the stored rows of a step (out)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.step import Column, Step
from shards.media import Limits
from shards.sample import MEDIA_REF_TYPE, MediaRef, Sample, Texts

CONTENTS_SCHEMA = pa.schema(
    [("uid", pa.string()), ("stamp", pa.string()), ("content", pa.string()), ("sha256", pa.list_(pa.string()))]
)  # one row for each sample whose media were identified; sha256: one per medium, null where its bytes could not be read
MORE = "_more"  # stored rows: media 1.. of a sample with several
SPLIT_COLUMNS = (Column("n", pa.int32()), Column("kind", pa.string()))
_LEVEL = b"fovea.level"


def base_fields() -> list[pa.Field]:
    """Fields every work table begins with: one row for each sample of one unit, ordered by ordinal.

    media_stamp   the cheap fingerprint of all media together; NULL without media.
    content       the content fingerprint where it is known for this stamp; NULL otherwise.
    known         content fingerprints the uid had under other stamps: not empty for a file that was touched or changed.
    have          digests of steps whose ok row exists; their columns are in the table and they are not computed again.
    failed        digests of steps whose row is an error: nor are they, and the sample comes no further than there.
    """
    return [
        pa.field("uid", pa.string()),
        pa.field("source", pa.string()),
        pa.field("key", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("ordinal", pa.int32()),
        pa.field("kind", pa.string()),
        pa.field("media", pa.list_(MEDIA_REF_TYPE)),
        pa.field("texts", pa.string()),
        pa.field("media_stamp", pa.string()),
        pa.field("content", pa.string()),
        pa.field("known", pa.list_(pa.string())),
        pa.field("text_fp", pa.string()),
        pa.field("have", pa.list_(pa.string())),
        pa.field("failed", pa.list_(pa.string())),
    ]


def work_schema(columns: Iterable[pa.Field] = ()) -> pa.Schema:
    """Schema of a work table: the base fields, then columns under their final names (see `work_field`)."""
    return pa.schema([*base_fields(), *columns])


def work_field(step: Step, column: Column, prefix: str) -> pa.Field:
    """A step's column in a work table: list<T> with one value for each medium at level "medium", T at level "sample".

    The level is kept in the field's metadata, because a sample-level column may itself be a list.
    """
    medium = step.shape == "annotator" and step.level == "medium"
    kind = pa.list_(column.type) if medium else column.type
    return pa.field(prefix + column.name, kind, metadata={_LEVEL: b"medium" if medium else b"sample"})


def work_fields(step: Step, what: Any, prefix: str) -> list[pa.Field]:
    return [work_field(step, column, prefix) for column in step.columns(what)]


def is_medium_level(field: pa.Field) -> bool:
    """Whether a work table's column holds one value for each medium."""
    return (field.metadata or {}).get(_LEVEL) == b"medium"


def stored_columns(step: Step, what: Any) -> Sequence[Column]:
    """What is stored of a step, unprefixed: its columns; of a splitter, which has none, into how many of what it split the sample."""
    return SPLIT_COLUMNS if step.shape == "splitter" else step.columns(what)


def row_schema(step: Step, what: Any, wide: bool) -> pa.Schema:
    """Storage schema of a step's narrow (or wide) rows: uid, fp, error (narrow only; NULL = ok), the stored columns, `_more`.

    `_more` exists at level "medium" where there are columns: media 1.. of samples with several media, NULL for one medium;
    a medium the step does not apply to is a NULL struct. fp is `fingerprint(...)`.
    """
    columns = [column for column in stored_columns(step, what) if column.wide == wide]
    fields = [pa.field("uid", pa.string(), nullable=False), pa.field("fp", pa.string(), nullable=False)]
    if not wide:
        fields.append(pa.field("error", pa.string()))
    fields += [pa.field(column.name, column.type) for column in columns]
    if step.level == "medium" and columns:
        fields.append(pa.field(MORE, pa.list_(pa.struct([pa.field(column.name, column.type) for column in columns]))))
    return pa.schema(fields)


def fingerprint(roots: Sequence[str], content: str | None, text_fp: str) -> str:
    """Fingerprint of what a step reads, transitively. `content` is None for a sample without media.

    Media whose bytes cannot be read have no content: there `content` is "stamp:<media_stamp>", so that a mended file is a new row.
    """
    content = content or "-"
    if "media" in roots:
        return f"{content}+{text_fp}" if "texts" in roots else content
    return text_fp if "texts" in roots else "-"


def texts_to_json(texts: Texts) -> str:
    """The work table's column `texts`. Pure ASCII, so that a lone surrogate in a caption survives the way through Arrow."""
    value = {
        "caption": texts.caption,
        "transcription": texts.transcription,
        "conversations": [dict(turn) for turn in texts.conversations],
        "text": texts.text,
        "meta": dict(texts.meta),
    }
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def texts_from_json(text: str) -> Texts:
    value = json.loads(text)
    return Texts(value["caption"], value["transcription"], tuple(value["conversations"]), value["text"], value["meta"])


def text_length(texts: Texts) -> int:
    """Characters of all texts of a sample together (metadata not counted)."""
    parts = [texts.caption, texts.transcription, texts.text, *(turn.get("value") for turn in texts.conversations)]
    return sum(len(part) for part in parts if isinstance(part, str))


def over_text_limit(texts: Texts, limits: Limits) -> str | None:
    """What is wrong, for an error row; None when the texts are within limits."""
    length = text_length(texts)
    return f"texts of {length:,} characters, allowed are {limits.text_chars:,}" if length > limits.text_chars else None


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """The sample of a work table's row (as `Table.to_pylist` gives it)."""
    return Sample(
        uid=row["uid"],
        source=row["source"],
        key=row["key"],
        unit=row["unit"],
        ordinal=row["ordinal"],
        media=tuple(MediaRef.from_row(medium) for medium in row["media"] or ()),
        texts=texts_from_json(row["texts"]),
    )


def rows_to_work(rows: pa.Table, step: Step, what: Any, prefix: str, wide: bool = False) -> pa.Table:
    """Stored rows as columns of a work table: uid, then the step's narrow (or wide) columns under their final names.

    rows   narrow or wide rows of `row_schema`. An errored row gives NULL.
    """
    rows = rows.combine_chunks()
    columns = [column for column in step.columns(what) if column.wide == wide]
    failed = np.asarray(pc.is_valid(rows["error"])) if "error" in rows.schema.names else np.zeros(len(rows), bool)
    arrays: list[pa.Array] = [_array(rows["uid"])]
    for column in columns:
        values = _array(rows[column.name])
        if step.level == "medium":
            values = _to_lists(values, _array(rows[MORE]), column.name, failed)
        arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=pa.schema([pa.field("uid", pa.string()), *(work_field(step, c, prefix) for c in columns)]))


def flat_table(batch: pa.Table, columns: Sequence[str]) -> pa.Table:
    """One row for each medium (one for a text sample): uid, m int32, medium_kind ("image", "video", "text"), then `columns`.

    Columns of level "medium" give that medium's value, others repeat the sample's.
    """
    media = [refs or [] for refs in batch["media"].to_pylist()]
    counts = np.array([max(1, len(refs)) for refs in media], dtype=np.int64)
    owner = np.repeat(np.arange(len(media)), counts)
    place = np.concatenate([np.arange(count) for count in counts]) if len(media) else np.zeros(0, np.int64)
    kinds = [ref["kind"] for refs in media for ref in (refs or [{"kind": "text"}])]
    arrays = {
        "uid": batch["uid"].take(pa.array(owner)),
        "m": pa.array(place, pa.int32()),
        "medium_kind": pa.array(kinds, pa.string()),
    }
    for name in columns:
        column = _array(batch[name])
        if is_medium_level(batch.schema.field(name)):
            lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
            starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
            absent = place >= lengths[owner]
            arrays[name] = column.flatten().take(pa.array(np.where(absent, 0, starts[owner] + place), mask=absent))
        else:
            arrays[name] = column.take(pa.array(owner))
    return pa.table(arrays)


def with_columns(table: pa.Table, fields: Sequence[pa.Field], positions: Sequence[int], values: Sequence[pa.Array]) -> pa.Table:
    """`table` with `values[i]` under `fields[i]` at the rows `positions`; other rows keep what is there, NULL in a new column."""
    for field, new in zip(fields, values, strict=True):
        index = table.schema.get_field_index(field.name)
        old = _array(table.column(index)).cast(field.type) if index >= 0 else pa.nulls(len(table), field.type)
        where = np.arange(len(table))
        where[np.asarray(positions, dtype=np.int64)] = len(table) + np.arange(len(positions))
        merged = pa.concat_arrays([old, new]).take(pa.array(where))
        table = table.set_column(index, field, merged) if index >= 0 else table.append_column(field, merged)
    return table


def _array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array of a column: exactly its rows (a slice's offsets gone), so that flatten() and offsets agree."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], column.type)


def _to_lists(first: pa.Array, more: pa.Array, name: str, failed: np.ndarray) -> pa.Array:
    """list<T> of [first, *more]: NULL where `failed`."""
    extra = np.asarray(pc.fill_null(pc.list_value_length(more), 0)).astype(np.int64)
    extra[failed] = 0
    rest = more.flatten()  # NULL lists (one medium, or failed) give nothing
    rest = pc.struct_field(rest, name) if len(rest) else pa.array([], first.type)
    lengths = np.where(failed, 0, 1 + extra)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    order = np.empty(offsets[-1], dtype=np.int64)
    heads = offsets[:-1][~failed]
    is_head = np.zeros(offsets[-1], bool)
    is_head[heads] = True
    order[is_head] = np.flatnonzero(~failed)
    order[~is_head] = len(first) + np.arange(len(rest))
    values = pa.concat_arrays([first, rest]).take(pa.array(order))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=pa.array(failed))

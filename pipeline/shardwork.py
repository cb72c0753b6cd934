"""One shard, written by one task on any machine: rows of the work file in, a published tar with its index out. Safe to repeat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.rows import texts_from_json
from pipeline.blur import Blur, blurred
from shards.errors import FoveaError, InfrastructureError, ShardError
from shards.index import MEASURE_TYPE
from shards.items import items_from_json
from shards.manifest import ShardInfo
from shards.media import Limits
from shards.publish import publish_shard, published_shard
from shards.read import open_media, read_media
from shards.sample import MediaRef
from shards.store import open_store
from shards.writer import ShardMedium, ShardSample, write_shard

HELD_BYTES = 64 << 20  # larger media are streamed from where they lie


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Row group `group` of `file` is the shard `shard`, to be published under `folder` of the store at `store`.

    schema: of the index, serialised. items: column of the items' JSON. scores, measures: index column → column of the work file.
    blur: the boxes to wipe out, a column of the work file.
    """

    file: str
    group: int
    shard: str
    store: str
    folder: str
    schema: bytes
    items: str | None
    scores: Mapping[str, str]
    measures: Mapping[str, str]
    limits: Limits
    blur: Blur | None = None


def write_one(task: ShardTask) -> ShardInfo:
    """Publish the shard, or find it published already; its entry for the manifest."""
    store = open_store(task.store)
    done = published_shard(store, task.folder, task.shard)
    if done is not None:
        return done
    schema = pa.ipc.read_schema(pa.py_buffer(task.schema))
    with pq.ParquetFile(task.file) as file:
        rows = file.read_row_group(task.group)
    path = store.tmp_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = write_shard(path, task.shard, _samples(task, rows), schema)
        return publish_shard(store, task.folder, written)
    except OSError as error:  # what a source is guilty of comes as a SourceError
        raise InfrastructureError(
            f"writing shard {task.shard} to {store.url(task.folder)} failed: {error}; free space there or mend the disk, then run again"
        ) from error
    finally:
        path.unlink(missing_ok=True)


def try_one(task: ShardTask) -> ShardInfo | FoveaError:
    """`write_one`, its error as an answer: Ray reports errors that nobody waits for, and the first of several is enough."""
    try:
        return write_one(task)
    except FoveaError as error:
        return error


def _samples(task: ShardTask, rows: pa.Table) -> Iterator[ShardSample]:
    for batch in rows.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            refs = [MediaRef.from_row(m) for m in row["_media"] or ()]
            digests = row["_sha256"] or [""] * len(refs)
            items = items_from_json(row[task.items]) if task.items and row[task.items] else []
            yield ShardSample(
                uid=row["uid"],
                source=row["source"],
                key=row["key"],
                kind=row["kind"],
                split=row["_split"],
                media=[_medium(ref, digest or "", task, row, i) for i, (ref, digest) in enumerate(zip(refs, digests, strict=True))],
                texts=texts_from_json(row["_texts"]),
                items=items,
                scores={index: row[column] for index, column in task.scores.items()},
                measures={profile: _measures(row[column], len(items)) for profile, column in task.measures.items()},
            )


def _medium(ref: MediaRef, sha256: str, task: ShardTask, row: Mapping[str, Any], place: int) -> ShardMedium:
    formats = row["_formats"]
    found = formats[place] if ref.kind == "image" and formats and place < len(formats) else None  # a video's is its codec, not its file's
    faces = _faces(task.blur, row, place) if task.blur is not None and ref.kind == "image" else []
    small = 0 <= ref.length <= HELD_BYTES or ref.cell is not None or bool(faces)
    data = read_media(ref, task.limits) if small else partial(open_media, ref, task.limits)
    transform = json.loads(ref.transform) if ref.transform else None
    medium = ShardMedium(ref.kind, ref.name, data, sha256, ref.original or "", transform, found or "")
    return blurred(medium, task.blur, faces, task.limits) if task.blur is not None else medium


def _faces(blur: Blur, row: Mapping[str, Any], place: int) -> list[Mapping[str, Any]]:
    """Raises ShardError where nobody looked for any: such a picture must not be written as if it had none."""
    boxes = row[blur.column]
    if boxes is None or place >= len(boxes) or boxes[place] is None:
        raise ShardError(
            f"sample {row['uid']} ({row['source']}, {row['key']}): no {blur.column} of medium {place}, so it cannot be blurred"
        )
    found: list[Mapping[str, Any]] = boxes[place]
    return found


def _measures(values: list[Mapping[str, Any]] | None, items: int) -> list[Mapping[str, Any] | None]:
    keys = [f.name for f in MEASURE_TYPE]
    return [{k: v[k] for k in keys} if v is not None else None for v in values] if values else [None] * items

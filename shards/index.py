"""The index: a shard's Parquet twin, a row for each item. Schemas only; docs/shards.md says what each column means."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

INDEX_FORMAT = "fovea-index/2"
READABLE_FORMATS = ("fovea-index/1", INDEX_FORMAT)  # the first has no `distinct` and `distinct_kept`

MEMBER_TYPE = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),  # "<uid>.jpg", as in the tar
        pa.field("offset", pa.int64(), nullable=False),  # first byte of the content in the tar
        pa.field("length", pa.int64(), nullable=False),
        pa.field("xxh3", pa.uint64(), nullable=False),  # xxh3_64 of the content, verified on read
    ]
)

MEDIA_MEMBER_TYPE = pa.struct(
    [
        *MEMBER_TYPE,
        pa.field("kind", pa.string(), nullable=False),  # image | video
        pa.field("sha256", pa.string(), nullable=False),  # of the bytes in the shard
        pa.field("original_sha256", pa.string(), nullable=False),  # of the source's bytes; differs after a transform
        pa.field("transform", pa.string()),  # JSON {operator, version, parameters}, or null
    ]
)

MEASURED_MEDIUM_TYPE = pa.struct(
    [
        pa.field("t", pa.int32(), nullable=False),  # frames (1 for an image)
        pa.field("h", pa.int32(), nullable=False),  # patches; pixels are h·patch × w·patch after preprocessing
        pa.field("w", pa.int32(), nullable=False),
        pa.field("merge", pa.int32(), nullable=False),
        pa.field("times", pa.list_(pa.float32()), nullable=False),  # seconds of each frame; empty for an image
        pa.field("mask", pa.binary()),  # by the profile's method: packed bits (little), t·(h/merge)·(w/merge); null = all kept
        pa.field("keep", pa.list_(pa.float32()), nullable=False),  # keep ratio at each of report_thresholds
        pa.field("distinct", pa.int32(), nullable=False),  # frames that differ from all before them in some bit of their patches
        pa.field("distinct_kept", pa.int32(), nullable=False),  # blocks of those that they, or frames equal to them, keep by `mask`
    ]
)

MEASURE_TYPE = pa.struct(
    [
        pa.field("text_tokens", pa.int32(), nullable=False),  # without visual placeholders
        pa.field("labelled_tokens", pa.int32(), nullable=False),
        pa.field("patches", pa.int32(), nullable=False),  # that pass the encoder
        pa.field("visual_tokens", pa.int32(), nullable=False),  # after merging, before compression
        pa.field("kept_tokens", pa.int32(), nullable=False),  # after compression at the profile's threshold
        pa.field("media", pa.list_(MEASURED_MEDIUM_TYPE), nullable=False),  # one for each of shards.items.shown
    ]
)


def measure_type(format: str) -> pa.StructType:
    """MEASURE_TYPE as indexes of a readable format have it."""
    if format == INDEX_FORMAT:
        return MEASURE_TYPE
    medium = pa.struct([field for field in MEASURED_MEDIUM_TYPE if field.name not in ("distinct", "distinct_kept")])
    media = pa.field("media", pa.list_(medium), nullable=False)
    return pa.struct([media if field.name == "media" else field for field in MEASURE_TYPE])


ITEM_FIELDS: tuple[pa.Field, ...] = (
    pa.field("uid", pa.string(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("n", pa.int32(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),  # text | image | video | mixed
    pa.field("shard", pa.string(), nullable=False),  # file name, relative to the version's folder
    pa.field("offset", pa.int64(), nullable=False),  # of the sample's first tar header
    pa.field("bytes", pa.int64(), nullable=False),  # of all its members with headers and padding
    pa.field("json", MEMBER_TYPE, nullable=False),
    pa.field("media", pa.list_(MEDIA_MEMBER_TYPE), nullable=False),
)


def index_schema(scores: Sequence[pa.Field] = (), profiles: Sequence[str] = ()) -> pa.Schema:
    """ITEM_FIELDS, then the narrow scores of the recipe, then one MEASURE_TYPE struct for each measure profile, under its name."""
    measured = [pa.field(name, MEASURE_TYPE) for name in profiles]
    return pa.schema([*ITEM_FIELDS, *scores, *measured], metadata={"format": INDEX_FORMAT})

"""The rows that say what a sample is, of a source or of a splitter: identity and facts (LISTING), record (RECORDS), children (CHILDREN)."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from curation.rows import texts_to_json
from shards.sample import MEDIA_REF_TYPE, Sample, media_stamp, texts_fingerprint

LISTING = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("source", pa.string()),
        pa.field("key", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("ordinal", pa.int32()),
        pa.field("kind", pa.string()),
        pa.field("n_media", pa.int16()),
        pa.field("media_kinds", pa.list_(pa.string())),
        pa.field("media_bytes", pa.int64()),
        pa.field("media_stamp", pa.string()),
        pa.field("text_fp", pa.string()),
        pa.field("damage", pa.string()),
        pa.field("parent", pa.string()),
        pa.field("caption_chars", pa.int32()),
        pa.field("transcription_chars", pa.int32()),
        pa.field("text_chars", pa.int32()),
        pa.field("turns", pa.int32()),
    ]
)
RECORDS = pa.schema([pa.field("uid", pa.string()), pa.field("media", pa.list_(MEDIA_REF_TYPE)), pa.field("texts", pa.string())])
# What both hold of a splitter's child; `fp`: of the splitter's row of its parent; `blob`: the file in the run that holds its media.
# unit and ordinal are the parent's unit and the place among its children: from them `pipeline.children` makes the child's own.
CHILDREN = pa.schema([*LISTING, *[f for f in RECORDS if f.name != "uid"], pa.field("fp", pa.string()), pa.field("blob", pa.string())])


def listing_row(sample: Sample) -> dict[str, Any]:
    """LISTING and RECORDS of one sample, side by side."""
    texts = sample.texts
    return {
        "uid": sample.uid,
        "source": sample.source,
        "key": sample.key,
        "unit": sample.unit,
        "ordinal": sample.ordinal,
        "kind": sample.kind,
        "n_media": len(sample.media),
        "media_kinds": [m.kind for m in sample.media] if len(sample.media) > 1 else None,
        "media_bytes": sum(max(m.length, 0) for m in sample.media),
        "media_stamp": media_stamp(sample.media),
        "text_fp": texts_fingerprint(texts),
        "damage": sample.damage,
        "parent": sample.parent,
        "caption_chars": len(texts.caption or ""),
        "transcription_chars": len(texts.transcription or ""),
        "text_chars": len(texts.text or "") + sum(len(c.get("value", "")) for c in texts.conversations),
        "turns": len(texts.conversations),
        "media": [m.to_row() for m in sample.media],
        "texts": texts_to_json(texts),
    }

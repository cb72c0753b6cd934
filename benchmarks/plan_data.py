"""Index files of realistic lengths, as `write_shard` makes them, without their tars: what plans are measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.index import MEASURE_TYPE, index_schema
from shards.manifest import Manifest, ShardInfo, save_manifest
from shards.reader import Dataset
from shards.store import Store, open_store
from shards.twin import encode_index

KINDS = {"general": 9.87, "document": 1.31, "chart": 1.0, "ocr": 0.83, "grounding": 0.5, "multi": 0.41, "text": 2.21, "video": 2.92}
TASKS = ("vqa", "document", "chart", "ocr", "grounding", "multi_image", "text", "video")
ROWS = 10_000
PROFILE = "videollama3"


def write_indexes(folder: Path, shards: int) -> Dataset:
    store = open_store(str(folder))
    schema = index_schema([pa.field("aesthetic", pa.float32())], [PROFILE])
    infos = [write_index(store, schema, number) for number in range(shards)]
    manifest = Manifest(
        "plan", "00c0ffee", "a benchmark", tuple(infos), profiles={PROFILE: {"digest": "0" * 16}}, scores=(("aesthetic", "float"),)
    )
    save_manifest(store, manifest)
    return Dataset.open(folder)


def write_index(store: Store, schema: pa.Schema, number: int) -> ShardInfo:
    rng = np.random.default_rng(number)
    name = f"train-{number:06}.tar"
    n = ROWS
    kind, text, visual, kept, patches, t, h, w, merge = sizes(rng, n)
    names = np.array(list(KINDS))
    raw = rng.bytes(16 * n).hex()
    uid = pa.array([raw[i : i + 32] for i in range(0, len(raw), 32)])
    grid = pa.StructArray.from_arrays(
        [
            pa.array(t, pa.int32()),
            pa.array(h, pa.int32()),
            pa.array(w, pa.int32()),
            pa.array(merge, pa.int32()),
            pa.ListArray.from_arrays(
                pa.array(np.concatenate([[0], np.cumsum(t)]), pa.int32()), pa.array(np.zeros(int(t.sum()), np.float32))
            ),
            pa.nulls(len(t), pa.binary()),
            pa.ListArray.from_arrays(pa.array(np.zeros(len(t) + 1), pa.int32()), pa.array([], pa.float32())),
            pa.array(t, pa.int32()),
            pa.array(kept[kind != 6], pa.int32()),
        ],
        fields=list(MEASURE_TYPE.field("media").type.value_type),
    )
    has = (kind != 6).astype(np.int64)
    measure = pa.StructArray.from_arrays(
        [
            pa.array(text, pa.int32()),
            pa.array(text // 3, pa.int32()),
            pa.array(patches, pa.int32()),
            pa.array(visual, pa.int32()),
            pa.array(kept, pa.int32()),
            pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(has)]), pa.int32()), grid),
        ],
        fields=list(MEASURE_TYPE),
    )
    bytes_of = np.full(n, 100_352)
    offset = np.cumsum(bytes_of) - bytes_of
    member = [
        pa.array([f"{i}.json" for i in range(n)]),
        pa.array(offset + 512),
        pa.array(np.full(n, 900)),
        pa.array(np.zeros(n), pa.uint64()),
    ]
    json_type, media_type = schema.field("json").type, schema.field("media").type
    columns = {
        "uid": uid,
        "task": pa.array(np.array(TASKS)[kind]),
        "n": pa.array(np.zeros(n), pa.int32()),
        "split": pa.array(["train"] * n),
        "source": pa.array(names[kind]),
        "key": uid,
        "kind": pa.array(np.where(kind == 6, "text", np.where(kind == 7, "video", "image"))),
        "shard": pa.array([name] * n),
        "offset": pa.array(offset),
        "bytes": pa.array(bytes_of),
        "json": pa.StructArray.from_arrays(member, fields=list(json_type)),
        "media": pa.array([[]] * n, media_type),
        "aesthetic": pa.array(rng.random(n).astype(np.float32)),
        PROFILE: measure,
    }
    table = pa.table([columns[f.name] for f in schema], schema=schema)
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    path = f"v-00c0ffee/{name}"
    info = ShardInfo(path, path.replace(".tar", ".parquet"), "train", n, n, n, int(bytes_of.sum()), digest, 0, "")
    info, data = encode_index(table, info)
    store.put_replace(info.index, data)
    return info


def sizes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """(kind, text tokens, visual tokens, kept ones, patches) of n items and (t, h, w, merge) of the media of those that have one."""
    shares = np.array(list(KINDS.values()))
    kind = rng.choice(len(KINDS), n, p=shares / shares.sum())
    text = np.where(kind == 6, rng.lognormal(5.8, 1.1, n), rng.lognormal(4.8, 0.8, n)).clip(20, 16_000).astype(np.int64)
    side = np.sqrt(np.where(kind == 1, rng.lognormal(8.2, 0.5, n), rng.lognormal(7.0, 0.7, n)).clip(16, 10_240))
    stretch = rng.uniform(0.7, 1.4, n)
    h, w = np.maximum(4, side * stretch).astype(np.int64), np.maximum(4, side / stretch).astype(np.int64)
    t = np.ones(n, dtype=np.int64)
    t[kind == 5] = rng.integers(2, 6, n)[kind == 5]
    clip = kind == 7
    t[clip] = rng.lognormal(3.4, 1.0, n).clip(2, 180).astype(np.int64)[clip]
    budget = np.where(clip, np.minimum(40_960, t * 4 * rng.lognormal(4.6, 0.5, n).clip(16, 320)), 10_240)
    area = np.maximum(16, budget / t)
    shrink = np.minimum(1.0, np.sqrt(area / (h * w)))
    h, w = np.maximum(2, h * shrink).astype(np.int64) // 2 * 2, np.maximum(2, w * shrink).astype(np.int64) // 2 * 2
    merge = np.where(clip, 2, 1)
    patches = t * h * w
    visual = patches // merge**2
    kept = np.where(clip, visual * (1 - rng.exponential(0.15, n)).clip(0.2, 1), visual).astype(np.int64)
    seen = kind != 6
    patches, visual, kept = patches * seen, visual * seen, kept * seen
    return kind, text, visual, kept, patches, t[seen], h[seen], w[seen], merge[seen]

"""Shards against plain webdataset, on one machine in one run: reading in sequence, reading at random, writing.

    python benchmarks/shard_io.py [--samples 10000] [--folder DIR]

Samples are about 37 KB: one picture's worth of random bytes and a JSON member. Ways are timed in turn, `--rounds` times over, and the best
round of each counts, so that a busy moment of the machine hits none of them alone. Everything is in the page cache and nothing is decoded:
it is the cost of the format that is measured. Both writers get the bytes in memory and leave files on disk; neither is asked to flush them
to the platter. Ours also takes the checksums (xxh3 and sha256 of each member, sha256 of the tar) and writes the index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import webdataset

from shards.index import index_schema
from shards.items import Item, Message, Part
from shards.manifest import Manifest, save_manifest
from shards.publish import publish_shard
from shards.reader import Dataset
from shards.sample import Texts, uid_of
from shards.store import open_store
from shards.writer import ShardMedium, ShardSample, write_shard

BATCH = 1_000
GOALS = {"sequential": 3.0, "random": 20_000.0, "writing": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where to put about 1.2 GB for a while")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fovea-shards-", dir=arguments.folder))
    try:
        report(measure(folder, arguments.samples, arguments.rounds))
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Samples a second for each way."""
    samples = [_sample(i) for i in range(count)]
    schema = index_schema([pa.field("width", pa.int32())])
    plain, ours = folder / "plain.tar", folder / "ours.tar"

    written = write_shard(ours, "train-000000", samples[:1], schema)

    def write_plain() -> None:
        with webdataset.ShardWriter(f"{folder}/plain-%06d.tar", maxcount=count + 1, maxsize=1 << 50, verbose=0) as sink:
            for s in samples:
                sink.write({"__key__": s.uid, "jpg": s.media[0].data, "json": _plain_json(s)})
        (folder / "plain-000000.tar").replace(plain)

    def write_ours() -> None:
        nonlocal written
        ours.unlink(missing_ok=True)
        written = write_shard(ours, "train-000000", samples, schema)
        (folder / "ours.parquet").write_bytes(written.index_data)

    rates = _best({"write webdataset": write_plain, "write fovea": write_ours}, count, rounds)

    store = open_store(str(folder / "dataset"))
    info = publish_shard(store, "v-abcd", written)
    save_manifest(store, Manifest("benchmark", "abcd", "none", (info,), scores=(("width", "int32"),)))
    dataset = Dataset.open(str(folder / "dataset"))
    tar = str(store.local_path(info.path))
    uids = [s.uid for s in samples]
    random.Random(0).shuffle(uids)
    dataset.read(uids[:1])

    def read_random(check: bool) -> None:
        for start in range(0, count, BATCH):
            batch = uids[start : start + BATCH]
            if [raw.uid for raw in dataset.read(batch, check)] != batch:
                raise RuntimeError("other samples than those asked for")

    rates |= _best(
        {
            "sequential webdataset": lambda: _exhaust(sum(1 for _ in webdataset.WebDataset(tar, shardshuffle=False)), count),
            "sequential fovea": lambda: _exhaust(sum(1 for _ in dataset.samples()), count),
            "sequential fovea, unchecked": lambda: _exhaust(sum(1 for _ in dataset.samples(check=False)), count),
            "random fovea, batches of 1,000": lambda: read_random(True),
            "random fovea, unchecked": lambda: read_random(False),
        },
        count,
        rounds,
    )
    return rates


def report(rates: dict[str, float]) -> None:
    print(f"{'samples a second':34}")
    for name, rate in rates.items():
        print(f"{name:34}{rate:12,.0f}")
    figures = {
        "sequential": rates["sequential fovea"] / rates["sequential webdataset"],
        "random": rates["random fovea, batches of 1,000"],
        "writing": rates["write fovea"] / rates["write webdataset"],
    }
    print(f"{'':34}{'reached':>12}{'goal':>12}")
    for name, unit in (("sequential", "x webdataset"), ("random", "samples/s"), ("writing", "x webdataset")):
        print(f"{name + ', ' + unit:34}{figures[name]:12,.2f}{GOALS[name]:12,.2f}")
    reached = {name: figures[name] >= goal for name, goal in GOALS.items()}
    print(json.dumps({"benchmark": "shards", "rates": rates, "figures": figures, "goals": GOALS, "reached": reached}))


def _best(ways: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def _exhaust(found: int, count: int) -> None:
    if found != count:
        raise RuntimeError(f"{found} samples read of {count}")


_POOL = os.urandom(32 << 20)


def _sample(number: int) -> ShardSample:
    uid = uid_of("benchmark", str(number))
    length = 30_000 + int(hashlib.sha256(uid.encode()).hexdigest()[:4], 16) % 14_000
    start = number * 7_919 % (len(_POOL) - length)
    user = Message("user", (Part("image", media=0), Part("text", text="Describe the picture.")))
    answer = Message("assistant", (Part("text", text=f"Picture number {number}: " + "many pieces of luggage gathered together. " * 4),))
    return ShardSample(
        uid=uid,
        source="benchmark",
        key=str(number),
        kind="image",
        split="train",
        media=[ShardMedium("image", f"{number}.jpg", _POOL[start : start + length])],
        texts=Texts(caption=f"Picture number {number}"),
        items=[Item("short_caption", 0, (user, answer))],
        scores={"width": number},
    )


def _plain_json(sample: ShardSample) -> dict[str, object]:
    """What a plain webdataset would hold of the same sample."""
    return {
        "uid": sample.uid,
        "source": sample.source,
        "key": sample.key,
        "texts": {"caption": sample.texts.caption},
        "items": [i.to_json() for i in sample.items],
        "scores": dict(sample.scores),
    }


if __name__ == "__main__":
    main()

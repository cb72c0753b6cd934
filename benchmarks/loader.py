"""The loader beside `webdataset` with the same decoding and preprocessing, and what simulated nodes read of a remote store.

    python -m benchmarks.loader [--samples 600] [--turns 2] [--data ../shared/data]

Samples are crops of the development data's photographs (about 65 KB, 1,500 patches, profile videollama3), in real shards. Both sides read
the same tars, call the same functions (shards.measure.load_medium, shards.chat.encode_item, training.collate.collate), and are measured
from their first batch to their last: ours with so many threads, webdataset's WebLoader with so many processes, in turn, the best turn of
each. CPU milliseconds for each item, of all threads and processes with their start-up, are given beside: other work on the machine does not
move them.
webdataset reads its shards in order without shuffling, is given the grids that our index holds, and puts as many items in a batch as our
packs have in the mean; our side also checks every member, follows a shuffled plan and compares each item with it.

Then eight nodes, each with a store of its own that counts what is read of it: one epoch is dealt to them, and of a window's samples each
gets an eighth. After it one node with a cache, where whole tars are worth it, and two that want half of each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image

from shards.cache import ShardCache
from shards.chat import MediumTokens, encode_item, load_tokenizer
from shards.index import index_schema
from shards.items import Item, Message, Part, item_from_json
from shards.manifest import Manifest, profile_entries, save_manifest
from shards.measure import Medium, load_medium, measure_item
from shards.media import Limits
from shards.profile import Profile, load_profile
from shards.publish import publish_shard
from shards.reader import Dataset
from shards.sample import uid_of
from shards.store import open_store
from shards.tokenizer import tokenizer_digest, train_tokenizer
from shards.tokens import kept_by_frame
from shards.writer import ShardMedium, ShardSample, write_shard
from tests.shards.counted_store import remote_copy
from training.collate import ItemName, LoadedItem, LoadedMedium, collate
from training.index_source import DatasetIndex
from training.loader import Loader
from training.mixture import Mixture
from training.node import Node
from training.plan import Plan, make_plan
from training.plan_parts import PlanConfig

SHARDS = 16
NODES = 8
GOALS = {"loader": 1.0, "read": 1.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fovea-loader-"))
    try:
        path, words = write(folder, arguments.data, arguments.samples)
        tokenizer = load_tokenizer(words)
        profile = load_profile("videollama3", tokenizer_digest(words))
        found = rates(path, tokenizer, profile, arguments.samples, arguments.turns) | {"reads": reads(path, tokenizer, profile, folder)}
        found["reached"] = {
            "loader": all(found[f"ratio, {n}"] >= GOALS["loader"] for n in (1, 2)),
            "read": found["reads"]["8 nodes, ranges"]["read/used"] <= GOALS["read"],
        }
        print(json.dumps(found, indent=1))
    finally:
        shutil.rmtree(folder)


def write(folder: Path, data: Path, count: int) -> tuple[Path, Path]:
    """(dataset, tokenizer's folder) of `count` photographs; every fourth has two items."""
    sources = [Image.open(p).convert("RGB") for p in sorted((data / "caption" / "coco").glob("*.jpg"))]
    records = map(json.loads, (data / "manifest.jsonl").read_text("utf-8").splitlines())
    captions = [record["text"] for record in records if record.get("subset") == "coco2017"]
    if not sources:
        raise SystemExit(f"no photographs under {data}/caption/coco: give --data")
    words = folder / "tokenizer"
    train_tokenizer([*captions, "user\nassistant\nDescribe the picture. What is to be seen?"], words, 2_000)
    tokenizer, store, infos = load_tokenizer(words), open_store(str(folder / "dataset")), []
    profile = load_profile("videollama3", tokenizer_digest(words))
    order = list(range(count))
    random.Random(0).shuffle(order)
    for number in range(SHARDS):
        held = []
        for i in order[number::SHARDS]:
            raw, caption = _photograph(sources[i % len(sources)], i // len(sources) % 40), captions[i % len(captions)]
            items = [_item("short_caption", "Describe the picture.", caption)]
            items += [_item("vqa", "What is to be seen?", caption)] * (i % 4 == 0)
            medium = Medium("image", raw, Limits())
            measures = {profile.name: [measure_item(item, [medium], tokenizer, profile) for item in items]}
            uid, media = uid_of("benchmark", str(i)), [ShardMedium("image", f"{i}.jpg", raw)]
            held.append(ShardSample(uid, "benchmark", str(i), "image", "train", media, items=items, measures=measures))
        name = f"train-{number:06}"
        infos.append(publish_shard(store, "v-abcd", write_shard(folder / f"{name}.tar", name, held, index_schema((), [profile.name]))))
    save_manifest(store, Manifest("benchmark", "abcd", "none", tuple(infos), profiles=profile_entries([profile])))
    return folder / "dataset", words


def rates(path: Path, tokenizer: Any, profile: Profile, count: int, turns: int) -> dict[str, Any]:
    """Items a second from the first batch to the last, by 1 and 2 threads or processes, and the ratios."""
    dataset = Dataset.open(path)
    plan = _plan(dataset, profile, packs=2)
    measured = {(row["uid"], row["task"]): row[profile.name] for row in dataset.index(["uid", "task", profile.name]).to_pylist()}
    per_pack = round(plan.report().items / plan.report().packs)
    urls = [str(dataset.store.local_path(info.path)) for info in dataset.manifest.shards]
    found: dict[str, Any] = {"items": plan.report().items, "items a pack": per_pack}
    for workers in (1, 2):
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "ours": partial(_ours, dataset, plan, tokenizer, profile, workers),
            "webdataset": partial(_webdataset, urls, measured, tokenizer, profile, per_pack, workers),
        }
        best, cpu = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, float("inf"))
        for _ in range(turns):
            for name, way in ways.items():
                rate, each = way()
                best[name], cpu[name] = max(best[name], rate), min(cpu[name], each)
        found |= {f"{name}, {workers}": round(rate, 1) for name, rate in best.items()}
        found |= {f"CPU ms an item, {name}, {workers}": round(each, 2) for name, each in cpu.items()}
        found[f"ratio, {workers}"] = round(best["ours"] / best["webdataset"], 3)
    return found


def reads(path: Path, tokenizer: Any, profile: Profile, folder: Path) -> dict[str, dict[str, float]]:
    """What nodes read of a store and what they used of it, in bytes, for an epoch dealt to them."""
    found = {}
    for nodes, cached in ((NODES, False), (NODES, True), (2, True), (1, True)):
        name = f"{nodes} nodes, {'cache' if cached else 'ranges'}"
        used = tars = indexes = requests = 0
        for rank in range(nodes):
            store = remote_copy(path, f"memory://loader-{os.getpid()}-{name}")
            opened = Dataset.open(path)
            cache = ShardCache(folder / f"{name}-{rank}", 1 << 33) if cached else None
            dataset = Dataset(store, opened.manifest, cache)
            plan = _plan(opened, profile, packs=8)
            near = replace(plan, source=DatasetIndex(dataset, "train"))  # made once, as it is; its windows are read here
            loader = Loader(dataset, near, tokenizer, profile, rank=rank, world=nodes, workers=0, cache=cache, node=Node((rank,)))
            used += sum(step.bytes_used for step in loader.steps())
            tars, indexes, requests = tars + store.of(".tar"), indexes + store.of(".parquet"), requests + store.requests
        whole = sum(info.bytes for info in Dataset.open(path).manifest.shards)
        found[name] = {
            "tars, bytes": whole,
            "used": used,
            "read": tars,
            "read/used": round(tars / used, 4),
            "indexes": indexes,
            "read with indexes/used": round((tars + indexes) / used, 4),
            "requests": requests,
        }
    return found


def _plan(dataset: Dataset, profile: Profile, packs: int) -> Plan:
    config = PlanConfig(profile=profile.name, compress=False, packs=packs, seq_tokens=16_384, pack_patches=40_960, window_shards=8)
    return make_plan(DatasetIndex(dataset, "train"), Mixture(), config)


def _ours(dataset: Dataset, plan: Plan, tokenizer: Any, profile: Profile, workers: int) -> tuple[float, float]:
    loader = Loader(dataset, plan, tokenizer, profile, workers=workers)
    return _rate(batch for step in loader.steps() for batch in step.batches)


def _webdataset(urls: list[str], measured: Any, tokenizer: Any, profile: Profile, per_pack: int, workers: int) -> tuple[float, float]:
    def prepare(sample: dict[str, Any]) -> list[LoadedItem]:
        record = json.loads(sample["json"])
        found = []
        for item in map(item_from_json, record["items"]):
            facts = measured[record["uid"], item.task]["media"][0]
            medium = load_medium(sample["jpg"], facts, "image", profile, Limits())
            tokens = MediumTokens("image", kept_by_frame(None, *medium.grid, medium.merge))
            encoded = encode_item(item, tokenizer, [tokens])
            loaded = LoadedMedium(False, *medium.grid, medium.merge, medium.patches)
            found.append(LoadedItem(ItemName(record["uid"], item.task, item.n), encoded.input_ids, encoded.labels, (loaded,)))
        return found

    def one_by_one(samples: Any) -> Any:
        for sample in samples:
            yield from prepare(sample)

    pipeline = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).compose(one_by_one)
    batched = pipeline.batched(per_pack, collation_fn=partial(collate, patch=profile.patch), partial=True)
    return _rate(webdataset.WebLoader(batched, batch_size=None, num_workers=workers))


def _rate(batches: Any) -> tuple[float, float]:
    """(items a second from the first batch to the last, CPU milliseconds for each)."""
    items = first = 0
    before, started = _cpu(), 0.0
    for batch in batches:
        items += len(batch.items)
        if not started:
            started, first = time.perf_counter(), items
    return (items - first) / (time.perf_counter() - started), 1e3 * (_cpu() - before) / items


def _cpu() -> float:
    """Seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _item(task: str, question: str, answer: str) -> Item:
    asked = (Part("image", media=0), Part("text", text=question))
    return Item(task, 0, (Message("user", asked), Message("assistant", (Part("text", text=answer),))))


def _photograph(image: Image.Image, shift: int) -> bytes:
    buffer = io.BytesIO()
    image.crop((shift, shift, max(image.width - 40 + shift, 64), max(image.height - 40 + shift, 64))).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()

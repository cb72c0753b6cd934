"""The plan of an epoch over real index files of realistic lengths: time, memory, fill, balance; and a billion items by windows.

    python -m benchmarks.plan [--items 10000000] [--folder DIR] [--threads 2] [--windows 3]

The data: index files as `write_shard` makes them, 10,000 items each, without their tars, under a real manifest. Items follow the shares of
the paper's stage 3 (report, table 3) with heavy tails: texts lognormal, pictures by kind, clips of 2 to 180 frames of which compression
keeps a part. Sources are the eight kinds. The plan is the shipped one of stage 3: 16,384 tokens, 65,536 patches.

Told: seconds from the index files to the plan (every window packed once), peak memory of the process above what it had, fill, tokens
alone, and for 8, 64 and 512 ranks with four packs a rank: imbalance (mean over steps of the dearest rank's predicted cost over the mean
rank's) and how far any source's share of a step's tokens lies from its window's. `--windows` of the plan, spread over the epoch, are
composed for that; of a step that straddles two windows the share is held against both, by the packs it has of each.
A billion: the same shards named a hundred times over; the plan is laid out from the census's counts of the ten million, and windows are
packed at random places of the epoch.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.plan_data import PROFILE, ROWS, TASKS, write_indexes
from shards.manifest import ShardInfo
from shards.reader import Dataset
from training.index_source import DatasetIndex, IndexSource
from training.mixture import Mixture
from training.packing import deal
from training.plan import Plan, _packed, make_plan
from training.plan_parts import PlanConfig
from training.window import counts_of

CONFIG = PlanConfig(PROFILE, compress=True, samples=128, divisible_by=8, seq_tokens=16_384, pack_patches=65_536)
RANKS = (8, 64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--json", default=None, help="also write the numbers here")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fovea-plan-", dir=arguments.folder))
    try:
        began = time.perf_counter()
        dataset = write_indexes(folder, max(1, arguments.items // ROWS))
        print(f"{arguments.items:,} items in {len(dataset.manifest.shards):,} index files, written in {time.perf_counter() - began:.0f} s")
        numbers = measure(DatasetIndex(dataset, "train"), arguments.threads, arguments.windows)
        numbers["billion"] = billion(DatasetIndex(dataset, "train"), arguments.threads)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(numbers), "utf-8")
    finally:
        shutil.rmtree(folder)


def measure(source: DatasetIndex, threads: int, windows: int) -> dict[str, object]:
    warm(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    plan = make_plan(source, Mixture(), CONFIG, threads=threads)
    seconds = time.perf_counter() - began
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    report = plan.report()
    print(f"planned in {seconds:.1f} s on {threads} threads (goal 60), {memory:.2f} GB above the start")
    print(f"{report.packs:,} packs, {report.packs_per_step} a step, {report.samples_per_step:.1f} samples a step in the mean (asked 128)")
    print(f"fill {report.fill:.4f} (goal 0.98), tokens alone {report.fill_tokens:.4f}, patches alone {report.fill_patches:.4f}")
    print(f"kept visual tokens {report.kept / report.visual:.3f}, left out {report.dropped:,}")
    began = time.perf_counter()
    found = make_plan(source, Mixture(tasks=dict.fromkeys(TASKS, 1.0), by="tokens"), CONFIG, threads=threads).report()
    shares = {name: round(share, 4) for name, share in found.by_source.items()}
    print(f"equal shares of tokens (0.125 each): {shares}, planned in {time.perf_counter() - began:.1f} s")
    balance = {str(ranks): balanced(replace_step(plan, 4 * ranks), ranks, windows) for ranks in RANKS}
    return {"seconds": seconds, "gigabytes": memory, "fill": report.fill, "fill_tokens": report.fill_tokens, "balance": balance}


def replace_step(plan: Plan, packs: int) -> Plan:
    """The plan with another size of a step: packs and their windows stay."""
    config = replace(plan.config, packs=packs, samples=None, divisible_by=1)
    return Plan(plan.source, plan.mixture, config, plan.cost, replace(plan.laid, packs_per_step=packs), plan.digest)


def balanced(plan: Plan, ranks: int, windows: int) -> dict[str, float]:
    """Over the steps of windows spread over the epoch: imbalance over ranks, and the farthest that a source's share of tokens lies from
    its window's."""
    imbalance, far = [], []
    seconds = 0.0
    chosen = np.unique(np.linspace(0, len(plan.windows) - 1, windows).astype(int)).tolist()
    for number in chosen:
        began = time.perf_counter()
        window = plan.window(number)
        seconds += time.perf_counter() - began
        whole = shares_of(plan, window.packs)
        for step in window.steps:
            if any(not pack.items for pack in step.packs):
                continue
            costs = [pack.cost for pack in step.packs]
            loads = [sum(costs[p] for p in hand) for hand in deal(costs, ranks)]
            imbalance.append(max(loads) * ranks / sum(loads) - 1)
            far.append(float(np.abs(shares_of(plan, step.packs) - expected(plan, step.packs, {number: whole})).max()))
    numbers = {
        "imbalance": float(np.mean(imbalance)),
        "worst step": float(np.max(imbalance)),
        "share": float(np.max(far)) if far else 0.0,
        "seconds": seconds,
    }
    print(
        f"{ranks:4} ranks, {plan.packs_per_step} packs a step, {len(imbalance)} steps of {windows} windows: "
        f"imbalance {numbers['imbalance']:.4f} (goal 0.02; worst step {numbers['worst step']:.4f}), "
        f"farthest share {numbers['share']:.4f} (goal 0.03), composed in {seconds:.1f} s"
    )
    return numbers


def expected(plan: Plan, packs: tuple, known: dict[int, np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
    """The shares of the packs' windows, by the packs that each has here."""
    for number in {pack.window for pack in packs} - known.keys():
        known[number] = shares_of(plan, plan.window(number).packs)
    return np.mean([known[pack.window] for pack in packs], axis=0)


def shares_of(plan: Plan, packs: tuple) -> np.ndarray:  # type: ignore[type-arg]
    tokens = np.zeros(len(plan.laid.sources))
    for pack in packs:
        held = plan._window(pack.window)
        at = held.packed.items[held.packed.start[pack.place] : held.packed.start[pack.place + 1]]
        np.add.at(tokens, held.drawn.source[at], held.drawn.sizes.tokens[at])
    return tokens / tokens.sum()


@dataclass(frozen=True)
class Often:
    """A source whose shards are those of another, many times over: other names, the same rows."""

    source: IndexSource
    times: int

    @property
    def digest(self) -> str:
        return f"{self.source.digest}x{self.times}"

    @property
    def shards(self) -> list[str]:
        return [f"{shard}#{i}" for i in range(self.times) for shard in self.source.shards]

    @property
    def columns(self) -> list[str]:
        return list(self.source.columns)

    def read(self, shard: str, columns: list[str]) -> pa.Table:
        return self.source.read(shard.split("#")[0], columns)


def billion(source: IndexSource, threads: int) -> dict[str, float]:
    """Lays a billion items out and packs windows of it: what a run of that size would hold in memory and wait for."""
    times = -(-1_000_000_000 // (len(source.shards) * ROWS))
    small = make_plan(source, Mixture(), CONFIG, threads=threads)
    many = Often(source, times)
    began = time.perf_counter()
    names = many.shards
    windows = tuple(tuple(names[i : i + CONFIG.window_shards]) for i in range(0, len(names), CONFIG.window_shards))
    counts = tuple(small.laid.counts[i % len(small.laid.counts)] for i in range(len(windows)))
    plan = Plan(many, Mixture(), CONFIG, small.cost, replace(small.laid, windows=windows, counts=counts), "simulated")
    laid = time.perf_counter() - began
    seconds = []
    for number in np.linspace(0, len(windows) - 1, 4).astype(int).tolist():
        began = time.perf_counter()
        drawn, costs, packed = _packed(plan, number)
        now = counts_of(drawn, packed, costs, CONFIG.bounds, len(plan.laid.sources))
        seconds.append(time.perf_counter() - began)
        assert now.packs > 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    each = float(np.mean(seconds))
    print(f"a billion: {len(names):,} shards in {len(windows):,} windows, laid out in {laid:.1f} s; the process holds {held:.2f} GB")
    hours = each * len(windows) / 3600
    print(f"           a window is read and packed in {each:.1f} s on one thread: all of them, once, in {hours:.2f} core hours")
    return {"windows": len(windows), "seconds_a_window": each, "gigabytes": held}


def warm(source: DatasetIndex) -> None:
    """Compiled code is loaded before the clock runs."""
    first = DatasetIndex(replace_manifest(source.dataset, source.dataset.manifest.shards[:1]), source.split)
    next(make_plan(first, Mixture(), CONFIG).steps())


def replace_manifest(dataset: Dataset, shards: tuple[ShardInfo, ...]) -> Dataset:
    return Dataset(dataset.store, replace(dataset.manifest, shards=shards))


if __name__ == "__main__":
    main()

"""From a plan to tensors: reads each pack's samples at their offsets, decodes them as they were measured, and keeps a few steps ahead."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from shards.chat import MediumTokens, encode_item
from shards.errors import ProfileError, SampleError, ShardError
from shards.items import Item
from shards.measure import load_medium
from shards.media import Limits
from shards.profile import Profile
from shards.reader import Dataset, RawSample
from shards.tokens import kept_by_frame
from training.collate import IGNORED, ItemName, LoadedItem, LoadedMedium, PackBatch, Skipped, collate
from training.cost import ItemSizes
from training.packing import deal
from training.plan import Cursor, Pack, Plan, PlannedStep

log = logging.getLogger("fovea")

Report = Callable[[str, str, int, str, str, str, int], None]  # uid, task, n, source, kind, reason, step of the epoch


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """This rank's packs of a step, dearest first.

    number  of the step in the epoch, from 0.   cursor_after  where to go on once it is done.
    wait    seconds the step was waited for.    bytes_read    of the samples, from the shards, on this rank.
    """

    window: int
    step: int
    number: int
    batches: list[PackBatch]
    cursor_after: Cursor
    wait: float
    bytes_read: int


@dataclass(frozen=True)
class Loader:
    """The packs of one rank. Its only state is the cursor that each step hands over.

    dataset, plan  the plan must be over this dataset's index.
    tokenizer      of shards.chat.load_tokenizer, the profile's.
    profile        the plan's measure profile; the dataset's of that name must be the same.
    workers        threads that prepare packs; 0 prepares them when they are asked for.
    ahead          steps prepared in advance.
    skipped        is told of every item that left its pack, when its step is handed out.

    Decoders and the tokenizer let go of the interpreter lock, so that threads are enough.
    """

    dataset: Dataset
    plan: Plan
    tokenizer: Any
    profile: Profile
    rank: int = 0
    world: int = 1
    workers: int = 2
    ahead: int = 2
    limits: Limits = field(default_factory=Limits)
    skipped: Report | None = None

    def __post_init__(self) -> None:
        deal([0.0] * self.plan.packs_per_step, self.world)
        held = self.dataset.manifest.profiles.get(self.profile.name, {}).get("digest")
        if self.profile.name != self.plan.config.profile or held != self.profile.digest:
            raise ProfileError(
                f"the plan counts under profile {self.plan.config.profile!r}, the loader was given {self.profile.name!r} "
                f"(digest {self.profile.digest}, in the dataset {held}): use the profile and tokenizer that the dataset was measured with, "
                "or measure it again"
            )

    def steps(self, cursor: Cursor | None = None) -> Iterator[LoadedStep]:
        """The steps from `cursor` (default: the start of the epoch) to its end.

        An item whose bytes are damaged, or that no longer decodes, leaves its pack, which gets shorter; the plan stays as it is.
        Raises ProfileError for an item whose tokens are not those that were planned, ConfigError for a cursor of another plan, and
        ShardError for a tar that is gone or cut or an index that is not its own.
        """
        planned = self.plan.steps(cursor)
        if self.workers == 0:
            for step in planned:
                started = time.perf_counter()
                packs = [self._load(pack) for pack in self._mine(step)]
                yield self._hand_over(step, packs, time.perf_counter() - started)
            return
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fovea-loader")
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            coming: deque[tuple[PlannedStep, list[Future[tuple[PackBatch, int]]]]] = deque()
            for upcoming in chain(planned, [None] * self.ahead):
                if upcoming is not None:
                    coming.append((upcoming, [pool.submit(self._load, pack) for pack in self._mine(upcoming)]))
                if coming and (upcoming is None or len(coming) > self.ahead):
                    step, futures = coming.popleft()
                    started = time.perf_counter()
                    packs = [future.result() for future in futures]
                    yield self._hand_over(step, packs, time.perf_counter() - started)

    def _mine(self, step: PlannedStep) -> list[Pack]:
        return [step.packs[p] for p in deal([pack.cost for pack in step.packs], self.world)[self.rank]]

    def _hand_over(self, step: PlannedStep, packs: list[tuple[PackBatch, int]], wait: float) -> LoadedStep:
        for batch, _ in packs:
            for lost in batch.skipped:
                name = lost.name
                log.warning("step %d: %s/%s/%d left its pack: %s: %s", step.number, name.uid, name.task, name.n, lost.kind, lost.reason)
                if self.skipped is not None:
                    self.skipped(name.uid, name.task, name.n, name.source, lost.kind, lost.reason, step.number)
        batches = [batch for batch, _ in packs]
        return LoadedStep(step.window, step.step, step.number, batches, step.after, wait, sum(size for _, size in packs))

    def _load(self, pack: Pack) -> tuple[PackBatch, int]:
        """(batch of a pack, bytes read for it)."""
        if not pack.items:
            return collate([], self.profile.patch), 0
        rows, sizes = self.plan.items_of(pack).to_pylist(), self.plan.sizes_of(pack)
        raws = self._read(list(dict.fromkeys(row["uid"] for row in rows)))
        items: list[LoadedItem] = []
        lost: list[Skipped] = []
        for number, row in enumerate(rows):
            name, raw = ItemName(row["uid"], row["task"], row["n"], row["repeat"], row["source"]), raws[row["uid"]]
            if isinstance(raw, ShardError):
                self._refuse_lost_shard(row["shard"], raw)
                lost.append(Skipped(name, str(raw)))
                continue
            try:
                item = self._item(name, raw, row[self.profile.name])
            except SampleError as error:
                lost.append(Skipped(name, str(error), error.kind))
                continue
            _must_be_as_planned(item, sizes, number, self.profile.name)
            items.append(item)
        size = sum(len(raw.json) + sum(map(len, raw.media)) for raw in raws.values() if isinstance(raw, RawSample))
        return collate(items, self.profile.patch, lost), size

    def _read(self, uids: list[str]) -> dict[str, RawSample | ShardError]:
        try:
            return {raw.uid: raw for raw in self.dataset.read(uids)}
        except ShardError as error:
            if len(uids) == 1:
                return {uids[0]: error}
        # One damaged member must not cost the others of its pack.
        return {uid: raw for one in uids for uid, raw in self._read([one]).items()}

    def _refuse_lost_shard(self, name: str, found: ShardError) -> None:
        """A damaged member is one item's affair; a tar that is gone or cut is not: mended, the run goes on where it stopped."""
        for shard in self.dataset.manifest.shards:
            store = self.dataset.store
            if shard.path == name and not (store.exists(shard.path) and store.size(shard.path) == shard.bytes):
                raise ShardError(f"{store.url(shard.path)} is gone or cut; restore the tar, then resume ({found})") from found

    def _item(self, name: ItemName, raw: RawSample, measured: Mapping[str, Any]) -> LoadedItem:
        item = _find(self.dataset.record(raw)["items"], name)
        places = [(part.type, part.media) for message in item.messages for part in message.content if part.type != "text"]
        media: list[LoadedMedium] = []
        tokens: list[MediumTokens] = []
        for (kind, place), facts in zip(places, measured["media"], strict=True):
            loaded = load_medium(raw.media[place], facts, kind, self.profile, self.limits)
            keep = loaded.mask if self.plan.config.compress else None
            media.append(LoadedMedium(kind == "video", *loaded.grid, loaded.merge, loaded.patches, keep))
            tokens.append(MediumTokens(kind, kept_by_frame(keep, *loaded.grid, loaded.merge), facts["times"]))
        encoded = encode_item(item, self.tokenizer, tokens)
        return LoadedItem(name, encoded.input_ids, encoded.labels, tuple(media))


def _must_be_as_planned(item: LoadedItem, sizes: ItemSizes, row: int, profile: str) -> None:
    found = (len(item.input_ids), int((item.labels != IGNORED).sum()), sum(len(m.pixels) for m in item.media))
    planned = (int(sizes.tokens[row]), int(sizes.labelled[row]), int(sizes.patches[row]))
    if found != planned:
        raise ProfileError(
            f"{item.name.uid}/{item.name.task}/{item.name.n} has {found} tokens, labelled tokens and patches, planned were {planned}: "
            f"the dataset was measured under another profile {profile!r}, tokenizer or version; measure it again"
        )


def _find(items: list[Item], name: ItemName) -> Item:
    for item in items:
        if (item.task, item.n) == (name.task, name.n):
            return item
    raise ShardError(f"sample {name.uid}: the index lists item {name.task}/{name.n}, its JSON member does not; publish the index again")

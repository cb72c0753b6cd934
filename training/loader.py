"""From a plan to tensors: reads each pack's samples at their places, decodes them as they were measured, and keeps a few steps ahead."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from shards.cache import ShardCache
from shards.errors import ProfileError, SampleError, ShardError
from shards.media import Limits
from shards.places import Fetched, Place, PlacesReader
from shards.profile import Profile
from shards.reader import Dataset
from training.collate import IGNORED, ItemName, LoadedItem, PackBatch, Skipped, collate
from training.cost import ItemSizes
from training.index_source import DatasetIndex
from training.load_item import find_item, load_item, places_of, read_or_damage
from training.node import Node, whole_shards
from training.packing import deal
from training.plan import Plan
from training.plan_parts import Cursor, Pack, PlannedStep
from training.skips import SkipCount

log = logging.getLogger("fovea")

Report = Callable[[str, str, int, str, str, str, int], None]  # uid, task, n, source, kind, reason, step of the epoch


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """This rank's packs of a step, dearest first.

    number      of the step in the epoch, from 0.   cursor_after  where to go on once it is done.
    wait        seconds the step was waited for.
    bytes_read  that this rank took from the store since the step before: parts of tars, whole tars for the cache, indexes.
    bytes_used  of the members that the step's items are made of, without the tar's headers; once for each pack.
    predicted   cost of this rank's packs, in the unit of the plan's costs.
    skipped     items of this rank's packs that could not be read.
    """

    window: int
    step: int
    number: int
    batches: list[PackBatch]
    cursor_after: Cursor
    wait: float
    bytes_read: int
    bytes_used: int = 0
    predicted: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class _Work:
    """A pack whose samples are on their way. items: Plan.items_of.   places  of the items' samples."""

    pack: Pack
    items: pa.Table
    places: tuple[Place, ...]
    fetched: Fetched


@dataclass(frozen=True, slots=True)
class _Loaded:
    """asked: the shard (place in the manifest) of each item.   lost: those that could not be read, with their shards."""

    batch: PackBatch
    used: int
    asked: tuple[int, ...]
    lost: tuple[tuple[Skipped, int], ...] = ()


_Coming = tuple[PlannedStep, list[Pack], list[Callable[[], _Loaded]]]  # step, this rank's packs of it, what waits for each


@dataclass(frozen=True)
class Loader:
    """The packs of one rank. Its only state is the cursor that each step hands over.

    dataset, plan  the plan must be over this dataset's index.
    tokenizer      of shards.chat.load_tokenizer, the profile's.
    profile        the plan's measure profile; the dataset's of that name must be the same.
    workers        threads that prepare packs; 0 prepares them when they are asked for.
    ahead          steps prepared in advance. Reads of so many steps are sorted and joined.
    skipped        is told of every item that left its pack, when its step is handed out.
    cache, node    for a remote store: tars of which the node's ranks read at least half within a window are kept there whole, fetched
                   meanwhile by whichever rank comes first; without a cache all is read by ranges. None as the node: this rank alone.
    count          of unreadable items; it ends the run when they become too many. None: nothing does.

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
    cache: ShardCache | None = None
    node: Node | None = None
    count: SkipCount | None = None

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
        Raises ProfileError for an item whose tokens are not those that were planned, ConfigError for a cursor of another plan, ShardError
        for a tar that is gone or cut or an index that is not its own, and TooManySkipped.
        """
        with ExitStack() as stack:
            reader = PlacesReader(self.dataset.cached(self.cache), self.plan.shards_at_once)
            stack.callback(reader.close)
            traffic = [reader.dataset.traffic]
            if isinstance(self.plan.source, DatasetIndex) and self.plan.source.dataset is not reader.dataset:
                traffic.append(self.plan.source.dataset.traffic)  # windows are drawn from the indexes while steps are made
            count, read = self.count or SkipCount(None), sum(each.total for each in traffic)
            coming = self._in_turn(cursor, reader) if self.workers == 0 else self._in_advance(cursor, reader, stack)
            started = time.perf_counter()
            for step, mine, packs in coming:
                loaded = [pack() for pack in packs]
                now = sum(each.total for each in traffic)
                yield self._hand_over(step, mine, loaded, time.perf_counter() - started, now - read, count)
                read, started = now, time.perf_counter()

    def _in_turn(self, cursor: Cursor | None, reader: PlacesReader) -> Iterator[_Coming]:
        for group in self._groups(cursor, reader, wait=True):
            for step, work in group:
                yield step, [one.pack for one in work], [partial(self._load, one) for one in work]

    def _in_advance(self, cursor: Cursor | None, reader: PlacesReader, stack: ExitStack) -> Iterator[_Coming]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fovea-loader")
        coming: queue.SimpleQueue[_Coming | BaseException | None] = queue.SimpleQueue()
        room, ended = threading.Semaphore(max(1, self.ahead)), threading.Event()

        def produce() -> None:
            try:
                for group in self._groups(cursor, reader, wait=False):
                    for step, work in group:
                        room.acquire()
                        if ended.is_set():
                            return
                        coming.put((step, [one.pack for one in work], [pool.submit(self._load, one).result for one in work]))
                coming.put(None)
            except BaseException as error:  # it is raised where the steps are waited for
                coming.put(error)

        def end() -> None:
            ended.set()
            room.release()
            producer.join()
            pool.shutdown(wait=True, cancel_futures=True)

        producer = threading.Thread(target=produce, name="fovea-loader-reads", daemon=True)
        producer.start()
        stack.callback(end)
        while (found := coming.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            room.release()
            yield found

    def _groups(self, cursor: Cursor | None, reader: PlacesReader, wait: bool) -> Iterator[list[tuple[PlannedStep, list[_Work]]]]:
        """`ahead` steps at a time, their samples on their way, sorted and joined."""
        planned, whole = self.plan.steps(cursor), dict[int, list[int]]()
        while group := list(islice(planned, max(1, self.ahead))):
            near = range(group[0].window, min(group[-1].window + 2, len(self.plan.windows)))
            if reader.caches and set(near) != set(whole):
                node = self.node or Node((self.rank,))
                whole = {w: whole[w] if w in whole else whole_shards(self.plan, w, node, self.world, reader) for w in near}
                reader.want_whole([shard for shards in whole.values() for shard in shards], wait)
            mine = [[step.packs[p] for p in deal([pack.cost for pack in step.packs], self.world)[self.rank]] for step in group]
            tables = [[self.plan.items_of(pack) for pack in packs] for packs in mine]
            places = [[places_of(reader, table) for table in row] for row in tables]
            fetched = reader.fetch([place for row in places for found in row for place in found])
            yield [
                (step, [_Work(*one, fetched) for one in zip(packs, items, at, strict=True)])
                for step, packs, items, at in zip(group, mine, tables, places, strict=True)
            ]

    def _hand_over(self, step: PlannedStep, mine: list[Pack], packs: list[_Loaded], wait: float, read: int, count: SkipCount) -> LoadedStep:
        shards = self.dataset.manifest.shards
        lost = [(skipped, shards[shard].path) for pack in packs for skipped, shard in pack.lost]
        for one, _ in lost:
            name = one.name
            log.warning("step %d: %s/%s/%d left its pack: %s: %s", step.number, name.uid, name.task, name.n, one.kind, one.reason)
            if self.skipped is not None:
                self.skipped(name.uid, name.task, name.n, name.source, one.kind, one.reason, step.number)
        count.note([shards[shard].path for pack in packs for shard in pack.asked], lost)
        batches, used, cost = [pack.batch for pack in packs], sum(pack.used for pack in packs), sum(pack.cost for pack in mine)
        return LoadedStep(step.window, step.step, step.number, batches, step.after, wait, read, used, cost, len(lost))

    def _load(self, work: _Work) -> _Loaded:
        sizes = self.plan.sizes_of(work.pack)
        raws = {place: read_or_damage(work.fetched, place, "restore the tar, then resume") for place in dict.fromkeys(work.places)}
        items: list[LoadedItem] = []
        lost: list[tuple[Skipped, int]] = []
        used: dict[tuple[Place, int], int] = {}
        for number, (row, place) in enumerate(zip(work.items.to_pylist(), work.places, strict=True)):
            name, raw = ItemName(row["uid"], row["task"], row["n"], row["repeat"], row["source"]), raws[place]
            if isinstance(raw, ShardError):
                lost.append((Skipped(name, str(raw)), place.shard))
                continue
            item = find_item(self.dataset.record(raw)["items"], name)
            used[place, -1] = len(raw.json)
            used |= {(place, part.media): len(raw.media[part.media]) for m in item.messages for part in m.content if part.type != "text"}
            try:
                measured, compress = row[self.profile.name], self.plan.config.compress
                loaded = load_item(name, item, raw, measured, self.profile, self.tokenizer, compress=compress, limits=self.limits)
            except SampleError as error:
                lost.append((Skipped(name, str(error), error.kind), place.shard))
                continue
            _must_be_as_planned(loaded, sizes, number, int(measured["patches"]), self.profile.name)
            items.append(loaded)
        asked = tuple(place.shard for place in work.places)
        batch = collate(items, self.profile.patch, [one for one, _ in lost], self.plan.config.savings)
        return _Loaded(batch, sum(used.values()), asked, tuple(lost))


def _must_be_as_planned(item: LoadedItem, sizes: ItemSizes, row: int, patches: int, profile: str) -> None:
    """`patches`: of all its media, as measured; how many of them are encoded is for the pack to say."""
    found = (len(item.input_ids), int((item.labels != IGNORED).sum()), sum(len(m.pixels) for m in item.media))
    planned = (int(sizes.tokens[row]), int(sizes.labelled[row]), patches)
    if found != planned:
        raise ProfileError(
            f"{item.name.uid}/{item.name.task}/{item.name.n} has {found} tokens, labelled tokens and patches, planned were {planned}: "
            f"the dataset was measured under another profile {profile!r}, tokenizer or version; measure it again"
        )

"""What a model is asked of a split: items read and decoded as the loader does, each assistant's turn a question with its gold answers."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ConfigError, ProfileError, SampleError, ShardError
from shards.items import Item, Message, Part
from shards.media import Limits
from shards.sample import digest_of
from shards.sources.texts import look_up
from training.census import in_order
from training.collate import ItemName, LoadedItem
from training.generate import Prompt, prompts_of
from training.index_source import DatasetIndex
from training.load_item import find_item, load_item, places_of, read_or_damage
from training.savings import EXACT, Savings
from training.scores import options_of

if TYPE_CHECKING:
    from shards.places import PlacesReader
    from shards.profile import Profile
    from shards.reader import Dataset, RawSample

log = logging.getLogger("fovea")

INDEXES = 64  # of shards, held for reading: neighbours in length lie in many shards where a few items of each are asked
_ROWS = 4096  # of small shards that are put in order together, so that batches of like length are full
_ASKING = ("user", "stream")  # who is answered: in a stream also what is to be seen
_THREADS = 4  # that read the indexes when items are chosen


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of an item.

    turn    the how manieth answer of its conversation, from 0.     source  of the sample.
    asked   the user's words since the answer before, media as `<image>` and `<video>`; frames that came in as `<video until 3.0 s>`.
    golds   right answers: the item's own, then those of the field that `gold` names.     options  letter → text, or nothing.
    prompt  everything before the answer, the gold answers of earlier turns among it.
    """

    name: ItemName
    turn: int
    source: str
    asked: str
    golds: tuple[str, ...]
    options: Mapping[str, str]
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that could not be read or decoded: it has no answer and no score, and is told."""

    uid: str
    task: str
    n: int
    source: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which of a split's items are asked. total: how many.   rows  of each shard's index (by its path), int64, rising; None: all items."""

    split: str
    total: int
    rows: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Turns rows of a dataset's index into questions, a shard at a time: nothing here grows with the dataset or the split.

    reader  of the dataset, which whoever made it closes.
    gold  task → field of the sample's record that holds more right answers ("" = every task): a text, a list of texts, or with several
          turns a list of them for each.
    savings  what the encoder need not compute for an answer, as in training.
    """

    reader: PlacesReader
    profile: Profile
    tokenizer: Any
    compress: bool
    gold: Mapping[str, str]
    limits: Limits
    savings: Savings = EXACT

    @property
    def dataset(self) -> Dataset:
        return self.reader.dataset

    def choose(self, split: str, items: int | None) -> Chosen:
        """All items of the split; with `items`, so many of each task, chosen by a hash of their names, wherever they lie.

        Raises ShardError where the dataset has no such split, and ProfileError where it was not measured under the profile.
        """
        held = self.dataset.manifest.profiles.get(self.profile.name, {}).get("digest")
        if held != self.profile.digest:
            raise ProfileError(
                f"the dataset's profile {self.profile.name!r} has digest {held}, the model's {self.profile.digest}: measure the dataset "
                "under the model's profile and tokenizer (recipe step `measure`)"
            )
        source, columns = DatasetIndex(self.dataset, split), ["uid", "task", "n", f"{self.profile.name}.text_tokens"]
        shards = source.shards
        total, best = 0, dict[str, list[tuple[str, int, int]]]()
        for place, table in enumerate(in_order(partial(_asked_of, source, columns), shards, _THREADS)):
            if items is None:
                self._refuse_unmeasured(table)
                total += len(table)
            else:
                _keep_first(best, place, table, items)
        if items is None:
            return Chosen(split, total)
        rows: dict[str, list[int]] = {}
        for place, row in sorted((place, row) for found in best.values() for _, place, row in found):
            rows.setdefault(shards[place], []).append(row)
        return Chosen(split, sum(map(len, rows.values())), {shard: np.array(found, np.int64) for shard, found in rows.items()})

    def tables(self, chosen: Chosen) -> Iterator[pa.Table]:
        """The chosen items of a shard, or of several small ones, at a time; most tokens first in each.

        Columns: uid, task, n, source, shard (its path), row (int64, in its index), the profile's measure struct, tokens.
        """
        source, columns = DatasetIndex(self.dataset, chosen.split), ["uid", "task", "n", "source", self.profile.name]
        held: list[pa.Table] = []
        for shard in source.shards if chosen.rows is None else chosen.rows:
            table = _asked_of(source, columns, shard)
            if chosen.rows is not None:
                table = table.filter(pc.is_in(table["row"], pa.array(chosen.rows[shard])))
            self._refuse_unmeasured(table)
            held.append(table.append_column("shard", pa.array([shard] * len(table), pa.string())))
            if sum(map(len, held)) >= _ROWS:
                yield self._in_order(held)
                held = []
        if any(map(len, held)):
            yield self._in_order(held)

    def _refuse_unmeasured(self, table: pa.Table) -> None:
        measured = table[self.profile.name]
        if measured.null_count:
            row = table.select(["uid", "task", "n"]).filter(measured.is_null()).slice(0, 1).to_pylist()[0]
            raise ProfileError(f"{row['uid']}/{row['task']}/{row['n']} is not measured under profile {self.profile.name!r}")

    def _in_order(self, tables: Sequence[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables)
        measured = table[self.profile.name]
        visual = pc.struct_field(measured, "kept_tokens" if self.compress else "visual_tokens")
        table = table.append_column("tokens", pc.add(pc.struct_field(measured, "text_tokens"), visual))
        return table.sort_by([("tokens", "descending"), ("uid", "ascending"), ("task", "ascending"), ("n", "ascending")])

    def ask(self, rows: pa.Table) -> tuple[list[Question], list[Failed], int]:
        """(questions of these rows (of `tables`), items that failed, items in which nobody asks anything).

        Raises ProfileError for an item whose tokens are not those that were measured, ShardError for a shard that is gone or cut.
        """
        places = places_of(self.reader, rows)
        fetched = self.reader.fetch(places)
        raws = {place: read_or_damage(fetched, place, "restore the tar") for place in dict.fromkeys(places)}
        questions: list[Question] = []
        failed: list[Failed] = []
        unasked = 0
        for row, place in zip(rows.to_pylist(), places, strict=True):
            name, raw = ItemName(row["uid"], row["task"], row["n"]), raws[place]
            try:
                if isinstance(raw, ShardError):
                    raise SampleError(str(raw))
                found = self._questions(name, raw, row)
            except SampleError as error:
                kind = "shard" if isinstance(raw, ShardError) else error.kind
                failed.append(Failed(name.uid, name.task, name.n, row["source"], kind, str(error)))
                log.warning("%s/%s/%d is not asked: %s: %s", name.uid, name.task, name.n, kind, error)
                continue
            questions += found
            unasked += not found
        return questions, failed, unasked

    def _questions(self, name: ItemName, raw: RawSample, row: Mapping[str, Any]) -> list[Question]:
        record = self.dataset.record(raw)
        item = find_item(record["items"], name)
        turns = [number for number, message in enumerate(item.messages) if message.role == "assistant"]
        if not any(message.role in _ASKING for message in item.messages):
            return []
        prompts = prompts_of(self._loaded(name, item, raw, row), self.tokenizer)
        if len(prompts) != len(turns):
            raise SampleError(f"{len(turns)} answers, {len(prompts)} of them text alone: an answer with a medium in it is not asked for")
        more = self._more(name, record, len(turns))
        questions = []
        for number, (turn, prompt) in enumerate(zip(turns, prompts, strict=True)):
            before = item.messages[(turns[number - 1] + 1 if number else 0) : turn]
            if not any(message.role in _ASKING for message in before):
                continue
            asked = "\n".join(_text(message) for message in before)
            golds = tuple(dict.fromkeys([_text(item.messages[turn]), *more[number]]))
            questions.append(Question(name, number, row["source"], asked, golds, options_of(asked), prompt))
        return questions

    def _loaded(self, name: ItemName, item: Item, raw: RawSample, row: Mapping[str, Any]) -> LoadedItem:
        measured = row[self.profile.name]
        loaded = load_item(name, item, raw, measured, self.profile, self.tokenizer, compress=self.compress, limits=self.limits)
        if len(loaded.input_ids) != row["tokens"]:
            raise ProfileError(
                f"{name.uid}/{name.task}/{name.n} has {len(loaded.input_ids)} tokens, measured were {row['tokens']}: the dataset was "
                f"measured under another profile {self.profile.name!r}, tokenizer or version; measure it again"
            )
        return loaded

    def _more(self, name: ItemName, record: Mapping[str, Any], turns: int) -> list[list[str]]:
        """Further gold answers of each turn."""
        field = self.gold.get(name.task, self.gold.get("", ""))
        value = look_up(record["texts"].get("meta", {}), field) if field else None
        if value is None:
            return [[] for _ in range(turns)]
        for_each = [value] if turns == 1 and _is_texts(value) else value
        if not isinstance(for_each, list) or len(for_each) != turns or not all(_is_texts(texts) for texts in for_each):
            raise ConfigError(
                f"sample {name.uid}: its field {field!r} holds no gold answers for {turns} turns; it must be a text, a list of texts, "
                "or a list of such for each turn"
            )
        return [[texts] if isinstance(texts, str) else list(texts) for texts in for_each]


def _asked_of(source: DatasetIndex, columns: Sequence[str], shard: str) -> pa.Table:
    """The rows of a shard's index that have an item, with their numbers (row)."""
    table = source.read(shard, columns)
    table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))
    return table.filter(pc.field("task") != "")


def _keep_first(best: dict[str, list[tuple[str, int, int]]], place: int, table: pa.Table, items: int) -> None:
    """Adds the rows of the `place`-th shard to each task's first `items` (hash of the name, place, row)."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for uid, task, n, row in zip(*(table[column].to_pylist() for column in ("uid", "task", "n", "row")), strict=True):
        found.setdefault(task, []).append((digest_of(uid, task, n), place, row))
    for task, more in found.items():
        best[task] = heapq.nsmallest(items, chain(best.get(task, ()), more))


def _text(message: Message) -> str:
    return "\n".join(part.text if part.type == "text" else _named(part) for part in message.content)


def _named(part: Part) -> str:
    return f"<{part.type}>" if part.until is None else f"<{part.type} until {part.until:.1f} s>"


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value))

"""What a model is asked of a split: items read and decoded as the loader does, each assistant's turn a question with its gold answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from shards.chat import MediumTokens, encode_item
from shards.errors import ConfigError, ProfileError, SampleError, ShardError
from shards.items import Item, Message
from shards.measure import load_medium
from shards.media import Limits
from shards.sample import digest_of
from shards.sources.texts import look_up
from shards.tokens import kept_by_frame
from training.collate import ItemName, LoadedItem, LoadedMedium
from training.generate import Prompt, prompts_of
from training.scores import options_of

if TYPE_CHECKING:
    import pyarrow as pa

    from shards.profile import Profile
    from shards.reader import Dataset, RawSample

log = logging.getLogger("fovea")


@dataclass(frozen=True, slots=True)
class Question:
    """One turn of an item.

    turn    the how manieth answer of its conversation, from 0.     source  of the sample.
    asked   the user's words since the answer before, media as `<image>` and `<video>`.
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
class Asker:
    """Turns rows of a dataset's index into questions.

    gold  task → field of the sample's record that holds more right answers ("" = every task): a text, a list of texts, or with several
          turns a list of them for each.
    """

    dataset: Dataset
    profile: Profile
    tokenizer: Any
    compress: bool
    gold: Mapping[str, str]
    limits: Limits

    def rows(self, split: str, items: int | None) -> pa.Table:
        """Rows of the split's items, most tokens first; with `items`, so many of each task, chosen by a hash of their names.

        Raises ShardError where the dataset has no such split, and ProfileError where it was not measured under the profile.
        """
        held = self.dataset.manifest.profiles.get(self.profile.name, {}).get("digest")
        if held != self.profile.digest:
            raise ProfileError(
                f"the dataset's profile {self.profile.name!r} has digest {held}, the model's {self.profile.digest}: measure the dataset "
                "under the model's profile and tokenizer (recipe step `measure`)"
            )
        index = self.dataset.index(["uid", "task", "n", "source", "shard", self.profile.name], split)
        index = index.filter((pc.field("task") != "") & (pc.field("task") != "streaming"))
        index = _of_each_task(index, items) if items is not None else index
        measured = index[self.profile.name]
        if measured.null_count:
            row = index.filter(measured.is_null()).slice(0, 1).to_pylist()[0]
            raise ProfileError(f"{row['uid']}/{row['task']}/{row['n']} is not measured under profile {self.profile.name!r}")
        visual = pc.struct_field(measured, "kept_tokens" if self.compress else "visual_tokens")
        index = index.append_column("tokens", pc.add(pc.struct_field(measured, "text_tokens"), visual))
        return index.sort_by([("tokens", "descending"), ("uid", "ascending"), ("task", "ascending"), ("n", "ascending")])

    def ask(self, rows: pa.Table) -> tuple[list[Question], list[Failed], int]:
        """(questions of these rows (of `rows`), items that failed, items in which nobody asks anything).

        Raises ProfileError for an item whose tokens are not those that were measured, ShardError for a shard that is gone or cut.
        """
        raws = self._read(list(dict.fromkeys(rows["uid"].to_pylist())))
        questions: list[Question] = []
        failed: list[Failed] = []
        unasked = 0
        for row in rows.to_pylist():
            name, raw = ItemName(row["uid"], row["task"], row["n"]), raws[row["uid"]]
            try:
                if isinstance(raw, ShardError):
                    self._refuse_lost_shard(row, raw)
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
        item = next((i for i in record["items"] if (i.task, i.n) == (name.task, name.n)), None)
        if item is None:
            raise ShardError(
                f"sample {name.uid}: the index lists item {name.task}/{name.n}, its JSON member does not; publish the index again"
            )
        turns = [number for number, message in enumerate(item.messages) if message.role == "assistant"]
        if not any(message.role == "user" for message in item.messages):
            return []
        prompts = prompts_of(self._loaded(name, item, raw, row), self.tokenizer)
        if len(prompts) != len(turns):
            raise SampleError(f"{len(turns)} answers, {len(prompts)} of them text alone: an answer with a medium in it is not asked for")
        more = self._more(name, record, len(turns))
        questions = []
        for number, (turn, prompt) in enumerate(zip(turns, prompts, strict=True)):
            before = item.messages[(turns[number - 1] + 1 if number else 0) : turn]
            if not any(message.role == "user" for message in before):
                continue
            asked = "\n".join(_text(message) for message in before)
            golds = tuple(dict.fromkeys([_text(item.messages[turn]), *more[number]]))
            questions.append(Question(name, number, row["source"], asked, golds, options_of(asked), prompt))
        return questions

    def _loaded(self, name: ItemName, item: Item, raw: RawSample, row: Mapping[str, Any]) -> LoadedItem:
        measured = row[self.profile.name]
        places = [(part.type, part.media) for message in item.messages for part in message.content if part.type != "text"]
        media: list[LoadedMedium] = []
        tokens: list[MediumTokens] = []
        for (kind, place), facts in zip(places, measured["media"], strict=True):
            loaded = load_medium(raw.media[place], facts, kind, self.profile, self.limits)
            keep = loaded.mask if self.compress else None
            media.append(LoadedMedium(kind == "video", *loaded.grid, loaded.merge, loaded.patches, keep))
            tokens.append(MediumTokens(kind, kept_by_frame(keep, *loaded.grid, loaded.merge), facts["times"]))
        encoded = encode_item(item, self.tokenizer, tokens)
        if len(encoded.input_ids) != row["tokens"]:
            raise ProfileError(
                f"{name.uid}/{name.task}/{name.n} has {len(encoded.input_ids)} tokens, measured were {row['tokens']}: the dataset was "
                f"measured under another profile {self.profile.name!r}, tokenizer or version; measure it again"
            )
        return LoadedItem(name, encoded.input_ids, encoded.labels, tuple(media))

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

    def _read(self, uids: list[str]) -> dict[str, RawSample | ShardError]:
        try:
            return {raw.uid: raw for raw in self.dataset.read(uids)}
        except ShardError as error:
            if len(uids) == 1:
                return {uids[0]: error}
        return {uid: raw for one in uids for uid, raw in self._read([one]).items()}  # one damaged member must not cost the others

    def _refuse_lost_shard(self, row: Mapping[str, Any], found: ShardError) -> None:
        store = self.dataset.store
        for shard in self.dataset.manifest.shards:
            if shard.name == row["shard"] and not (store.exists(shard.path) and store.size(shard.path) == shard.bytes):
                raise ShardError(f"{store.url(shard.path)} is gone or cut; restore the tar ({found})") from found


def _of_each_task(index: pa.Table, items: int) -> pa.Table:
    taken: dict[str, int] = {}
    chosen = []
    names = zip(*(index[column].to_pylist() for column in ("uid", "task", "n")), strict=True)
    for _, number, task in sorted((digest_of(*name), number, name[1]) for number, name in enumerate(names)):
        if taken.get(task, 0) < items:
            taken[task] = taken.get(task, 0) + 1
            chosen.append(number)
    return index.take(chosen)


def _text(message: Message) -> str:
    return "\n".join(part.text if part.type == "text" else f"<{part.type}>" for part in message.content)


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value))

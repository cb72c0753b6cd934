"""An item of the index as tensors: its sample's place, what was read there, the item in the record, its media as they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from shards.chat import MediumTokens, encode_item
from shards.errors import ShardError
from shards.items import shown
from shards.measure import load_medium
from shards.places import Fetched, Place, PlacesReader
from shards.tokens import kept_by_frame
from training.collate import ItemName, LoadedItem, LoadedMedium

if TYPE_CHECKING:
    import pyarrow as pa

    from shards.items import Item
    from shards.media import Limits
    from shards.profile import Profile
    from shards.reader import RawSample


def places_of(reader: PlacesReader, rows: pa.Table) -> tuple[Place, ...]:
    """The place of each row's sample. rows: shard, row (int64, in that shard's index), uid. Raises ShardError as PlacesReader.find."""
    if not rows.num_rows:
        return ()
    shard, sample = reader.find(rows["shard"].to_pylist(), rows["row"].to_numpy(), rows["uid"].to_pylist())
    return tuple(map(Place, shard.tolist(), sample.tolist()))


def read_or_damage(fetched: Fetched, place: Place, mend: str) -> RawSample | ShardError:
    """The sample, or what is wrong with its bytes: a damaged member is one item's affair.

    Raises ShardError for a tar that is gone or cut, which is not: mended, the run goes on where it stopped. mend: what to do.
    """
    try:
        return fetched.read(place)
    except ShardError as error:
        dataset = fetched.reader.dataset
        shard, store = dataset.manifest.shards[place.shard], dataset.store
        if not (store.exists(shard.path) and store.size(shard.path) == shard.bytes):
            raise ShardError(f"{store.url(shard.path)} is gone or cut; {mend} ({error})") from error
        return error


def find_item(items: Sequence[Item], name: ItemName) -> Item:
    """The item of a record that an index row names. Raises ShardError where there is none."""
    for item in items:
        if (item.task, item.n) == (name.task, name.n):
            return item
    raise ShardError(f"sample {name.uid}: the index lists item {name.task}/{name.n}, its JSON member does not; publish the index again")


def load_item(
    name: ItemName,
    item: Item,
    raw: RawSample,
    measured: Mapping[str, Any],
    profile: Profile,
    tokenizer: Any,
    *,
    compress: bool,
    limits: Limits,
) -> LoadedItem:
    """The item's tokens, and its media decoded as they were measured (shards.index.MEASURE_TYPE). Raises SampleError for media that do not
    decode, or not to what was measured."""
    media: list[LoadedMedium] = []
    tokens: list[MediumTokens] = []
    for part, facts in zip(shown(item), measured["media"], strict=True):
        kind: Literal["image", "video"] = "video" if part.type == "video" else "image"
        loaded = load_medium(raw.media[part.media], facts, kind, profile, limits, part.until)
        keep = loaded.mask if compress else None
        media.append(LoadedMedium(kind == "video", *loaded.grid, loaded.merge, loaded.patches, keep))
        tokens.append(MediumTokens(kind, kept_by_frame(keep, *loaded.grid, loaded.merge), facts["times"]))
    encoded = encode_item(item, tokenizer, tokens)
    return LoadedItem(name, encoded.input_ids, encoded.labels, tuple(media))

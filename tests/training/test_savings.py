"""What a plan counts for the encoder is what a pack really encodes: from a lossless clip through measure, index, loading and collation."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards.chat import train_tokenizer
from shards.index import MEASURE_TYPE, measure_type
from shards.items import Item, Message, Part
from shards.measure import Medium, measure_item
from shards.media import Limits
from shards.profile import Profile
from tests.shards.slides import slide_clip
from training.collate import ItemName, LoadedItem, PackBatch, collate
from training.cost import ItemSizes, item_sizes, pack_features
from training.load_item import load_item
from training.measured import batch_features
from training.savings import Savings

PROFILE = Profile("p", "-", max_visual_tokens=120, threshold=4.0)
ALL = [Savings(*choices) for choices in product((True, False), repeat=3)]
Loaded = dict[bool, LoadedItem]


def slides(pattern: str, seed: int, size: tuple[int, int] = (56, 84)) -> bytes:
    """A frame for each letter. Neighbouring letters differ in one corner of a shared picture, so that compression drops most of it."""
    random = np.random.default_rng(seed)
    ground = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    of = {}
    for letter in sorted(set(pattern)):
        of[letter] = ground.copy()
        of[letter][: size[0] // 2, : size[1] // 3] = random.integers(0, 256, (size[0] // 2, size[1] // 3, 3))
    return slide_clip([of[letter] for letter in pattern])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[Loaded]]:
    """(MEASURE_TYPE of each item, the items as loaded with and without compression): two clips with equal frames, one without, a text."""
    tokenizer = train_tokenizer(["What happens here?", "A slide is shown."], tmp_path_factory.mktemp("words"), 300)
    clips = [slides("aaabbbbaac", 1), slides("ab", 2), slides("abcabc", 3, (84, 56))]
    facts, loaded = [], []
    for number, data in enumerate([*clips, None]):
        parts = () if data is None else (Part("video", media=0),)
        item = Item(
            "vqa", 0, (Message("user", (*parts, Part("text", text="What?"))), Message("assistant", (Part("text", text="A slide."),)))
        )
        media = [] if data is None else [Medium("video", data, Limits())]
        facts.append(measure_item(item, media, tokenizer, PROFILE))
        raw: Any = type("Raw", (), {"media": () if data is None else (data,)})()
        name = ItemName(str(number), "vqa", 0)
        loaded.append({c: load_item(name, item, raw, facts[-1], PROFILE, tokenizer, compress=c, limits=Limits()) for c in (True, False)})
    return facts, loaded


def sizes_of(facts: list[dict[str, Any]], compress: bool, savings: Savings, type_: pa.DataType = MEASURE_TYPE) -> ItemSizes:
    return item_sizes(pa.table({PROFILE.name: pa.array(facts, type_)}), PROFILE.name, compress, savings)


def test_measure_counts_equal_frames(measured: tuple[list[dict[str, Any]], list[Loaded]]) -> None:
    media = [m for fact in measured[0] for m in fact["media"]]
    assert [(m["t"], m["distinct"]) for m in media] == [(10, 3), (2, 2), (6, 3)]
    for medium, kept in zip(media, (fact["kept_tokens"] for fact in measured[0]), strict=False):
        assert medium["distinct_kept"] <= kept < medium["t"] * medium["h"] * medium["w"] // 4
    assert media[0]["distinct_kept"] < measured[0][0]["kept_tokens"], "a still frame keeps its first block, which one before it keeps too"
    assert media[1]["distinct_kept"] == measured[0][1]["kept_tokens"]


@pytest.mark.parametrize("savings", ALL)
@pytest.mark.parametrize("compress", [True, False])
def test_a_plan_counts_what_a_pack_encodes(measured: tuple[list[dict[str, Any]], list[Loaded]], compress: bool, savings: Savings) -> None:
    facts, loaded = measured
    if savings.prune and not compress:
        savings = Savings(savings.reuse, savings.mask_first)  # a config refuses it; nothing is dropped
    for chosen in ([0, 1, 2, 3], [0], [3]):
        batch: PackBatch = collate([loaded[n][compress] for n in chosen], PROFILE.patch, savings=savings)
        planned = pack_features(sizes_of([facts[n] for n in chosen], compress, savings))
        found = batch_features(batch)
        if savings.prune and savings.reuse:
            assert (found <= planned).all()
            assert found[1] >= 0.5 * planned[1]
        else:
            assert found.tolist() == planned.tolist()
        assert batch.counts.patches == found[1]
        assert batch.counts.all_patches == sum(facts[n]["patches"] for n in chosen)


def test_each_saving_saves(measured: tuple[list[dict[str, Any]], list[Loaded]]) -> None:
    facts, _ = measured
    whole, reused, masked, pruned = (
        pack_features(sizes_of(facts, True, s))
        for s in (Savings(False, False), Savings(True, False), Savings(False, True), Savings(prune=True))
    )
    media = [m for fact in facts for m in fact["media"]]
    assert reused[1] == sum(m["distinct"] * m["h"] * m["w"] for m in media) < 0.5 * whole[1]
    assert (masked[1], masked[3] < whole[3]) == (whole[1], True)
    assert pruned[1] < whole[1] / 2
    assert pruned[2] < whole[2] / 2
    assert (whole[4:] == pruned[4:]).all(), "the language model sees the same tokens"


def test_an_index_of_the_first_format_has_no_equal_frames_that_are_known(measured: tuple[list[dict[str, Any]], list[Loaded]]) -> None:
    facts, _ = measured
    old = measure_type("fovea-index/1")
    for compress, savings in product((True, False), ALL):
        if compress or not savings.prune:
            known = sizes_of(facts, compress, Savings(False, savings.mask_first, savings.prune))
            before = sizes_of(facts, compress, savings, old)
            assert all((getattr(known, name) == getattr(before, name)).all() for name in ItemSizes.__slots__)

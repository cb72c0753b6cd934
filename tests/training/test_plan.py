"""The order of an epoch: every item once, within bounds, the same for any ranks, another for another epoch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from tests.training.fixtures import PROFILE, Fact, index_of
from tests.training.plan_helpers import CONFIG, names_of, plan_of, uids
from training.cost import CostModel, item_sizes
from training.flops import model_flops
from training.mixture import Mixture
from training.packing import deal, pack_items
from training.plan import make_plan
from training.plan_parts import Cursor, Pack, PlanConfig
from training.savings import Savings
from training.steps import capacities, compose

facts_of = st.lists(
    st.tuples(st.integers(1, 220), st.integers(0, 6), st.sampled_from([2, 4, 8, 10]), st.sampled_from([0.25, 1.0]), st.integers(0, 6)),
    min_size=1,
    max_size=80,
).map(lambda rows: [Fact(f"i{i}", text=x, t=t, side=s, kept=k, shard=f"{d}.tar") for i, (x, t, s, k, d) in enumerate(rows)])


def many(count: int = 300) -> list[Fact]:
    return [Fact(f"i{i}", text=10 + i * 37 % 90, t=i % 4, side=4, shard=f"{i % 9}.tar") for i in range(count)]


@given(facts=facts_of, per_step=st.integers(1, 5), window=st.integers(1, 4), compress=st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_item_exactly_once_and_within_bounds(facts: list[Fact], per_step: int, window: int, compress: bool) -> None:
    config = replace(CONFIG, packs=per_step, window_shards=window, compress=compress)
    index = index_of(facts)
    sizes = item_sizes(index, PROFILE, compress)
    long = (sizes.tokens > config.seq_tokens) | (sizes.patches > config.pack_patches)
    if long.all():
        with pytest.raises(ConfigError, match="too long"):
            make_plan(index, Mixture(), config, index_digest="v1")
        return
    plan = make_plan(index, Mixture(), config, index_digest="v1")
    steps = list(plan.steps())
    packs = [pack for step in steps for pack in step.packs]
    uid = index["uid"].to_pylist()
    trained = Counter(name[0] for pack in packs for name in names_of(plan, pack))
    assert set(trained.values()) == {1}
    assert set(trained) == {uid[i] for i in np.flatnonzero(~long)}
    assert plan.laid.dropped == long.sum()
    assert {(d.uid, d.tokens, d.patches) for d in plan.laid.listed} == {
        (index["uid"][int(i)].as_py(), sizes.tokens[i], sizes.patches[i]) for i in np.flatnonzero(long)
    }
    for pack in packs:
        rows = [uid.index(name[0]) for name in names_of(plan, pack)]
        assert pack.items == len(rows)
        assert pack.tokens == sizes.tokens[rows].sum() == plan.sizes_of(pack).tokens.sum() <= config.seq_tokens
        assert pack.patches == sizes.patches[rows].sum() <= config.pack_patches
        assert pack.cost == pytest.approx(plan.cost.of(plan.sizes_of(pack)).sum())
    assert [step.number for step in steps] == list(range(plan.steps_total))
    assert all(len(step.packs) == per_step for step in steps)
    empty = [not pack.items for pack in packs]
    assert sum(empty) < per_step
    assert empty == sorted(empty)
    report = plan.report()
    assert (report.items, report.packs, report.empty_packs) == (len(trained), len(packs) - sum(empty), sum(empty))


@given(facts=facts_of, seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_index_rows_does_not_matter(facts: list[Fact], seed: int, order: object) -> None:
    facts = [replace(fact, text=min(fact.text, 100), t=0) for fact in facts]
    shuffled = list(facts)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = plan_of(facts, replace(CONFIG, seed=seed)), plan_of(shuffled, replace(CONFIG, seed=seed))
    assert uids(one, list(one.steps())) == uids(other, list(other.steps()))


@given(facts=facts_of, per_step=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_any_cursor_continues_the_same_sequence(facts: list[Fact], per_step: int) -> None:
    facts = [replace(fact, text=min(fact.text, 100), t=0) for fact in facts]
    config = replace(CONFIG, packs=per_step, window_shards=1)
    whole = list(plan_of(facts, config).steps())
    for done, step in enumerate(whole, start=1):
        fresh = plan_of(facts, config)
        cursor = Cursor(**json.loads(json.dumps(asdict(step.after))))
        assert list(fresh.steps(cursor)) == whole[done:]
        assert fresh.position(cursor) == done
        here = Cursor(fresh.digest, step.window, step.step)
        assert next(fresh.steps(here)) == step


def test_windows_share_no_shards_and_packs_stay_within_their_window() -> None:
    plan = plan_of(many())
    assert sorted(name for window in plan.windows for name in window) == sorted({f"{i}.tar" for i in range(9)})
    assert [len(window) for window in plan.windows] == [2, 2, 2, 2, 1]
    for number, names in enumerate(plan.windows):
        assert {shard for pack in plan.window(number).packs for shard in plan.items_of(pack)["shard"].to_pylist()} <= set(names)


def test_a_window_can_be_planned_alone() -> None:
    assert plan_of(many()).window(3) == [plan_of(many()).window(n) for n in range(5)][3]


@pytest.mark.parametrize("window", [2, 9])
def test_epochs_and_seeds_give_other_orders_of_the_same_items(window: int) -> None:
    orders = []
    config = replace(CONFIG, window_shards=window)
    for other in (config, replace(config, epoch=1), replace(config, seed=7)):
        plan = plan_of(many(), other)
        orders.append([u for step in uids(plan, list(plan.steps())) for pack in step for u in pack])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    agree = [sum(a == b for a, b in zip(orders[0], other, strict=True)) for other in orders[1:]]
    assert max(agree) < 30  # of 300


def test_the_digest_changes_with_everything_that_changes_the_order() -> None:
    facts = many(40)
    index = index_of(facts)
    variants = [replace(CONFIG, **{"packs": None} if name == "samples" else {}, **{name: value}) for name, value in _OTHER_VALUES.items()]
    digests = [make_plan(index, Mixture(), config, index_digest="v1").digest for config in [CONFIG, *variants]]
    digests.append(make_plan(index, Mixture(), CONFIG, index_digest="v2").digest)
    digests += [make_plan(index, m, CONFIG, index_digest="v1").digest for m in (Mixture(where="true"), Mixture(tasks={"text": 1}))]
    assert len(set(digests)) == len(digests)
    assert set(_OTHER_VALUES) == set(PlanConfig.__slots__) - {"profile"}
    assert make_plan(index, Mixture(), CONFIG, index_digest="v1", cost=CostModel(patch=1.0)).digest not in digests
    assert make_plan(index, Mixture(), CONFIG, index_digest="v1", threads=3).digest == digests[0]


_OTHER_VALUES = {
    "compress": False,
    "packs": 5,
    "samples": 7,
    "divisible_by": 2,
    "seq_tokens": 190,
    "pack_patches": 500,
    "seed": 43,
    "epoch": 1,
    "window_shards": 3,
    "too_long": "refuse",
    "savings": Savings(reuse=False),
}


def test_a_cursor_of_another_plan_is_refused() -> None:
    plan = plan_of(many())
    with pytest.raises(ConfigError, match="belongs to plan 00"):
        next(plan.steps(Cursor("00")))
    with pytest.raises(ConfigError, match="outside the plan's 5 windows"):
        next(plan.steps(Cursor(plan.digest, 5, 0)))
    with pytest.raises(ConfigError, match="lies behind window 0"):
        next(plan.steps(Cursor(plan.digest, 0, 10_000)))


def test_long_items_can_be_refused_instead() -> None:
    with pytest.raises(ConfigError, match=r"1 items are too long .* 999 tokens"):
        plan_of([Fact("a", text=999), Fact("b")], replace(CONFIG, too_long="refuse"))


def test_a_dataset_without_items_is_refused() -> None:
    with pytest.raises(ConfigError, match="no items"):
        plan_of([Fact("a", task="")])


def test_packs_are_full() -> None:
    rng = np.random.default_rng(0)
    facts = [Fact(f"i{i}", text=int(x), shard=f"{i % 4}.tar") for i, x in enumerate(rng.integers(20, 900, 4_000))]
    report = plan_of(facts, replace(CONFIG, seq_tokens=2048, pack_patches=9999)).report()
    assert report.fill_tokens > 0.995  # 0.9918 if the emptiest packs of a bucket were not opened again
    facts = [Fact(f"v{i}", text=30, t=int(x), side=8, shard=f"{i % 4}.tar") for i, x in enumerate(rng.integers(1, 16, 2_000))]
    report = plan_of(facts, replace(CONFIG, seq_tokens=2048, pack_patches=2048)).report()
    assert report.fill > 0.95
    assert report.fill == pytest.approx(report.fill_patches, abs=0.02)


def test_packing_leaves_the_order_random() -> None:
    """Long and short items, and items of different shards, are spread over the epoch alike."""
    rng = np.random.default_rng(1)
    facts = [Fact(f"i{i}", text=int(x), shard=f"{i // 500}.tar") for i, x in enumerate(rng.integers(20, 900, 2_000))]
    plan = plan_of(facts, replace(CONFIG, seq_tokens=2048, window_shards=4))
    uid = plan.source.read("0.tar", ["uid"])["uid"].to_pylist()
    packs = [pack for step in plan.steps() for pack in step.packs]
    tokens = np.concatenate([plan.sizes_of(pack).tokens for pack in packs])
    rows = np.array([row + 500 * int(shard[0]) for pack in packs for shard, row in plan.reads_of(pack)])
    assert len(uid) == 500
    when = np.linspace(0, 1, len(rows))
    assert abs(np.corrcoef(when, tokens)[0, 1]) < 0.08
    assert abs(np.corrcoef(when, rows)[0, 1]) < 0.08


def test_repeats_of_an_item_are_spread_over_the_epoch() -> None:
    facts = [Fact("rare", task="vqa"), *(Fact(f"t{i}", shard=f"{i % 3}.tar") for i in range(199))]
    plan = plan_of(facts, replace(CONFIG, window_shards=9, packs=1), Mixture(tasks={"vqa": 1, "text": 1}))
    rare = [sum(name[1] == "vqa" for name in names_of(plan, step.packs[0])) for step in plan.steps()]
    assert sum(rare) == 100
    assert sum(n > 0 for n in rare) == len(rare)


def test_repeats_of_an_item_are_spread_over_windows_too() -> None:
    facts = [Fact("rare", task="vqa"), *(Fact(f"t{i}", shard=f"{i % 12}.tar") for i in range(600))]
    plan = plan_of(facts, replace(CONFIG, window_shards=1, packs=1), Mixture(tasks={"vqa": 1, "text": 9}))
    rare = [name for step in plan.steps() for name in names_of(plan, step.packs[0]) if name[1] == "vqa"]
    windows = Counter(step.window for step in plan.steps() for name in names_of(plan, step.packs[0]) if name[1] == "vqa")
    assert sorted(repeat for *_, repeat in rare) == list(range(60)), "each of them once"
    assert sorted(windows.values()) == [15, 15, 15, 15]
    assert {(b - a) % 12 for a, b in itertools.pairwise(sorted(windows))} == {3}, "far from each other"


@given(costs=st.lists(st.floats(0, 1e6), min_size=1, max_size=24), ranks=st.integers(1, 8))
@settings(deadline=None)
def test_dealing_gives_each_rank_as_many_packs(costs: list[float], ranks: int) -> None:
    if len(costs) % ranks:
        with pytest.raises(ConfigError, match=f"{len(costs)} packs a step cannot be dealt to {ranks} ranks"):
            deal(costs, ranks)
        return
    hands = deal(costs, ranks)
    assert sorted(pack for hand in hands for pack in hand) == list(range(len(costs)))
    assert {len(hand) for hand in hands} == {len(costs) // ranks}
    assert all(costs[a] >= costs[b] for hand in hands for a, b in itertools.pairwise(hand))
    loads = [sum(costs[p] for p in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(costs) + 1e-6


def test_the_sequence_is_the_same_for_any_number_of_ranks() -> None:
    plan = plan_of(many(), replace(CONFIG, packs=12))
    for step in plan.steps():
        costs = [pack.cost for pack in step.packs]
        dealt = [sorted(p for hand in deal(costs, ranks) for p in hand) for ranks in (1, 2, 3, 4, 6, 12)]
        assert all(each == list(range(12)) for each in dealt)


def test_dealing_by_cost_beats_dealing_in_order() -> None:
    plan = plan_of(many(), replace(CONFIG, packs=8, compress=False))
    dealt = in_order = 0.0
    for step in plan.steps():
        costs = [pack.cost for pack in step.packs]
        dealt += max(sum(costs[p] for p in hand) for hand in deal(costs, 2))
        in_order += max(sum(costs[:4]), sum(costs[4:]))
    assert dealt < in_order


SHAPE_2B = SimpleNamespace(
    vision_config=SimpleNamespace(num_channels=3, patch_size=14, hidden_size=1152, intermediate_size=4304, num_hidden_layers=27),
    text_config=SimpleNamespace(
        hidden_size=1536,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        num_hidden_layers=28,
        vocab_size=151_936,
    ),
)


def test_the_default_cost_is_the_2b_model() -> None:
    assert model_flops(SHAPE_2B).hardware == CostModel()


@pytest.mark.parametrize(("kept", "share"), [(1.0, 0.48), (0.5, 0.66)])
def test_the_encoder_of_a_full_video_takes_half_of_the_2b_model(kept: float, share: float) -> None:
    """A known share: 180 frames of 40,960 patches in all; 48 % of the forward pass, 66 % when half of the tokens are dropped."""
    sizes = item_sizes(index_of([Fact("film", text=1, t=160, side=16, kept=kept)]), PROFILE, True)
    assert sizes.patches[0] == 40_960
    model = CostModel()
    encoder = model.patch * 40_960 + model.frame_square * sizes.frame_squares[0]
    assert encoder / model.of(sizes)[0] == pytest.approx(share, abs=0.035)


def test_frames_attend_alone() -> None:
    table = index_of([Fact("a", t=3, side=4), Fact("b"), Fact("c", t=1, side=8)])
    assert item_sizes(table, PROFILE, True).frame_squares.tolist() == [3 * 16**2, 0, 64**2]
    sliced = pa.concat_tables([table, table]).slice(2, 2)
    assert item_sizes(sliced, PROFILE, True).frame_squares.tolist() == [64**2, 3 * 16**2]


def test_every_step_has_its_part_of_every_source_and_of_the_work() -> None:
    rng = np.random.default_rng(2)
    facts = [
        Fact(f"i{i}", text=int(x), t=int(x) % 3 if i % 5 == 0 else 0, side=8, source=f"s{i % 5 if i % 7 else 0}", shard=f"{i % 3}.tar")
        for i, x in enumerate(rng.integers(20, 900, 6_000))
    ]
    config = replace(CONFIG, packs=32, seq_tokens=2048, pack_patches=2048, window_shards=3, compress=False)
    plan = plan_of(facts, config)

    def shares(packs: Sequence[Pack]) -> np.ndarray:
        tokens = np.zeros(5)
        for pack in packs:
            sources = [int(name[1]) for name in plan.items_of(pack)["source"].to_pylist()]
            np.add.at(tokens, sources, plan.sizes_of(pack).tokens)
        return tokens / tokens.sum()

    steps = list(plan.steps())[:-1]  # the last one may lack packs
    whole = shares(plan.window(0).packs)
    assert len(steps) > 30
    assert max(np.abs(shares(step.packs) - whole).max() for step in steps) < 0.01  # 0.17 in the packs' shuffled order
    assert plan.report((8, 7)).imbalance == {8: pytest.approx(0, abs=0.02)}


@given(packs=st.integers(0, 60), before=st.integers(0, 60), per_step=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_composing_keeps_every_pack_and_every_border(packs: int, before: int, per_step: int, seed: int) -> None:
    sizes = capacities(packs, before, per_step)
    assert sum(sizes) == packs
    ends = np.cumsum([before, *sizes])[1:]
    assert all(end % per_step == 0 for end in ends[:-1])
    order = compose(np.random.default_rng(seed).random((packs, 3)), sizes)
    assert sorted(order.tolist()) == list(range(packs))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=1, max_size=200),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_item_within_bounds(sizes: list[tuple[int, int]], seed: int) -> None:
    tokens, patches = (np.array(column, dtype=np.int64) for column in zip(*sizes, strict=True))
    order = np.random.default_rng(seed).permutation(len(sizes))
    packed = pack_items(tokens, patches, order, 100, 100)
    assert sorted(packed.items.tolist()) == list(range(len(sizes)))
    assert packed.sums(tokens).max() <= 100
    assert packed.sums(patches).max() <= 100
    assert (np.diff(packed.start) > 0).all()

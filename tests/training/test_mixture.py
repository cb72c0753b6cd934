"""Shares hold, choices are made by name, and what cannot hold is refused with its reason."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError, ProfileError
from tests.training.fixtures import PROFILE, Fact, index_of
from training.candidates import Bounds
from training.census import take_census
from training.cost import item_sizes
from training.index_source import TableIndex
from training.mixture import Mixture, choose, left_out
from training.window import Visit, draw

BOUNDS = Bounds(PROFILE, False, 10**9, 10**9)


def select(index: pa.Table, mixture: Mixture, seed: int = 1) -> pa.Table:
    """The index rows that a stage trains on, with a column `repeat`."""
    source = TableIndex(index, "v1")
    choices = choose(take_census(source, BOUNDS, mixture.where, mixture.by, seed), mixture)
    sources = {name: i for i, name in enumerate(sorted(set(index["source"].to_pylist())))}
    parts = []
    for shard in source.shards:
        drawn = draw(source, [Visit(shard)], BOUNDS, mixture.where, {(c.task, c.source): c for c in choices}, sources, seed)
        rows = source.read(shard, index.column_names).take(pa.array(drawn.row))
        parts.append(rows.append_column("repeat", pa.array(drawn.repeat)))
    return pa.concat_tables(parts)


def names(items: pa.Table) -> Counter[tuple[str, str]]:
    return Counter(zip(items["uid"].to_pylist(), items["task"].to_pylist(), strict=True))


def tasks(**counts: int) -> list[Fact]:
    return [Fact(f"{task}{i}", task=task, source="s", text=5 + i % 7) for task, count in counts.items() for i in range(count)]


def test_everything_once_without_shares_and_samples_without_items_never() -> None:
    index = index_of([*tasks(vqa=5, text=3), Fact("empty", task="")])
    items = select(index, Mixture())
    assert items.num_rows == 8
    assert "" not in items["task"].to_pylist()
    assert items["repeat"].to_pylist() == [0] * 8
    assert items.column_names == [*index.column_names, "repeat"]


def test_shares_of_items_hold_exactly() -> None:
    items = select(index_of(tasks(vqa=10, text=90, ocr=50)), Mixture(tasks={"vqa": 3, "text": 1}))
    assert Counter(items["task"].to_pylist()) == {"vqa": 75, "text": 25}
    per_item = Counter(n for (_, task), n in names(items).items() if task == "vqa")
    assert per_item == {7: 5, 8: 5}
    for uid in set(items["uid"].to_pylist()):
        repeats = items.filter(pc.field("uid") == uid)["repeat"].to_pylist()
        assert repeats == list(range(len(repeats)))


@given(
    counts=st.dictionaries(st.sampled_from(["vqa", "text", "ocr", "video"]), st.integers(1, 40), min_size=1),
    shares=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_shares_hold_for_any_counts(counts: dict[str, int], shares: list[int], seed: int) -> None:
    wanted = dict(zip(sorted(counts), shares, strict=False))
    items = select(index_of(tasks(**counts)), Mixture(tasks=wanted), seed)
    total = sum(counts.values())
    assert items.num_rows == total
    for task, share in wanted.items():
        got = [n for (_, t), n in names(items).items() if t == task]
        assert abs(sum(got) - total * share / sum(wanted.values())) <= 2  # within one, but where two items' ranks are alike to 14 bits
        # no item comes twice more than another of its task
        lowest = min(got) if len(got) == counts[task] else 0
        assert max(got, default=0) - lowest <= 1


def test_shares_of_tokens_hold_within_half_an_item() -> None:
    facts = [Fact(f"v{i}", task="video", t=4, side=8, text=20) for i in range(10)] + [Fact(f"t{i}", text=8 + i % 5) for i in range(60)]
    items = select(index_of(facts), Mixture(tasks={"video": 1, "text": 1}, by="tokens"))
    tokens = item_sizes(items, PROFILE, False).tokens
    video = pc.equal(items["task"], "video").to_numpy(zero_copy_only=False)
    half = (10 * (64 + 20) + sum(8 + i % 5 for i in range(60))) / 2
    assert abs(tokens[video].sum() - half) <= 42
    assert abs(tokens[~video].sum() - half) <= 6


def test_choice_depends_on_names_not_positions() -> None:
    facts = tasks(vqa=30, text=30)
    mixture = Mixture(tasks={"vqa": 1, "text": 4})
    forward, backward = (names(select(index_of(order), mixture)) for order in (facts, facts[::-1]))
    assert forward == backward
    assert forward != names(select(index_of(facts), mixture, seed=2))


def test_a_smaller_share_is_a_subset() -> None:
    index = index_of(tasks(vqa=40, text=40))
    small, large = (names(select(index, Mixture(tasks={"vqa": share, "text": 1}))) for share in (0.2, 0.5))
    assert {k for k in small if k[1] == "vqa"} < {k for k in large if k[1] == "vqa"}


def test_tasks_and_sources_hold_together() -> None:
    cells = {("vqa", "a"): 30, ("vqa", "b"): 10, ("text", "a"): 5, ("text", "b"): 55}
    index = index_of([Fact(f"{t}{s}{i}", task=t, source=s) for (t, s), n in cells.items() for i in range(n)])
    items = select(index, Mixture(tasks={"vqa": 1, "text": 1}, sources={"a": 3, "b": 1}))
    assert abs(items["task"].to_pylist().count("vqa") - 50) <= 1
    assert abs(items["source"].to_pylist().count("a") - 75) <= 1


def test_shares_that_cannot_hold_together_are_refused() -> None:
    index = index_of([Fact("x", task="vqa", source="a"), Fact("y", task="text", source="b")])
    with pytest.raises(ConfigError, match="cannot hold together"):
        select(index, Mixture(tasks={"vqa": 1, "text": 1}, sources={"a": 3, "b": 1}))


def test_where_filters_by_scores_counts_and_texts() -> None:
    index = index_of([Fact(f"x{i}", text=i, score=i / 10) for i in range(1, 11)])
    items = select(index, Mixture(where="score > 0.25 and p.text_tokens <= 5 and key like 'x%' -- a comment"))
    assert sorted(items["key"].to_pylist()) == ["x3", "x4", "x5"]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nonsense > 3", "nonsense"),
        ("score >", "syntax"),
        ("true); SELECT 1; SELECT (2", "statements"),
        ("key in (select content from read_text('/etc/hostname'))", "asks for a subquery"),
        ("score > 99", "loosen"),
        ("random() < 0.5", "asks for random"),
        ("score > 0 and now() > timestamp '2020-01-01'", "asks for now"),
        ("current_date > date '2020-01-01'", "asks for current_date"),
        ("score >= (select avg(score) from items)", "asks for a subquery"),
        ("row_number() over (order by score) < 2", "asks for a window function"),
        ("true) union all select 1 from items where (true", "a bracket closes what it did not open"),
        ("_fovea_row < 3", "no predicate over the index's columns"),
        (" ", "no predicate over the index's columns"),
        ("true) limit (1", "a bracket closes what it did not open"),
    ],
)
def test_a_where_that_cannot_work_is_refused(where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)mixture.where.*{says}"):
        select(index_of(tasks(text=2)), Mixture(where=where))


@pytest.mark.parametrize(
    ("shares", "says"),
    [({"ocr": 1.0}, "no items for ocr"), ({"text": -1.0}, "≥ 0"), ({"text": 0.0}, "> 0"), ({"text": 1e308, "ocr": 1e308}, "finite")],
)
def test_bad_shares_are_refused(shares: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        select(index_of(tasks(text=2)), Mixture(tasks=shares))


def test_what_is_missing_may_be_left_out() -> None:
    index = index_of(tasks(text=20, vqa=20))
    mixture = Mixture(tasks={"text": 1, "vqa": 1, "ocr": 2}, missing="leave_out")
    assert Counter(select(index, mixture)["task"].to_pylist()) == {"text": 20, "vqa": 20}
    choices = choose(take_census(TableIndex(index, "v1"), BOUNDS, None, "items", 1), mixture)
    assert left_out(mixture, choices) == {"tasks": ["ocr"]}
    with pytest.raises(ConfigError, match="no items for ocr"):
        select(index, Mixture(tasks={"ocr": 1}, missing="leave_out"))


def test_what_no_pack_can_hold_has_no_part_in_the_shares() -> None:
    index = index_of([*tasks(vqa=10, text=10), *(Fact(f"long{i}", task="vqa", source="s", text=500) for i in range(20))])
    census = take_census(TableIndex(index, "v1"), Bounds(PROFILE, False, 100, 10**9), None, "items", 1)
    assert (census.rows, census.dropped) == (40, 20)
    assert {(c.task, c.full, c.limit) for c in choose(census, Mixture(tasks={"vqa": 1, "text": 1}))} == {("vqa", 1, 0), ("text", 1, 0)}


def test_a_large_cell_is_thinned_to_its_share_of_tokens() -> None:
    facts = [Fact(f"x{i}", task="vqa" if i % 4 else "text", text=5 + i * 7919 % 300) for i in range(40_000)]
    items = select(index_of(facts), Mixture(tasks={"vqa": 1, "text": 1}, by="tokens"))
    tokens = item_sizes(items, PROFILE, False).tokens
    vqa = pc.equal(items["task"], "vqa").to_numpy(zero_copy_only=False)
    assert tokens[vqa].sum() / tokens.sum() == pytest.approx(0.5, abs=2e-4)


def test_unmeasured_items_are_refused_by_name() -> None:
    index = index_of(tasks(text=2))
    with pytest.raises(ProfileError, match=r"profile 'other' \(it has p\)"):
        item_sizes(index, "other", False)
    measured = index[PROFILE].to_pylist()
    broken = index.set_column(index.column_names.index(PROFILE), PROFILE, pa.array([None, measured[1]], index.schema.field(PROFILE).type))
    with pytest.raises(ProfileError, match="1 of 2 items are not measured"):
        item_sizes(broken, PROFILE, False)

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.near import found_of
from curation.stars import Classes, Links, Stars, links_of, settle, walk

Edge = tuple[int, int, float, int]


def links(edges: list[Edge]) -> Links:
    a, b, similarity, rung = (np.array([e[i] for e in edges]) for i in range(4)) if edges else ([], [], [], [])
    return links_of([(np.array(a), np.array(b), np.array(similarity), np.array(rung))])


def stars(n: int, edges: list[Edge], fixed: Collection[int] = ()) -> Stars:
    return walk(n, links(edges), np.isin(np.arange(n), list(fixed)))


def greedy(n: int, edges: list[Edge], fixed: set[int]) -> list[int]:
    """The definition, in words of one syllable."""
    of = [-1] * n
    for x in range(n):
        near = [(rung, -similarity, min(a, b)) for a, b, similarity, rung in edges if max(a, b) == x and of[min(a, b)] < 0]
        if near and x not in fixed:
            of[x] = min(near)[2]
    return of


def components(n: int, edges: list[Edge]) -> list[int]:
    """The best of each connected component: what a union-find gives."""
    best = list(range(n))
    for _ in range(n):
        for a, b, _, _ in edges:
            best[a] = best[b] = min(best[a], best[b])
    return best


graphs = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(
            st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.sampled_from([0.5, 0.75, 1.0]), st.integers(0, 2)).filter(
                lambda e: e[0] != e[1]
            ),
            unique_by=lambda e: frozenset(e[:2]),
            max_size=40,
        ),
        st.sets(st.integers(0, n - 1), max_size=2),
    )
)


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_the_walk_is_the_greedy_star(graph: tuple[int, list[Edge], set[int]]) -> None:
    n, edges, fixed = graph
    found = stars(n, edges, fixed)
    assert found.of.tolist() == greedy(n, edges, fixed)
    by_pair = {frozenset(e[:2]): e for e in edges}
    for x, of in enumerate(found.of.tolist()):
        if of >= 0:
            assert found.of[of] < 0
            assert (found.similarity[x], found.rung[x]) == by_pair[frozenset((x, of))][2:]


@pytest.mark.parametrize("n", [3, 10, 1000])
def test_components_chain_and_stars_do_not(n: int) -> None:
    """Along a line where each is near the next only, a component is everything; of a star each member is near its centre."""
    edges = [(i, i + 1, 0.9, 1) for i in range(n - 1)]
    assert stars(n, edges).of.tolist() == [-1 if i % 2 == 0 else i - 1 for i in range(n)]
    if n < 50:
        assert components(n, edges) == [0] * n


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_every_copy_is_near_what_stands_for_it_and_no_two_that_stay_are_near(graph: tuple[int, list[Edge], set[int]]) -> None:
    n, edges, _ = graph
    of = stars(n, edges).of.tolist()
    near = {frozenset(e[:2]) for e in edges}
    assert all(frozenset((x, y)) in near for x, y in enumerate(of) if y >= 0)
    kept = [x for x in range(n) if of[x] < 0]
    assert not any(frozenset((a, b)) in near for a in kept for b in kept if a != b)


def test_the_strongest_rung_then_the_nearest_then_the_best_stands_for_a_copy() -> None:
    assert stars(3, [(0, 2, 0.99, 2), (1, 2, 0.9, 1)]).of[2] == 1
    assert stars(3, [(0, 2, 0.9, 1), (1, 2, 0.95, 1)]).of[2] == 1
    assert stars(3, [(0, 2, 0.9, 1), (1, 2, 0.9, 1)]).of[2] == 0


def test_a_pair_that_two_rungs_find_counts_by_the_stronger() -> None:
    found = links([(1, 0, 0.99, 2), (0, 1, 0.9, 1), (0, 1, 0.97, 2)])
    assert (found.better.tolist(), found.worse.tolist(), found.rung.tolist()) == ([0], [1], [1])
    assert found.similarity.tolist() == pytest.approx([0.9])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 2)), min_size=1, max_size=14),
    st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), max_size=20),
)
def test_classes_are_all_the_pairs_of_one_content_and_two_sources(rows: list[tuple[int, int]], near: list[tuple[int, int]]) -> None:
    n = len(rows)
    rows = [(content, max(source, 0)) for content, source in rows]
    edges = [(a, b, 0.9, 1) for a, b in near if max(a, b) < n and a != b]
    alike = [(a, b, 1.0, 0) for b in range(n) for a in range(b) if rows[a][0] == rows[b][0] >= 0 and rows[a][1] != rows[b][1]]
    classes = Classes(np.array([r[0] for r in rows]), np.array([r[1] for r in rows], np.int32))
    fixed = np.zeros(n, bool)
    assert walk(n, links(edges), fixed, classes).of.tolist() == walk(n, links(edges + alike), fixed).of.tolist()


@settings(max_examples=60, deadline=None)
@given(graphs, st.integers(1, 3))
def test_lists_that_are_cut_keep_what_all_pairs_keep(graph: tuple[int, list[Edge], set[int]], most: int) -> None:
    """The fixed point of searches among what stays is the walk over all pairs, however short the lists are."""
    n, edges, fixed = graph
    edges = [e for e in edges if not {e[0], e[1]} <= fixed]
    fixed = set(range(len(fixed)))  # fixed ones rank first
    edges = [e for e in edges if not {e[0], e[1]} <= fixed]
    all_ = links(edges)
    rank = np.arange(n)
    rounds = 0

    def listed(these: Links) -> tuple[Links, np.ndarray]:
        found = found_of([(these.better, these.worse, these.similarity)], rank, most)
        rung = {(a, b): r for a, b, r in zip(all_.better.tolist(), all_.worse.tolist(), all_.rung.tolist(), strict=True)}
        rungs = np.array([rung[a, b] for a, b in zip(found.better.tolist(), found.worse.tolist(), strict=True)])
        return links_of([(found.better, found.worse, found.similarity, rungs)]), found.cut

    known, cut = listed(all_)

    def again(now: Stars) -> Links:
        nonlocal rounds
        rounds += 1
        kept = now.of < 0
        asked = kept & cut
        among = kept[all_.better] & kept[all_.worse] & (asked[all_.better] | asked[all_.worse])
        return listed(Links(all_.better[among], all_.worse[among], all_.similarity[among], all_.rung[among]))[0]

    is_fixed = np.isin(np.arange(n), list(fixed))
    settled = settle(n, known, is_fixed, again)
    plain = walk(n, all_, is_fixed)
    assert np.flatnonzero(settled.of < 0).tolist() == np.flatnonzero(plain.of < 0).tolist()
    assert rounds <= len(all_) + 1


def test_a_cut_list_alone_would_keep_too_much() -> None:
    """x is near three; the only one of them that stays is the last, which a list of two does not hold."""
    edges = [(0, 2, 0.9, 1), (0, 3, 0.9, 1), (2, 5, 0.9, 1), (3, 5, 0.9, 1), (4, 5, 0.9, 1)]
    whole, short = links(edges), links(edges[:-1])
    assert stars(6, edges[:-1]).of[5] == -1
    settled = settle(6, short, np.zeros(6, bool), lambda now: whole)
    assert settled.of[5] == 4


def test_nothing_at_all() -> None:
    assert len(stars(0, []).of) == 0
    assert stars(1, []).of.tolist() == [-1]

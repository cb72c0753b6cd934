from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curation.deduplicate as deduplicate
from curation.deduplicate import What, reduce
from curation.ladder_search import Ladder
from curation.population import PairsInMemory
from curation.stars import links_of
from tests.curation.ladder_reference import Made, Medium, expected, near, opened

BASE = 0xF0F0_3C3C_A5A5_9696
_CIRCLE = [(float(np.cos(t)), float(np.sin(t)), 0.0) for t in np.linspace(0, 1.5, 9)]

hashes = st.one_of(
    st.none(), st.lists(st.integers(0, 11), max_size=6).map(lambda bits: BASE ^ sum(1 << 5 * b for b in set(bits))), st.just(1 << 63)
)
vectors = st.sampled_from([None, (0.0, 0.0, 0.0), *_CIRCLE, *_CIRCLE])
FILM = [*(random.Random(7 + k // 2).getrandbits(64) ^ (k % 2 << 9) for k in range(10)), 1 << 63, 0]  # moments, flat ones behind
clips = st.one_of(
    st.just(()),
    st.lists(st.sampled_from(FILM), max_size=4).map(tuple),
    st.builds(
        lambda start, length, noise: tuple(frame ^ (noise << 3 * k) & (1 << 64) - 1 for k, frame in enumerate(FILM[start:][:length])),
        st.integers(0, 6), st.integers(1, 8), st.sampled_from([0, 1, 0b1101]),
    ),
)  # fmt: skip
media = st.one_of(
    st.builds(lambda sha, h, v: Medium(f"{sha}" if sha else None, h, v), st.integers(0, 9), hashes, vectors),
    st.builds(
        lambda sha, clip, step: Medium(f"c{sha}" if sha else None, None, None, clip, step),
        st.integers(0, 9), clips, st.sampled_from([0.5, 0.5, 1.0]),
    ),
)  # fmt: skip
signatures = st.one_of(st.none(), st.lists(st.integers(0, 15), max_size=5).map(lambda at: tuple(1 if i in at else 0 for i in range(16))))
rows = st.lists(
    st.builds(
        lambda m, text, signature, source, score, reference: Made(
            "", tuple(m), text, signature, None if reference else source, score, reference
        ),
        st.one_of(st.lists(media, min_size=1, max_size=1), st.lists(media, max_size=2)),
        st.sampled_from([None, "t", "u", "v"]),
        signatures,
        st.sampled_from(["a", "b"]),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from([False, False, False, False, False, True]),
    ),
    max_size=12,
)
whats = st.builds(
    lambda **values: What(**values),
    on=st.sampled_from(["media", "media", "media", "texts", "both"]),
    across=st.sampled_from(["all", "all", "source", "sources"]),
    sha256=st.sampled_from([True, True, False]),
    phash_radius=st.sampled_from([0, 2, 4, 9]),
    flips=st.sampled_from([False, False, True]),
    embedding=st.sampled_from(["", "embedding"]),
    cosine=st.sampled_from([0.9, 0.95, 0.98]),
    frames=st.sampled_from(["", "video_hashes"]),
    frame_share=st.sampled_from([0.5, 0.8]),
    frame_radius=st.sampled_from([3, 12]),
    texts=st.sampled_from(["minhash", ""]),
    jaccard=st.sampled_from([0.6, 0.9]),
    keep_best=st.sampled_from(["", "score desc"]),
)


def functions_of_bytes(drawn: list[Made]) -> list[Made]:
    """As in the world: equal bytes have equal hashes and vectors, equal texts equal signatures; uids by place."""
    by_sha: dict[str | None, Medium] = {}
    by_text: dict[str | None, tuple[int, ...] | None] = {}
    found = []
    for i, row in enumerate(drawn):
        media_ = tuple(m if m.sha is None else by_sha.setdefault(m.sha, m) for m in row.media)
        signature = by_text.setdefault(row.text, row.signature) if row.text is not None else None
        uid = f"reference:r/{i:02d}" if row.reference else f"u{i:02d}"
        found.append(Made(uid, media_, row.text, signature, row.source, row.score, row.reference))
    return found


def answers(what: What, population: Any) -> dict[str, tuple[str | None, str | None, float | None]]:
    return {r["uid"]: (r["of"], r["rung"], r["similarity"]) for r in reduce(what, population).to_pylist()}


@settings(max_examples=120, deadline=None)
@given(rows, whats, st.integers(0, 2**32))
def test_the_ladder_is_its_definition(tmp_path_factory: pytest.TempPathFactory, drawn: list[Made], what: What, seed: int) -> None:
    """All of media, texts, sources, references and rungs, for any order of rows, with pairs stored before or not."""
    made = functions_of_bytes(drawn)
    wanted = expected(what, made)
    pairs = PairsInMemory()
    found = answers(what, opened(made, tmp_path_factory.mktemp("a"), pairs=pairs))
    assert {uid: (of, rung) for uid, (of, rung, _) in found.items()} == {uid: (of, rung) for uid, (of, rung, _) in wanted.items()}
    assert [a for _, _, a in found.values()] == pytest.approx([wanted[uid][2] for uid in found], abs=1e-6)
    shuffled = list(made)
    random.Random(seed).shuffle(shuffled)
    shuffled = [r for r in shuffled if not r.reference] + [r for r in made if r.reference]
    again = opened(shuffled, tmp_path_factory.mktemp("b"), pairs=pairs)
    assert answers(what, again) == found


@settings(max_examples=60, deadline=None)
@given(rows, whats, st.integers(1, 2))
def test_short_lists_keep_what_all_pairs_keep(tmp_path_factory: pytest.TempPathFactory, drawn: list[Made], what: What, most: int) -> None:
    """What stays is the same however many near ones a list holds, and a copy is near what stands for it."""
    made = functions_of_bytes(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deduplicate, "MOST", most)
        found = answers(what, opened(made, tmp_path_factory.mktemp("a")))
    wanted = expected(what, made)
    assert [uid for uid, (of, _, _) in found.items() if of is None] == sorted(uid for uid, (of, _, _) in wanted.items() if of is None)
    by_uid = {r.uid: r for r in made}
    for uid, (of, rung, _) in found.items():
        if of is not None and what.across != "source" and what.sha256:
            assert near(what, by_uid[uid], by_uid[of]) is not None or rung == "sha256" or _shares(what, uid, by_uid, found)


def _shares(what: What, uid: str, by_uid: dict[str, Made], found: dict[str, Any]) -> bool:
    """Whether a sample of the same content has this verdict for its own."""
    return any(other != uid and found.get(other, (None,))[0] == found[uid][0] for other in by_uid)


def line(what: What, seed: int, length: int = 24) -> list[Made]:
    """Rows along a line, each near those a few places from it, ranked at random: what is best near one is often a copy itself."""
    places = list(range(length))
    random.Random(seed).shuffle(places)
    made = []
    for rank, place in enumerate(places):
        at = place * 0.12
        medium = Medium(None, BASE ^ ((1 << 2 * place) - 1), (float(np.cos(at)), float(np.sin(at)), 0.0))
        words = tuple(int(place > k) + place // 12 * (k % 2) for k in range(16))
        medium = Medium(None, medium.phash if what.phash_radius else None, medium.vector if what.embedding else None)
        several = (Medium("logo"), medium) if what.action == "reject" else (medium,)
        made.append(Made(f"u{rank:02d}", several, f"t{place}", words, "ab"[place % 2]))
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "what",
    [
        What(phash_radius=9, sha256=False),
        What(phash_radius=9, sha256=False, across="source"),
        What(phash_radius=9, sha256=False, across="sources"),
        What(phash_radius=9, action="reject"),  # two media
        What(phash_radius=0, embedding="embedding", cosine=0.9),
        What(phash_radius=0, embedding="embedding", cosine=0.9, action="reject"),
        What(on="texts", jaccard=0.7),
        What(on="texts", jaccard=0.7, across="sources"),
        What(on="both", phash_radius=9, jaccard=0.5),
    ],
)
def test_on_a_line_lists_of_one_keep_what_all_pairs_keep(tmp_path: Path, what: What, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = line(what, seed)
    wanted = [uid for uid, (of, _, _) in expected(what, made).items() if of is None]
    assert 1 < len(wanted) < len(made) - 4
    monkeypatch.setattr(deduplicate, "MOST", 1)
    assert [uid for uid, (of, _, _) in answers(what, opened(made, tmp_path / "1")).items() if of is None] == wanted
    monkeypatch.setattr(Ladder, "again", lambda self, stars: links_of([]))
    assert [uid for uid, (of, _, _) in answers(what, opened(made, tmp_path / "2")).items() if of is None] != wanted

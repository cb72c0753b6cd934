"""minhash: golden rows, what counts as a word, the estimate against the true Jaccard similarity, and the real texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.minhash import STEP, What, empty_signature, row_of, shingles_of, signature_of, text_hash, text_of, words_of
from curation.population import OneByOne
from curation.step import How, step_digest
from curation.text_pairs import near_signatures
from curation.vectors import write_vectors
from shards.sample import Texts
from tests.curation.views import absent_ref, sample_view

GOLDEN = Path(__file__).parent / "golden" / f"minhash_v{STEP.version}.json"


def run(what: What, *texts: Texts) -> list[Any]:
    assert STEP.open is not None
    return list(STEP.open(what, How())([sample_view(texts=text, key=str(i)) for i, text in enumerate(texts)]))


def jaccard(a: str, b: str, ngram: int) -> float:
    one, other = (set(shingles_of(words_of(text), ngram)) for text in (a, b))
    return len(one & other) / len(one | other)


def test_golden_rows_hold_the_version() -> None:
    """Other output under the same version is an error, also where a library's update is the cause: bump STEP.version, store new rows."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    for case in golden:
        what = What(**case["what"])
        assert row_of_list(row_of(case["text"], what.ngram, empty_signature(what))) == case["row"], case["text"][:40]


def row_of_list(row: Any) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog, running; on THE beach!", ["a", "dog", "running", "on", "the", "beach"]),
        ("don’t  e‑mail\tＦＵＬＬ", ["don't", "e-mail", "full"]),
        ("两只狗 run", ["两", "只", "狗", "run"]),
        ("3 + 1 = 4", ["3", "+", "1", "=", "4"]),
        ("3 - 1", ["3", "-", "1"]),
        ("a - b", ["a", "b"]),
        ("x < -5", ["x", "<", "-", "5"]),
        ("😀 nice 👍🏽", ["😀", "nice", "👍", "🏽"]),
        ("Straße ﬁne İ", ["strasse", "fine", "i\u0307"]),
        ("?! ...", ["?", "!", ".", ".", "."]),
        ("\ud800 lone", ["lone"]),
        (" \n\t\u3000", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_shingles() -> None:
    assert shingles_of(["a", "b", "a", "b", "c"], 2) == [b"a b", b"b a", b"b c"]
    assert shingles_of(["a", "b"], 5) == [b"a b"]
    assert shingles_of(["a"], 1) == [b"a"]
    assert shingles_of([], 2) == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["upper", "lower", "title"]))
def test_any_text_has_a_row(text: str, change: str) -> None:
    what = What(permutations=16)
    row = row_of(text, what.ngram, empty_signature(what))
    blank = not words_of(text)
    assert blank == (not text.strip())
    assert (row["minhash"] is None) == (row["text_hash"] is None) == (row["shingles"] is None) == blank
    if not blank:
        assert row["shingles"] == len(shingles_of(words_of(text), what.ngram)) >= 1
        assert (row["minhash"].dtype, len(row["minhash"])) == (np.uint32, 16)


def test_case_space_and_punctuation_do_not_show() -> None:
    one, other = run(What(), Texts(caption="A dog runs, on the beach."), Texts(caption="a DOG runs on\nthe beach!"))
    assert one["minhash"].tolist() == other["minhash"].tolist()
    assert one["text_hash"] != other["text_hash"]
    same = text_hash("A  dog\nruns ")
    assert same == text_hash("a ＤＯＧ runs") != text_hash("a dog, runs")


def test_a_signature_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    what = What()
    shingles = shingles_of([str(i) for i in range(1_000)], 2)
    whole = signature_of(shingles, empty_signature(what))
    monkeypatch.setattr("curation.minhash.SHINGLES_AT_ONCE", 7)
    np.testing.assert_array_equal(signature_of(shingles, empty_signature(what)), whole)
    np.testing.assert_array_equal(signature_of(shingles[::-1], empty_signature(what)), whole)


@pytest.mark.parametrize("size", [6, 60, 1_200])
def test_the_share_of_equal_numbers_estimates_jaccard(size: int) -> None:
    """Without bias, and with the spread that its formula says: over 120 pairs at J = 0.5 and 0.8, short texts and long."""
    empty = empty_signature(What())
    for shared in (2 * size // 3, 8 * size // 9):
        true = shared / (2 * size - shared)
        estimates = []
        for pair in range(120):
            common = [b"%d c %d" % (pair, i) for i in range(shared)]
            one, other = (signature_of(common + [b"%d %d %d" % (pair, s, i) for i in range(size - shared)], empty) for s in (0, 1))
            estimates.append((one == other).mean())
        spread = (true * (1 - true) / 128) ** 0.5
        assert abs(np.mean(estimates) - true) < 4 * spread / 120**0.5
        assert 0.8 * spread < np.std(estimates) < 1.25 * spread


TEXTS = Texts(
    caption="a cap",
    transcription="a sign",
    conversations=({"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}),
    text="running",
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all", "a cap\na sign\nrunning\n \nwhat?\nthat"),
        ("caption", "a cap"),
        ("transcription", "a sign"),
        ("text", "running"),
        ("conversations", " \nwhat?\nthat"),
        ("coarse_text", "x"),
        ("ocr_text", "one\nthree"),
    ],
)
def test_which_text(name: str, text: str) -> None:
    view = sample_view([absent_ref("image")], TEXTS, {"coarse_text": "x", "ocr_text": ["one", None, "three"]})
    assert text_of(name, view) == text
    assert text_of(name, sample_view(columns={name: None})) == ""
    assert STEP.reads(What(text=name)) == ((name,) if name.endswith("_text") else ("texts",))


def test_no_text_is_null() -> None:
    rows = run(What(), Texts(), Texts(caption="  \n"), Texts(conversations=({"from": "human", "value": "<image>"},)))
    assert all(set(row.values()) == {None} for row in rows)


def test_columns_and_identity() -> None:
    columns = STEP.columns(What())
    assert [(c.name, c.wide, str(c.type)) for c in columns] == [
        ("minhash", True, "list<item: uint32>"),
        ("text_hash", False, "string"),
        ("shingles", False, "int32"),
    ]
    pa.array([run(What(), TEXTS)[0]["minhash"]], columns[0].type)
    whats = [What(), What(ngram=3), What(seed=1), What(permutations=64), What(text="caption")]
    assert len({step_digest("minhash", STEP, what, []) for what in whats}) == len(whats)


@pytest.mark.parametrize("values", [{"ngram": 0}, {"ngram": 51}, {"permutations": 8}, {"permutations": 1_000}, {"seed": -1}, {"text": ""}])
def test_values_that_cannot_work(values: dict[str, Any]) -> None:
    assert STEP.check is not None
    STEP.check(What())
    with pytest.raises(ValueError, match=next(iter(values))):
        STEP.check(What(**values))


def test_a_text_of_a_million_characters() -> None:
    """Shingles by the thousand are hashed in pieces."""
    long = " ".join(str(i) for i in range(150_000))
    changed = long.replace(" 1000 ", " x ")
    what = What(permutations=16)
    one, other = (row_of(text, what.ngram, empty_signature(what)) for text in (long, changed))
    assert one["shingles"] == other["shingles"] == 149_999
    assert (one["minhash"] == other["minhash"]).all()


def test_real_texts_edited(data_dir: Path, tmp_path: Path) -> None:
    """Copies with a word dropped are found among all the development set's conversations at 0.7, and no two of its own are."""
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    texts = ["\n".join(t["value"] for t in r["conversations"]) for r in records if r["kind"] in ("sft", "text")]
    assert len(texts) == 253
    copies = []
    for i, text in enumerate(texts):
        words = text.upper().split()
        copies.append(" ".join(words[: len(words) * i // 253] + words[len(words) * i // 253 + 1 :]))
    what = What()
    n = len(texts) * 2
    signatures = np.stack([row_of(text, what.ngram, empty_signature(what))["minhash"] for text in texts + copies])
    batch = (np.arange(n), np.zeros(n, np.int64), signatures)
    vectors = write_vectors(tmp_path / "v", n, np.zeros((0, 2), np.int64), [batch], dtype="uint32")
    found = near_signatures(vectors, np.arange(n), np.arange(n), np.zeros(n, bool), 0.7, OneByOne(), tmp_path)
    pairs = set(zip(found.better.tolist(), found.worse.tolist(), strict=True))
    right = {(i, i + len(texts)) for i in range(len(texts))}
    assert len(pairs & right) >= 0.98 * len(right)
    assert pairs <= right
    similarity = dict(zip(found.worse.tolist(), found.similarity.tolist(), strict=True))
    errors = [similarity[w] - jaccard(texts[b], copies[b], what.ngram) for b, w in pairs]
    assert abs(np.mean(errors)) < 0.01

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.step import How, step_digest
from curation.text_language import PACKAGE, language_of, load_model, model_file
from curation.text_quality import STEP, What, score, text_of
from curation.text_repetition import repetition
from curation.text_rules import boilerplate, shape
from curation.text_units import characters_of, units_of
from shards.errors import InfrastructureError
from shards.sample import Texts
from tests.curation.views import absent_ref, sample_view

GOLDEN = Path(__file__).parent / "golden" / "text_quality.json"


@cache
def model() -> Any:
    return load_model(PACKAGE)


def test_golden_rows() -> None:
    """Other output under the same version of the step is an error: bump STEP.version and write the rows anew."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == STEP.version
    for case in golden["cases"]:
        row = score(case["text"], model())
        assert set(row) == {column.name for column in STEP.columns(What())}
        for name, value in case["row"].items():
            assert row[name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), (case["text"][:40], name)


# --- units


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, it’s 3.14 e-mails!", ["Don't", "stop", "it’s", "3.14", "e-mails"]),
        ("IMG_0001.jpg #tag", ["IMG_0001.jpg", "tag"]),
        ("一个男人 iPhone", ["一", "个", "男", "人", "iPhone"]),
        ("カメラだ", ["カ", "メ", "ラ", "だ"]),
        ("สุนัข", ["สุ", "นั", "ข"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("e\u0301te\u0301 2", ["e\u0301te\u0301", "2"]),
        ("👩‍👩‍👧‍👦 🇩🇪 ...", []),
        ("한국어 단어", ["한국어", "단어"]),
        ("", []),
    ],
)
def test_words_of_every_script(text: str, words: list[str]) -> None:
    units = units_of(text)
    assert list(units.words) == words
    assert [text[s:e] for s, e in zip(units.start, units.end, strict=True)] == words


def test_lines_and_the_words_in_them() -> None:
    units = units_of("\n one two \n\n three\n \t\nfour five six\n")
    assert units.lines == ("one two", "three", "four five six")
    assert units.line_of.tolist() == [0, 0, 1, 2, 2, 2]


def test_characters_by_kind() -> None:
    counted = characters_of("Aé\u0301 12,😀\n\t\u200d한")
    assert (counted.letters, counted.digits, counted.symbols) == (4, 2, 2)


# --- repetition


def by_hand(text: str) -> dict[str, float]:
    """The same shares, written down as the definitions say them: quadratic, character by character."""
    units = units_of(text)
    words, total = units.words, max(1, len(text.strip()))
    scores: dict[str, float] = {}
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n <= 4:
            most = max((grams.count(g) for g in grams), default=0)
            tied = [i for i, g in enumerate(grams) if grams.count(g) == most] if most > 1 else []
            best = max(tied, key=lambda i: (units.end[i + n - 1] - units.start[i], -i), default=None)
            places = [i for i, g in enumerate(grams) if best is not None and g == grams[best]]
        else:
            places = [i for i, g in enumerate(grams) if g in grams[:i]]
        covered = {c for i in places for c in range(units.start[i], units.end[i + n - 1])}
        scores[f"{'top' if n <= 4 else 'dup'}_{n}gram"] = len(covered) / total
    return scores


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "图", "..", "\n"]), max_size=40))
def test_repetition_is_what_its_definition_says(words: list[str]) -> None:
    text = " ".join(words)
    found = repetition(units_of(text))
    for name, share in by_hand(text).items():
        assert found[name] == pytest.approx(share), (name, text)
    assert all(0 <= share <= 1 for share in found.values())


def test_repeated_lines_and_paragraphs() -> None:
    found = repetition(units_of("aa\nbb\naa\n\naa\nbb\naa\n\ncc"))
    assert found["dup_lines"] == 4 / 7
    assert found["dup_paragraphs"] == 1 / 3
    assert found["dup_line_chars"] == pytest.approx(8 / 22)
    assert found["dup_paragraph_chars"] == pytest.approx(8 / 22)
    clean = repetition(units_of("a red kite over the sea"))
    assert set(clean.values()) == {0.0}


# --- rules


def test_the_shape_of_words_and_lines() -> None:
    found = shape(units_of("• The dog and 12 cats #x ...\n\nThey have what they need to be happy.\nshort…"))
    assert found["stop_words"] == 5  # the, and, have, to, be
    assert found["bullet_lines"] == pytest.approx(1 / 3)
    assert found["ellipsis_lines"] == pytest.approx(2 / 3)
    assert found["punct_lines"] == pytest.approx(2 / 3)  # "..." ends with a point: FineWeb counts it, C4 does not
    assert found["short_lines"] == pytest.approx(2 / 3)
    assert found["c4_lines"] == pytest.approx(1 / 3)
    assert found["alpha_words"] == pytest.approx(14 / 15)
    assert found["hashes"] == pytest.approx(1 / 15)
    assert found["ellipses"] == pytest.approx(2 / 15)
    assert found["newlines"] == pytest.approx(3 / 15)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("A man rides a wave.", 1),
        ("A man rides a wave", 0),
        ("A man.", 0),
        ("A man rides a wave...", 0),
        ("Please enable JavaScript to see this.", 0),
        ("By going on you accept our use of cookies.", 0),
        (f"A man rides {'a' * 1001}.", 0),
        ("一个男人在公园里骑自行车。", 1),
        ("رجل يركب دراجة في الحديقة؟", 1),
    ],
)
def test_lines_that_c4_keeps(line: str, kept: int) -> None:
    assert shape(units_of(line))["c4_lines"] == kept


def test_sentences_are_counted_in_kept_lines() -> None:
    text = 'It is 3.5 m high. Is it? "Yes!" he said.\nno sentence here\n这是一。这是二！'
    assert shape(units_of(text))["c4_sentences"] == 6


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A red kite over the sea.", []),
        ("Lorem Ipsum dolor sit amet {x}", ["lorem_ipsum", "curly_bracket"]),
        ("This site uses cookies. Terms of Service", ["cookies", "terms"]),
        ("Please enable JavaScript; click here", ["javascript", "click_here"]),
        ("DSC_0123.JPG", ["image_name", "camera_name"]),
        ("IMG-20200101", ["camera_name"]),
        ("Screenshot 2020", ["camera_name"]),
        ("see www.example.org", ["url"]),
        ("a film about the sam 7 missile, image 12", []),
        (".jpg of nothing", []),
    ],
)
def test_phrases_that_no_author_wrote(text: str, names: list[str]) -> None:
    assert boilerplate(text) == names


# --- language

SPOKEN = {
    "en": ["A man riding a wave on top of a surfboard.", "two dogs", "A SIGN ON A WALL"],
    "de": ["Ein Mann fährt mit dem Fahrrad durch den Park.", "zwei Hunde am Strand"],
    "fr": ["Un homme fait du vélo dans le parc.", "deux chiens sur la plage"],
    "es": ["Un hombre monta en bicicleta por el parque.", "dos perros en la playa"],
    "ru": ["Мужчина едет на велосипеде по парку.", "две собаки на пляже"],
    "ar": ["رجل يركب دراجة في الحديقة", "كلبان على الشاطئ"],
    "fa": ["مردی در پارک دوچرخه سواری می‌کند"],
    "he": ["איש רוכב על אופניים בפארק", "שני כלבים"],
    "hi": ["एक आदमी पार्क में साइकिल चला रहा है"],
    "el": ["δύο σκύλοι"],
    "zh": ["一个男人在公园里骑自行车", "两只狗", "你好", "停车场", "禁止吸烟", "出口 EXIT 出口一"],
    "ja": ["男性が公園で自転車に乗っている", "二匹の犬がいる", "こんにちは"],
    "ko": ["한 남자가 공원에서 자전거를 타고 있다", "개 두 마리"],
    "th": ["ผู้ชายขี่จักรยานในสวน", "สุนัข"],
}


def test_languages_short_and_long() -> None:
    for language, texts in SPOKEN.items():
        for text in texts:
            found, probability = language_of(text, model())
            assert found == language, text
            assert 0 < probability <= 1
    for text in ("", "12 34", "👩‍👩‍👧‍👦", "\n\n", "..."):
        assert language_of(text, model()) == ("und", 0.0)
    assert language_of("A man", None) == ("und", 0.0)
    assert language_of("a line\nand another\x00 one", model())[0] == "en"


def test_real_captions_are_english(data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    captions = [text for r in records if r["kind"] == "caption" for text in (r.get("captions") or [r["text"]])]
    rows = [score(text, model()) for text in captions]
    assert sum(row["language"] == "en" for row in rows) >= 0.99 * len(rows)
    assert sum(row["words"] >= 2 and row["chars"] >= 5 for row in rows) >= 0.99 * len(rows)
    assert max(row["dup_5gram"] for row in rows) <= 0.5


# --- any text at all


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=200) | st.text("ab\n. ،图👩‍\u0301\ud800#{", max_size=200))
def test_every_text_has_finite_scores(text: str) -> None:
    row = score(text, model())
    for name, value in row.items():
        if isinstance(value, float):
            assert math.isfinite(value), name
            assert value >= 0, name
    shares = [n for n in row if n.startswith(("dup_", "top_", "letters", "digits", "symbols")) or n.endswith("_lines")]
    assert all(row[n] <= 1 for n in shares)
    row["language"].encode()


LONG = {
    "one word": (lambda n: "a" * n, 1),
    "one word again": (lambda n: "word " * (n // 5), 40000),
    "no spaces": (lambda n: "".join(chr(0x4E00 + i * 7919 % 3000) for i in range(n)), 200000),
    "breaks": (lambda n: " a\n \n" * (n // 5), 40000),
    "marks": (lambda n: "e\u0301" * (n // 2), 1),
    "points": (lambda n: "a.jpg" * (n // 5), 1),
    "apostrophes": (lambda n: "a'-" * (n // 3), 66_666),
    "nearly": (lambda n: "click img_ use " * (n // 15), 39999),
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts_of_every_shape_end(name: str) -> None:
    """What took the square of the length would not, before the suite's own time is up."""
    make, words = LONG[name]
    text = make(200_000)
    row = score(text, None)
    assert (row["chars"], row["words"]) == (len(text.strip()), words)


# --- the step


def rows(what: What, texts: Texts, columns: dict[str, Any] | None = None, media: Sequence[Any] = ()) -> Any:
    assert STEP.open is not None
    return STEP.open(what, How())([sample_view(media, texts, columns)])[0]


def test_which_text_is_looked_at() -> None:
    turns = ({"from": "human", "value": "q"}, {"from": "gpt", "value": "a one"}, {"from": "gpt", "value": "a two"})
    view = sample_view([], Texts("cap", "trans", turns, "run"), {"t": "made", "m": ["one", None, "three"], "none": None})
    assert text_of("", view) == "cap\n\ntrans\n\nrun\n\na one\n\na two"
    assert [text_of(name, view) for name in ("caption", "transcription", "text", "conversations")] == [
        "cap",
        "trans",
        "run",
        "a one\n\na two",
    ]
    assert [text_of(name, view) for name in ("t", "m", "none")] == ["made", "one\n\nthree", ""]
    assert STEP.reads(What()) == STEP.reads(What(of="caption")) == ("texts",)
    assert STEP.reads(What(of="coarse_text")) == ("coarse_text",)


def test_a_sample_without_text_has_a_row() -> None:
    row = rows(What(), Texts(), media=[absent_ref("image")])
    assert (row["chars"], row["words"], row["language"], row["boilerplate"]) == (0, 0, "und", [])
    assert rows(What(of="x", language=""), Texts(caption="ignored"), {"x": None}) == rows(What(language=""), Texts())


def test_the_model_is_known_by_its_content(tmp_path: Path) -> None:
    bundled = model_file(PACKAGE)
    copy = tmp_path / "mine.ftz"
    copy.write_bytes(bundled.read_bytes())
    own, package, none = What(language=str(copy)), What(), What(language="")
    assert step_digest("text_quality", STEP, own, []) == step_digest("text_quality", STEP, package, [])
    assert step_digest("text_quality", STEP, none, []) != step_digest("text_quality", STEP, package, [])
    assert rows(own, Texts(caption="two dogs on a beach")) == rows(package, Texts(caption="two dogs on a beach"))


def test_models_that_are_none_are_said(tmp_path: Path) -> None:
    assert STEP.check is not None
    STEP.check(What())
    STEP.check(What(language=""))
    with pytest.raises(ValueError, match="there is no file"):
        STEP.check(What(language="nowhere.ftz"))
    (tmp_path / "bad.ftz").write_bytes(b"no model at all")
    with pytest.raises(InfrastructureError, match="is no fastText model"):
        load_model(str(tmp_path / "bad.ftz"))

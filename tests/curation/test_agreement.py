from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.agreement import STEP, What
from curation.agreement_claims import Claim, claims, evidence, least_edits, supports
from curation.step import How, applying, step_digest
from curation.view import MediaView
from shards.errors import InfrastructureError, LimitError
from shards.sample import Texts
from tests.curation.views import absent_ref, sample_view

GOLDEN = Path(__file__).parent / "golden" / "agreement_v1.json"


def view(texts: Texts | None = None, **columns: Any) -> MediaView:
    """A view whose picture cannot be opened: the step reads columns and texts only."""
    found = sample_view([absent_ref("image")], texts).media[0]
    found.columns = columns
    return found


def rows(*views: MediaView, **what: Any) -> Any:
    assert STEP.open is not None
    return STEP.open(What(**what), How())(views)


def test_golden_rows_belong_to_their_version() -> None:
    """Other rows under the same version are a mistake: raise the step's version, then write this file anew."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == STEP.version
    found = rows(*(view(caption_text=case["caption"], ocr_text=case["read"]) for case in golden["cases"]))
    assert found == [case["row"] for case in golden["cases"]]


def test_invented_text_lowers_the_share() -> None:
    [row] = rows(view(caption_text='A sign says "OPEN DAILY" and "FREE BEER", the price is 12.50.', ocr_text="0PEN DAILY 12,50"))
    assert row["unsupported"] == ["FREE BEER"]
    assert (row["n"], row["share"]) == (3, pytest.approx(2 / 3))
    assert (row["quoted"], row["numbers"], row["names"]) == (0.5, 1.0, 1.0)


def test_nothing_claimed_is_nothing_invented_and_no_caption_no_score() -> None:
    quiet, absent, blank = rows(
        view(caption_text="A dog lies on the grass, 3 cats beside it.", ocr_text=None),
        view(caption_text=None, ocr_text="x"),
        view(caption_text=" ", ocr_text="x"),
    )
    assert (quiet["n"], quiet["share"], quiet["unsupported"]) == (0, 1.0, [])
    assert set(absent.values()) == set(blank.values()) == {None}


def test_lines_and_further_columns_bear_claims_out() -> None:
    lines = [{"text": "GRAND", "confidence": 0.9, "polygon": [0.0] * 8}, {"text": "HOTEL", "confidence": 0.9, "polygon": [0.0] * 8}]
    columns = {"short_text": 'The "Grand Hotel" in Vienna, built 1903', "ocr_lines": lines}
    own = Texts(caption="Vienna 1903")
    what = {"caption": "short_text", "ocr": "ocr_lines"}
    [alone] = rows(view(**columns), **what)
    assert alone["unsupported"] == ["Vienna", "1903"]
    [more] = rows(view(own, **columns), **what, also=("transcription", "caption"))
    assert more["share"] == 1
    [names] = rows(view(**columns), **what, kinds=("name",))
    assert set(names) == {"n", "share", "names", "unsupported"} == {column.name for column in STEP.columns(What(kinds=("name",)))}
    assert STEP.reads(What(**what, also=("caption", "short_text"))) == ["short_text", "ocr_lines", "texts"]


def test_videos_have_their_own_and_pictures_keep_their_digest() -> None:
    assert step_digest("agreement", STEP, What(), []) == "18096abfed9134d8"  # another one would judge every caption again
    assert step_digest("agreement", STEP, What(of="video"), []) != "18096abfed9134d8"
    assert applying(STEP, STEP.columns(What())) == {"image"}
    assert applying(STEP, STEP.columns(What(of="video"))) == {"video"}
    lines = [{"text": "SALE", "confidence": 0.9, "start": 0.0, "end": 2.0}]
    told = view(shot_text="A sign says 'SALE'.\nAnother says 'OPEN'.", film_lines=lines)
    [row] = rows(told, caption="shot_text", ocr="film_lines", of="video")
    assert (row["n"], row["unsupported"]) == (2, ["OPEN"])


def test_long_texts_and_other_columns_are_told() -> None:
    long, read, fine = rows(
        view(caption_text="x" * 100_000, ocr_text=""), view(caption_text="x", ocr_text="y" * 300_000), view(caption_text="x", ocr_text="y")
    )
    assert isinstance(long, LimitError)
    assert isinstance(read, LimitError)
    assert fine["n"] == 0
    with pytest.raises(InfrastructureError, match="ocr_boxes"):
        rows(view(caption_text="x", ocr_boxes=[[0.1]]), ocr="ocr_boxes")
    [many] = rows(view(caption_text=" ".join(f"{i + 100}" for i in range(3000)), ocr_text="100 101"))
    assert (many["n"], many["share"]) == (100, 0.02)


@pytest.mark.parametrize(
    ("read", "claim", "sound"),
    [
        ("SALE 50 % 0FF", ("quoted", "Sale 50% off!"), True), ("SALE", ("quoted", "SALT"), False), ("starting", ("name", "Art"), False),
        ("Parls", ("name", "Paris"), True), ("the REX", ("quoted", "REX"), True), ("RFX", ("quoted", "REX"), False),
        ("1,234.56 EUR", ("number", "1.234,56"), True), ("12.51", ("number", "12.50"), False), ("CAFE", ("name", "Café"), True),
        ("12 50", ("number", "12.50"), True), ("欢迎光临本店", ("quoted", "欢迎光临"), True), ("欢迎", ("quoted", "再见"), False),
        ("مرحبا بكم", ("quoted", "مرحبا بكم"), True), ("ＦＵＬＬ ｗｉｄｔｈ", ("quoted", "full width"), True), ("", ("quoted", "?!"), True),
        ("", ("name", "Berlin"), False),
    ],
)  # fmt: skip
def test_what_bears_a_claim_out(read: str, claim: tuple[Any, str], sound: bool) -> None:
    assert supports(evidence([read]), Claim(*claim), 0.8) is sound


@given(st.text("ab ", min_size=1, max_size=8), st.text("ab ", max_size=14))
def test_fewest_edits_to_any_part_of_a_text(pattern: str, text: str) -> None:
    row = [0] * (len(text) + 1)
    for number, letter in enumerate(pattern, 1):
        above = [number]
        for place, other in enumerate(text, 1):
            above.append(min(row[place] + 1, above[-1] + 1, row[place - 1] + (letter != other)))
        row = above
    assert least_edits(pattern, text) == min(row)


@given(st.text(max_size=200))
def test_any_text_is_taken_apart(text: str) -> None:
    for claim in claims(text):
        assert claim.text
        supports(evidence([text]), claim, 0.8)


@pytest.mark.parametrize(
    "wrong", [{"kinds": ()}, {"kinds": ("word",)}, {"kinds": ("name", "name")}, {"similarity": 0.2}, {"max_chars": 0}, {"caption": ""}]
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError):
        STEP.check(What(**wrong))

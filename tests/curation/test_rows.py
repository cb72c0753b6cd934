"""Work tables and stored rows: what goes in comes out, whatever the texts and however many media."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from curation.rows import (
    fingerprint,
    flat_table,
    row_schema,
    rows_to_work,
    sample_from_row,
    texts_from_json,
    texts_to_json,
    with_columns,
    work_field,
    work_fields,
    work_schema,
)
from curation.step import Column, NoParameters, Step, find_step
from shards.sample import MediaRef, Texts, texts_fingerprint
from tests.curation.units import row, unit

COUNTING, WORDS = find_step("tests.steps.counting"), find_step("tests.steps.words")
LISTS = Step(version=1, columns=lambda what: (Column("boxes", pa.list_(pa.int32())),), reads=lambda what: ())
ANY_TEXT = st.text(st.characters(), max_size=20)  # lone surrogates too
TEXTS = st.builds(
    Texts,
    caption=st.none() | ANY_TEXT,
    transcription=st.none() | ANY_TEXT,
    conversations=st.lists(st.fixed_dictionaries({"from": st.just("human"), "value": ANY_TEXT}), max_size=3).map(tuple),
    text=st.none() | ANY_TEXT,
    meta=st.dictionaries(ANY_TEXT, st.none() | st.integers() | ANY_TEXT | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)


@given(TEXTS)
def test_texts_survive_arrow_with_their_fingerprint(texts: Texts) -> None:
    through = pa.array([texts_to_json(texts)], pa.string())[0].as_py()
    assert texts_from_json(through) == texts
    assert texts_fingerprint(texts_from_json(through)) == texts_fingerprint(texts)


@given(
    st.lists(st.none() | st.lists(st.none() | st.lists(st.integers(-5, 5), max_size=3), min_size=1, max_size=4), max_size=8),
    st.integers(0, 3),
)
def test_stored_rows_become_lists_of_media(samples: list[Any], skip: int) -> None:
    """None for an errored sample; otherwise a value for each medium, None where the step does not apply."""
    schema = row_schema(LISTS, NoParameters(), wide=False)
    stored = [
        {"uid": str(i), "fp": "-", "error": "decode: x"}
        if media is None
        else {"uid": str(i), "fp": "-", "boxes": media[0], "_more": [m if m is None else {"boxes": m} for m in media[1:]] or None}
        for i, media in enumerate(samples)
    ]
    table = pa.Table.from_pylist(stored, schema=schema).slice(skip)
    work = rows_to_work(table, LISTS, NoParameters(), "x_")
    assert work["x_boxes"].to_pylist() == samples[skip:]
    assert work.schema.field("x_boxes").type == pa.list_(pa.list_(pa.int32()))


def test_schemas_by_level_and_width() -> None:
    narrow, wide = (row_schema(COUNTING, NoParameters(), wide=w) for w in (False, True))
    assert narrow.names == ["uid", "fp", "error", "size", "_more"]
    assert narrow.field("_more").type == pa.list_(pa.struct([("size", pa.int64())]))
    assert wide.names == ["uid", "fp", "first", "_more"]
    assert row_schema(WORDS, WORDS.what(), wide=False).names == ["uid", "fp", "error", "n", "list", "seen"]
    assert [str(f.type) for f in work_fields(COUNTING, NoParameters(), "a_")] == ["list<item: int64>", "list<item: list<item: float>>"]
    assert [f.name for f in work_fields(WORDS, WORDS.what(), "")] == ["n", "list", "seen"]


def test_a_flat_table_has_a_row_for_each_medium() -> None:
    media = [MediaRef(kind, "n", "p", -1, 1, "s") for kind in ("image", "video", "image")]
    fields = [work_field(COUNTING, COUNTING.columns(None)[0], "c_"), work_field(WORDS, WORDS.columns(WORDS.what())[1], "w_")]
    batch = unit(
        [
            row("a", 0, media[:2], c_size=[1, None], w_list=["x", "y"]),
            row("b", 1, w_list=[]),
            row("c", 2, media[2:], c_size=None, w_list=None),
            row("d", 3, media[2:], c_size=[4], w_list=["z"]),
        ],
        fields,
    )
    for table, uids in ((batch, "aabcd"), (batch.slice(1), "bcd")):
        flat = flat_table(table, ["c_size", "w_list", "key"])
        assert flat.column_names == ["uid", "m", "medium_kind", "c_size", "w_list", "key"]
        assert "".join(flat["key"].to_pylist()) == uids
        assert flat["m"].to_pylist() == [0, 1, 0, 0, 0][-len(uids) :]
        assert flat["medium_kind"].to_pylist() == ["image", "video", "text", "image", "image"][-len(uids) :]
        assert flat["c_size"].to_pylist() == [1, None, None, None, 4][-len(uids) :]
        assert flat["w_list"].to_pylist() == [["x", "y"], ["x", "y"], [], None, ["z"]][-len(uids) :]


def test_columns_are_filled_in_where_they_were_computed() -> None:
    field = work_field(COUNTING, COUNTING.columns(None)[0], "")
    table = unit([row(f"{i}", i) for i in range(4)])
    table = with_columns(table, [field], [1, 3], [pa.array([[1], [3]], field.type)])
    assert table["size"].to_pylist() == [None, [1], None, [3]]
    table = with_columns(table, [field], [0], [pa.array([[0]], field.type)])
    assert table["size"].to_pylist() == [[0], [1], None, [3]]
    assert table.schema.names == [*work_schema().names, "size"]


def test_fingerprints_follow_the_roots() -> None:
    assert fingerprint(("media",), "c", "t") == "c"
    assert fingerprint(("texts",), "c", "t") == "t"
    assert fingerprint(("media", "texts"), "c", "t") == fingerprint(("texts", "media"), "c", "t") == "c+t"
    assert fingerprint(("media", "texts"), None, "t") == "-+t"
    assert fingerprint((), "c", "t") == "-"


def test_a_sample_is_rebuilt_from_its_row(tmp_path: Path) -> None:
    refs = [MediaRef("image", "n", str(tmp_path), 5, 7, "stamp", "image/0/3")]
    sample = sample_from_row(unit([row("k", 3, refs, Texts(caption="c", meta={"a": [1]}))]).to_pylist()[0])
    assert (sample.key, sample.ordinal, sample.media, sample.texts) == ("k", 3, tuple(refs), Texts(caption="c", meta={"a": [1]}))
    assert sample.kind == "image"

"""compose over what steps and records say of a picture: captions from columns, kinds, charts, regions; and texts of every sort."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.compose import STEP, What
from curation.compose_regions import record_regions
from curation.group import StepCall
from curation.program import bind
from shards.errors import LimitError, SampleError
from shards.items import items_from_json
from shards.sample import Texts
from tests.curation.test_compose import items, line, rows, shown, talk

CAPTIONS = {"short_caption": ("short_text", "caption"), "detailed_caption": ("detailed_text",)}


def answers(what: What, kinds: list[Any], texts: Texts, columns: Any = None) -> list[tuple[str, str]]:
    return [(item.task, shown(item)[-1][1]) for item in items(what, kinds, texts, columns)]


def refused(what: What, texts: Texts, columns: Any = None) -> SampleError:
    answer = rows(what, ["image"], texts, columns)
    assert isinstance(answer, SampleError), answer
    return answer


# --- captions


def test_a_caption_is_the_first_column_that_has_one() -> None:
    what = What(captions=CAPTIONS)
    columns: dict[str, Any] = {"short_text": ["short"], "detailed_text": ["long"]}
    own = Texts(caption="own")
    assert answers(what, ["image"], own, columns) == [("short_caption", "short"), ("detailed_caption", "long")]
    assert answers(what, ["image"], own, {**columns, "short_text": [None]})[0] == ("short_caption", "own")
    assert answers(what, ["image"], own, {**columns, "short_text": ["  "]})[0] == ("short_caption", "own")
    assert answers(what, ["image"], own, {"short_text": None, "detailed_text": None}) == [("short_caption", "own")]
    assert answers(What(), ["image"], own, columns) == [("short_caption", "own")]
    assert answers(What(captions={"short_caption": ("short_text",)}), ["image"], own, {"short_text": None}) == []
    alt = What(tasks=("short_caption",), captions={"short_caption": ("transcription",)})
    assert answers(alt, ["image"], Texts(transcription="read"), {}) == [("short_caption", "read")]


def test_the_ocr_target_begins_with_the_same_caption_unless_told_otherwise() -> None:
    columns = {"short_text": ["A sign"], "detailed_text": ["Long."], "ocr_lines": [[line("STOP", 0, 0, 0.5, 0.5)]]}
    said = "The texts in this image are STOP<box>[0, 0, 500, 500]</box>"
    assert answers(What(tasks=("ocr",), captions=CAPTIONS, ocr="ocr"), ["image"], Texts(caption="x"), columns) == [
        ("ocr", f"A sign. {said}")
    ]
    other = What(tasks=("ocr",), captions={**CAPTIONS, "ocr": ("detailed_text",)}, ocr="ocr")
    assert answers(other, ["image"], Texts(caption="x"), columns) == [("ocr", f"Long. {said}")]


def test_each_of_several_pictures_has_what_its_own_columns_say() -> None:
    columns = {"short_text": ["one", None, "three"], "detailed_text": None, "ocr_lines": [None, [line("GO", 0, 0, 1, 1)], []]}
    made = items(What(captions=CAPTIONS, ocr="ocr"), ["image"] * 3, Texts(caption="all", transcription="all"), columns)
    assert [(i.task, i.n, [p.media for p in i.messages[0].content if p.type == "image"]) for i in made] == [
        ("short_caption", 0, [0]),
        ("short_caption", 1, [2]),
        ("ocr", 0, [1]),
        ("multi_image", 0, [0, 1, 2]),
    ]
    assert [shown(i)[-1][1] for i in made] == ["one", "three", "The texts in this image are GO<box>[0, 0, 999, 999]</box>", "all"]


def test_videos_take_their_captions_from_their_own_list() -> None:
    what = What(captions={**CAPTIONS, "video": ("clip_text", "caption")})
    assert answers(what, ["video"], Texts(caption="own"), {"clip_text": ["made"], "short_text": ["no"]}) == [("video", "made")]
    assert answers(what, ["video"], Texts(caption="own"), {"clip_text": None}) == [("video", "own")]
    assert answers(what, ["video", "video"], Texts(), {"clip_text": ["made", "made"]}) == []


def test_a_runaway_caption_is_the_samples_error_only_where_it_is_chosen() -> None:
    endless = Texts(caption="word " * 20_000)
    error = refused(What(), endless)
    assert isinstance(error, LimitError)
    assert "99,999 characters, more than max_caption_chars: 16,384" in str(error)
    assert answers(What(captions=CAPTIONS), ["image"], endless, {"short_text": ["s"], "detailed_text": None}) == [("short_caption", "s")]
    assert answers(What(tasks=("vqa",)), ["image"], endless) == []
    assert len(answers(What(max_caption_chars=100_000), ["image"], endless)[0][1]) == 99_999


@pytest.mark.parametrize(
    "text",
    [
        "مرحبا بالعالم \u202bשלום\u202c",
        "👩‍👩‍👧‍👦 🇩🇪 ☂️",
        "e\u0301a\u0308 \u200d",
        '"quoted" \\n {text} {box}',
        "<box>[0, 0, 1, 1]</box>",
        "\u0000\u0007",
    ],
)
def test_texts_of_every_sort_come_through_unchanged(text: str) -> None:
    columns = {"ocr_lines": [[line(text, 0, 0, 1, 1)]]}
    made = items(What(ocr="ocr", ocr_regions=True, document_lines=1), ["image"], Texts(caption=text), columns)
    by_task = {item.task: shown(item) for item in made}
    assert by_task["short_caption"][1][1] == by_task["document"][1][1] == text.strip()
    if "<box>" not in text:
        assert by_task["region"][1][1] == text.strip()
        assert text.strip() in by_task["grounding"][0][1]
    else:
        assert not {"region", "grounding"} & set(by_task)


def test_a_line_that_looks_like_a_box_is_not_listed_with_boxes() -> None:
    lines = [line("<box>[1, 2, 3, 4]</box>", 0, 0, 1, 1), line("GO", 0, 0, 1, 1)]
    what = What(tasks=("ocr",), ocr="ocr")
    assert answers(what, ["image"], Texts(), {"ocr_lines": [lines]}) == [
        ("ocr", "The texts in this image are GO<box>[0, 0, 999, 999]</box>")
    ]
    assert answers(what, ["image"], Texts(), {"ocr_lines": [lines[:1]]}) == []


def test_an_empty_page_has_no_items() -> None:
    what = What(ocr="ocr", ocr_regions=True, kind="kind_label", captions=CAPTIONS)
    columns = {"ocr_lines": [[]], "kind_label": ["document"], "short_text": [""], "detailed_text": None}
    assert rows(what, ["image"], Texts(caption="", transcription=" \n "), columns) == {"items": "[]", "n_items": 0, "tasks": []}


# --- documents and charts


def test_a_kind_decides_between_document_and_scene_where_there_is_one() -> None:
    what = What(tasks=("ocr", "document"), ocr="ocr", kind="kind_label", document_lines=3)
    few, many = [line("a line", 0, 0, 1, 1)] * 2, [line("a line", 0, 0, 1, 1)] * 4
    task = {
        (label, len(lines)): answers(what, ["image"], Texts(), {"ocr_lines": [lines], "kind_label": [label]})[0][0]
        for label in ("document", "scene", None)
        for lines in (few, many)
    }
    assert {k for k, v in task.items() if v == "document"} == {("document", 2), ("document", 4), (None, 4)}
    pages = What(tasks=("ocr", "document"), ocr="ocr", kind="kind_label", document_kinds=("form",))
    assert answers(pages, ["image"], Texts(), {"ocr_lines": [few], "kind_label": ["form"]})[0][0] == "document"
    assert answers(pages, ["image"], Texts(), {"ocr_lines": [many], "kind_label": ["document"]})[0][0] == "ocr"


def test_a_chart_takes_what_would_be_caption_document_and_vqa() -> None:
    texts = Texts(caption="Rain.", transcription="Jan 20", conversations=talk("<image>\nHow much?", "20"))
    plain = [("short_caption", "Rain."), ("document", "Jan 20"), ("vqa", "20")]
    labelled = What(kind="kind_label", chart_kinds=("chart", "diagram"))
    assert answers(labelled, ["image"], texts, {"kind_label": ["photograph"]}) == plain
    for label in ("chart", "diagram"):
        assert answers(labelled, ["image"], texts, {"kind_label": [label]}) == [("chart", "20"), ("chart", "Jan 20"), ("chart", "Rain.")]
    others = What(tasks=("short_caption", "document", "vqa"), kind="kind_label")
    assert answers(others, ["image"], texts, {"kind_label": ["chart"]}) == plain


def test_a_record_may_say_that_it_is_a_chart() -> None:
    what = What(chart="about.chart")
    for value, expected in {
        "true": [("chart", "Rain.")],
        "false": [("short_caption", "Rain.")],
        '"Jan | 20"': [("chart", "Jan | 20"), ("chart", "Rain.")],
        '[{"question": "Most?", "answer": "Jan"}]': [("chart", "Rain."), ("chart", "Jan")],
    }.items():
        assert answers(what, ["image"], Texts(caption="Rain.", meta={"about": {"chart": json.loads(value)}})) == expected
    assert answers(what, ["image"], Texts(caption="Rain.")) == [("short_caption", "Rain.")]
    for wrong in (7, {"a": 1}, [{"question": "q"}], ["q"], [{"question": "q", "answer": 3}]):
        assert "about.chart" in str(refused(what, Texts(meta={"about": {"chart": wrong}})))


# --- regions


def regions(*entries: tuple[list[float], str], **more: Any) -> Texts:
    return Texts(meta={"regions": [{"box": list(box), "text": text, **more} for box, text in entries]})


@pytest.mark.parametrize(
    ("unit", "form", "box"),
    [
        ("pixels", "corners", [20, 20, 100, 30]),
        ("pixels", "size", [20, 20, 80, 10]),
        ("shares", "corners", [0.1, 0.2, 0.5, 0.3]),
        ("shares", "size", [0.1, 0.2, 0.4, 0.1]),
        ("mille", "corners", [100, 200, 500, 300]),
        ("mille", "size", [100, 200, 400, 100]),
    ],
)
def test_boxes_of_every_form_are_the_same_place(unit: Any, form: Any, box: list[float]) -> None:
    what = What(regions="regions", boxes=unit, box_form=form)
    assert ("width" in STEP.reads(what)) == (unit == "pixels")
    made = items(what, ["image"], regions((box, "a dog")), {"width": [200], "height": [100]})
    written = "<box>[100, 200, 500, 300]</box>"
    assert [(i.task, shown(i)[1][1]) for i in made] == [("region", "a dog"), ("grounding", written)]
    assert written in shown(made[0])[0][1]
    assert "a dog" in shown(made[1])[0][1]


def test_what_is_said_of_several_places_is_grounded_in_all_of_them() -> None:
    what = What(regions="regions")
    texts = regions(([0, 0, 0.5, 0.5], "a dog"), ([0.5, 0.5, 1.5, 1], "a dog"), ([0, 0, 1, 1], "a lawn"))
    assert answers(what, ["image"], texts) == [
        ("region", "a dog"),
        ("region", "a lawn"),
        ("grounding", "<box>[0, 0, 500, 500]</box>, <box>[500, 500, 999, 999]</box>"),
        ("grounding", "<box>[0, 0, 999, 999]</box>"),
    ]


def test_no_more_regions_than_asked_for_and_always_the_same() -> None:
    texts = regions(*[([0, 0, (i + 1) / 50, 1], f"thing {i}") for i in range(40)])
    few = answers(What(regions="regions", max_regions=5, tasks=("region",)), ["image"], texts)
    assert few == answers(What(regions="regions", max_regions=5, tasks=("region",)), ["image"], texts)
    assert len(few) == 5
    assert [int(text.split()[1]) for _, text in few] == sorted(int(text.split()[1]) for _, text in few)
    keys = [rows(What(regions="regions", max_regions=1, tasks=("region",)), ["image"], texts, key=f"k{i}")["items"] for i in range(30)]
    assert len({items_from_json(k)[0].messages[1].content[0].text for k in keys}) > 10


def test_recognised_lines_are_regions_only_where_asked_for() -> None:
    columns = {"text_lines": [[line("EXIT", 0.1, 0.1, 0.2, 0.2), line("EXIT", 0.8, 0.1, 0.9, 0.2), line("7", 0, 0, 1, 1)]]}
    assert answers(What(tasks=("region", "grounding"), ocr="text"), ["image"], Texts(), columns) == []
    what = What(tasks=("region", "grounding"), ocr="text", ocr_regions=True)
    assert answers(what, ["image"], Texts(), columns) == [
        ("region", "EXIT"),
        ("grounding", "<box>[100, 100, 200, 200]</box>, <box>[800, 100, 900, 200]</box>"),
    ]


def test_regions_of_several_pictures_say_which() -> None:
    texts = regions(([0, 0, 1, 1], "b"), image=1)
    [item] = items(What(regions="regions", tasks=("region",)), ["image", "image"], texts)
    assert item.messages[0].content[0].media == 1
    answer = rows(What(regions="regions"), ["image", "image"], regions(([0, 0, 1, 1], "b")))
    assert isinstance(answer, SampleError)
    assert "must say which" in str(answer)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("x", "expected a list"),
        ([3], r"regions\[0\]: expected"),
        ([{"box": [0, 0, 1, 1]}], "must say what is there"),
        ([{"box": [0, 0, 1], "text": "a"}], "four numbers"),
        ([{"box": [0, 0, 1, "1"], "text": "a"}], "four numbers"),
        ([{"box": [0, 0, 1, float("nan")], "text": "a"}], "four numbers"),
        ([{"box": [0.5, 0, 0.5, 1], "text": "a"}], "holds nothing of the picture"),
        ([{"box": [1.5, 0, 2, 1], "text": "a"}], "holds nothing of the picture"),
        ([{"box": [10, 10, 20, 20], "text": "a"}], "holds nothing of the picture.*see `boxes`"),
    ],
)
def test_annotations_that_cannot_be_read_are_the_samples_error(value: Any, why: str) -> None:
    with pytest.raises(SampleError, match=why):
        raise refused(What(regions="regions"), Texts(meta={"regions": value}))


def test_pixels_without_a_size_are_the_samples_error() -> None:
    what = What(regions="regions", boxes="pixels")
    assert "width and height are not known" in str(refused(what, regions(([0, 0, 5, 5], "a")), {"width": None, "height": None}))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-2, 3, allow_nan=False), min_size=4, max_size=4))
def test_a_box_is_inside_the_picture_or_refused(box: list[float]) -> None:
    try:
        [region] = record_regions([{"box": box, "text": "a"}], "regions", 0, True, "shares", "corners", None)
    except SampleError:
        assert min(box[2], 1) <= max(box[0], 0) or min(box[3], 1) <= max(box[1], 0)
        return
    left, top, right, bottom = region.boxes[0]
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1


# --- wiring


def test_what_it_reads_follows_from_what_its_tasks_take() -> None:
    what = What(captions=CAPTIONS, ocr="ocr", kind="kind_label", regions="regions", boxes="pixels")
    assert STEP.reads(what) == ["media", "texts", "short_text", "detailed_text", "ocr_lines", "kind_label", "width", "height"]
    assert STEP.reads(What(captions=CAPTIONS, tasks=("ocr",))) == ["media", "texts", "short_text"]
    assert STEP.reads(What(captions=CAPTIONS, tasks=("vqa",), regions="regions", boxes="pixels")) == ["media", "texts"]


def test_a_what_of_json_is_the_same_what() -> None:
    given = {"captions": {"short_caption": ["short_text"]}, "tasks": ["ocr"], "boxes": "mille", "prompts": {"ocr": ["q"]}}
    call = StepCall("compose", "compose", given, {}, "d", "", ("media", "texts"), ())
    assert bind(call).what == What(captions={"short_caption": ("short_text",)}, tasks=("ocr",), boxes="mille", prompts={"ocr": ("q",)})


# --- what a source's conversations teach


def test_a_source_may_say_what_its_conversations_teach() -> None:
    spoken = Texts(conversations=tuple(talk("<image>\nWhere is the cat?", "<box>[1, 2, 3, 4]</box>")))
    tasks = ("vqa", "grounding", "temporal_grounding")
    named = What(tasks=tasks, conversations={"test": "grounding", "moments": "temporal_grounding"})
    assert [task for task, _ in answers(named, ["image"], spoken)] == ["grounding"]
    other = What(tasks=tasks, conversations={"elsewhere": "grounding", "moments": "temporal_grounding"})
    assert [task for task, _ in answers(other, ["image"], spoken)] == ["vqa"]
    chart = What(tasks=("chart", "document"), conversations={"test": "document"}, kind="kind_label")
    assert ("document", "<box>[1, 2, 3, 4]</box>") in answers(chart, ["image"], spoken, {"kind_label": ["chart"]})


@pytest.mark.parametrize(
    ("conversations", "why"), [({"a": "talk"}, "talk"), ({"a": "streaming"}, "not among"), ({"a": "grounding"}, "not among")]
)
def test_what_conversations_cannot_teach_is_refused(conversations: dict[str, str], why: str) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=f"conversations: .*{why}"):
        STEP.check(What(tasks=("vqa",), conversations=conversations))

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.compose import COMPOSED, PROMPTS, STEP, What
from curation.conversations import from_llava
from curation.step import How
from shards.errors import SampleError
from shards.items import Item, items_from_json
from shards.sample import MediaKind, Texts
from tests.curation.views import absent_ref, file_ref, sample_view

GOLDEN = Path(__file__).parent / "golden" / "compose.json"


def rows(what: What, kinds: Sequence[MediaKind], texts: Texts, columns: Mapping[str, Any] | None = None, key: str = "k") -> Any:
    assert STEP.open is not None
    view = sample_view([absent_ref(kind, i) for i, kind in enumerate(kinds)], texts, columns, key)
    [row] = STEP.open(what, How())([view])
    return row


def items(what: What, kinds: Sequence[MediaKind], texts: Texts, columns: Mapping[str, Any] | None = None) -> list[Item]:
    row = rows(what, kinds, texts, columns)
    assert isinstance(row, dict), row
    made = items_from_json(row["items"])
    assert row["n_items"] == len(made)
    assert row["tasks"] == list(dict.fromkeys(item.task for item in made))
    return made


def shown(item: Item) -> list[tuple[str, str]]:
    """Messages with media as [image 0]."""
    return [(m.role, "".join(p.text if p.type == "text" else f"[{p.type} {p.media}]" for p in m.content)) for m in item.messages]


def line(text: str, left: float, top: float, right: float, bottom: float, confidence: float = 0.9) -> dict[str, Any]:
    return {"text": text, "confidence": confidence, "polygon": [left, top, right, top, right, bottom, left, bottom]}


def talk(*turns: str) -> tuple[dict[str, str], ...]:
    return tuple({"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(turns))


def test_golden_rows() -> None:
    """Other output under the same version of the step is an error: bump STEP.version and write the rows anew."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == STEP.version
    for case in golden["cases"]:
        row = rows(What(**case["what"]), case["kinds"], Texts(**case["texts"]), case["columns"], key=case["key"])
        assert {**row, "items": json.loads(row["items"])} == case["row"], case["key"]


def test_a_caption_of_one_image() -> None:
    [item] = items(What(), ["image"], Texts(caption=" A red kite.\n"))
    assert (item.task, item.n) == ("short_caption", 0)
    (asks, question), answer = shown(item)
    assert asks == "user"
    assert question.removeprefix("[image 0]") in PROMPTS["short_caption"]
    assert answer == ("assistant", "A red kite.")


def test_captions_of_videos_and_of_several_images() -> None:
    [video] = items(What(), ["video"], Texts(caption="It opens."))
    assert (video.task, video.messages[0].content[0].type) == ("video", "video")
    [several] = items(What(), ["image", "image"], Texts(caption="Two kites."))
    assert several.task == "multi_image"
    assert shown(several)[0][1].startswith("[image 0][image 1]")


def test_the_prompt_is_chosen_by_uid_among_those_given() -> None:
    what = What(prompts={"short_caption": tuple(f"q{i}" for i in range(5))})
    chosen = [
        items_from_json(rows(what, ["image"], Texts(caption="c"), key=f"k{i}")["items"])[0].messages[0].content[1].text for i in range(60)
    ]
    assert set(chosen) == {"q0", "q1", "q2", "q3", "q4"}
    again = rows(what, ["image"], Texts(caption="another"), key="k7")
    assert items_from_json(again["items"])[0].messages[0].content[1].text == chosen[7]


def test_ocr_lines_become_boxes_and_unsure_ones_are_left_out() -> None:
    lines = [line("STOP", 0.25, 0.1, 0.75, 0.2), line("?", 0, 0, 1, 1, confidence=0.2), line("ALL WAY", 0.0, 0.5, 1.0, 0.625)]
    what = What(tasks=("ocr",), ocr="text")
    [item] = items(what, ["image"], Texts(caption="A sign."), {"text_lines": [lines]})
    assert shown(item)[1][1] == (
        "A sign. The texts in this image are STOP<box>[250, 100, 750, 200]</box>, ALL WAY<box>[0, 500, 999, 625]</box>"
    )
    [bare] = items(what, ["image"], Texts(), {"text_lines": [lines[:1]]})
    assert shown(bare)[1][1] == "The texts in this image are STOP<box>[250, 100, 750, 200]</box>"
    assert items(what, ["image"], Texts(caption="A sign."), {"text_lines": None}) == []
    assert items(what, ["image"], Texts(caption="A sign."), {"text_lines": [[]]}) == []


def test_dense_text_is_a_document_and_a_transcription_goes_before_ocr() -> None:
    lines = [line(f"line {i}", 0, i / 20, 1, (i + 1) / 20) for i in range(12)]
    what = What(ocr="ocr")
    [dense] = items(what, ["image"], Texts(), {"ocr_lines": [lines]})
    assert (dense.task, shown(dense)[1][1]) == ("document", "\n".join(f"line {i}" for i in range(12)))
    [known] = items(what, ["image"], Texts(transcription="as typed"), {"ocr_lines": [lines]})
    assert (known.task, shown(known)[1][1]) == ("document", "as typed")
    both = items(what, ["image"], Texts(transcription="as typed"), {"ocr_lines": [lines[:3]]})
    assert [item.task for item in both] == ["ocr", "document"]


def test_without_ocr_columns_a_transcription_serves_both_tasks() -> None:
    texts = Texts(caption="A wall!", transcription="KEEP\n\nOUT")
    assert [shown(i)[1][1] for i in items(What(tasks=("document",)), ["image"], texts)] == ["KEEP\n\nOUT"]
    assert [shown(i)[1][1] for i in items(What(tasks=("ocr",)), ["image"], texts)] == ["A wall! The texts in this image are KEEP, OUT"]


def test_conversations_take_their_task_from_their_media() -> None:
    chat = Texts(conversations=talk("What?", "That."))
    assert [i.task for i in items(What(), [], chat)] == ["text"]
    assert [i.task for i in items(What(), ["image"], chat)] == ["vqa"]
    assert [i.task for i in items(What(), ["image", "image"], chat)] == ["multi_image"]
    assert [i.task for i in items(What(), ["video"], chat)] == ["video"]
    assert [i.task for i in items(What(), ["image", "video"], chat)] == ["video"]


def test_n_counts_within_a_task_in_the_order_of_tasks() -> None:
    texts = Texts(caption="c", transcription="t", conversations=talk("q", "a"))
    assert [(i.task, i.n) for i in items(What(tasks=("video",)), ["video"], texts)] == [("video", 0), ("video", 1)]
    made = items(What(tasks=("document", "vqa", "short_caption")), ["image"], texts)
    assert [(i.task, i.n) for i in made] == [("document", 0), ("vqa", 0), ("short_caption", 0)]


def test_running_text_is_the_assistants() -> None:
    [item] = items(What(), [], Texts(text="Once upon a time."))
    assert (item.task, shown(item)) == ("text", [("assistant", "Once upon a time.")])


def test_no_text_gives_no_items_and_the_row_is_fine() -> None:
    for texts in (Texts(), Texts(caption="  "), Texts(conversations=({"from": "human", "value": "Hello?"},))):
        assert rows(What(), ["image"], texts) == {"items": "[]", "n_items": 0, "tasks": []}


def test_special_tokens_in_texts_stay_text() -> None:
    hostile = "</s><|im_end|>\n<|im_start|>assistant\n<|image_pad|><image>"
    [item] = items(What(), ["image"], Texts(caption=hostile))
    assert shown(item)[1][1] == hostile.strip()
    assert [p.type for m in item.messages for p in m.content] == ["image", "text", "text"]


def test_half_a_character_becomes_the_replacement_character() -> None:
    row = rows(What(), ["image"], Texts(caption="a \ud83d\ude00 and a \ud800 half"))
    row["items"].encode()
    assert items_from_json(row["items"])[0].messages[1].content[0].text == "a \U0001f600 and a \ufffd half"


@pytest.mark.parametrize(
    ("kinds", "turns", "expected"),
    [
        (["image"], ["<image>\nWhat?", "A."], ["[image 0]What?", "A."]),
        (["image"], ["What?\n<image>", "A."], ["What?\n[image 0]", "A."]),
        (["image"], ["What?", "An <image> tag."], ["[image 0]What?", "An <image> tag."]),
        (["image", "image"], ["Is <image> like <image>?", "No."], ["Is [image 0]like [image 1]?", "No."]),
        (["image", "image"], ["<image>One?", "A", "<image>\n", "B"], ["[image 0]One?", "A", "[image 1]", "B"]),
        (["image", "image", "image"], ["And <image>?", "A"], ["[image 0][image 1]And [image 2]?", "A"]),
        (["image", "video"], ["<video>\n<image>\nWhat?", "A"], ["[video 1][image 0]What?", "A"]),
        (["video", "image"], ["<image>\nWhat?", "A"], ["[video 0][image 1]What?", "A"]),
    ],
)
def test_tags_become_media_in_order(kinds: list[MediaKind], turns: list[str], expected: list[str]) -> None:
    messages = from_llava(talk(*turns), kinds)
    assert [text for _, text in shown(Item("vqa", 0, messages))] == expected


def test_system_turns_stay_and_media_wait_for_the_first_question() -> None:
    turns = ({"from": "system", "value": "Be brief."}, {"from": "gpt", "value": "A kite."}, {"from": "human", "value": "Sure?"})
    messages = from_llava(turns, ["image"])
    assert shown(Item("vqa", 0, messages)) == [("system", "Be brief."), ("user", "[image 0]"), ("assistant", "A kite."), ("user", "Sure?")]


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        (talk("<image> and <image>?", "A."), r"2 <image> tags and the sample 1"),
        (talk("<video>?", "A."), r"1 <video> tags and the sample 0"),
        (({"from": "robot", "value": "x"},), "turn 0 .* 'robot'"),
        (({"from": "human", "value": "x"}, {"from": "gpt"}), "turn 1 .* no text"),
    ],
)
def test_a_conversation_that_does_not_fit_is_the_samples_error(turns: tuple[dict[str, str], ...], why: str) -> None:
    answer = rows(What(), ["image"], Texts(conversations=turns))
    assert isinstance(answer, SampleError)
    with pytest.raises(SampleError, match=why):
        raise answer


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["image", "video"]), max_size=5),
    st.lists(st.lists(st.sampled_from(["<image>", "<video>", " word", "\n"]), max_size=5).map("".join), min_size=1, max_size=4),
)
def test_every_medium_stands_once_in_order_of_its_kind_or_it_is_an_error(kinds: list[MediaKind], questions: list[str]) -> None:
    turns = talk(*[value for question in questions for value in (question, "answer")])
    tags = {kind: sum(q.count(f"<{kind}>") for q in questions) for kind in ("image", "video")}
    if any(tags[kind] > kinds.count(kind) for kind in ("image", "video")):  # type: ignore[arg-type]
        with pytest.raises(SampleError, match="tags and the sample"):
            from_llava(turns, kinds)
        return
    messages = from_llava(turns, kinds)
    media = [part for m in messages for part in m.content if part.type != "text"]
    assert sorted(part.media for part in media) == list(range(len(kinds)))
    assert all(part.type == kinds[part.media] for part in media)
    for kind in ("image", "video"):
        numbers = [part.media for part in media if part.type == kind]
        assert numbers == sorted(numbers)
    assert all("<image>" not in part.text and "<video>" not in part.text for m in messages for part in m.content)


def test_real_conversations_make_items(data_dir: Path) -> None:
    records = [json.loads(r) for r in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    counted: dict[str, int] = {}
    for record in records:
        if record["kind"] not in ("sft", "text"):
            continue
        assert STEP.open is not None
        texts = Texts(conversations=tuple(record["conversations"]))
        view = sample_view([file_ref(data_dir / f) for f in record["files"]], texts, key=record["id"])
        [row] = STEP.open(What(), How())([view])
        assert isinstance(row, dict), (record["id"], row)
        for item in items_from_json(row["items"]):
            counted[item.task] = counted.get(item.task, 0) + 1
            answers = [p.text for m in item.messages if m.role == "assistant" for p in m.content]
            assert answers == [t["value"].strip() for t in record["conversations"] if t["from"] == "gpt"]
    assert sum(counted.values()) == sum(record["kind"] in ("sft", "text") for record in records)
    assert counted["text"] == 120


def test_what_it_reads_follows_from_its_what() -> None:
    assert STEP.reads(What()) == ["media", "texts"]
    assert STEP.reads(What(ocr="ocr")) == ["media", "texts", "ocr_lines"]


@pytest.mark.parametrize(
    "what",
    [
        What(tasks=()),
        What(tasks=("streaming",)),
        What(prompts={"vqa": ("q",)}),
        What(prompts={"ocr": ()}),
        What(prompts={"ocr": (" ",)}),
        What(min_ocr_confidence=1.5),
        What(document_lines=0),
        What(prompts={"region": ("What is there?",)}),
        What(captions={"vqa": ("caption",)}),
        What(captions={"short_caption": ()}),
        What(max_caption_chars=0),
        What(max_regions=0),
        What(ocr_regions=True),
    ],
)
def test_values_that_cannot_work_are_refused(what: What) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError):
        STEP.check(what)


def test_defaults_are_fine() -> None:
    assert STEP.check is not None
    STEP.check(What())
    assert set(COMPOSED) - set(PROMPTS) == {"vqa", "text"}  # whose questions are given

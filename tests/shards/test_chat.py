"""Prompt form and labels, held against transformers' processor with Qwen2.5's tokenizer; texts that imitate special tokens; training."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, VideoLlama3ImageProcessor, VideoLlama3Processor, VideoLlama3VideoProcessor
from transformers.video_utils import VideoMetadata

from shards.chat import (
    IGNORED,
    MediumTokens,
    count_item,
    encode_item,
    load_tokenizer,
    render_item,
    tokenizer_digest,
    train_tokenizer,
)
from shards.errors import ConfigError, SampleError
from shards.items import Item, Message, Part, item_from_json, shown
from shards.tokenizer import STREAM_END, STREAM_START, TRAINED_SPECIALS

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"
TEXTS = [f"Picture {i} shows {thing}, isn't it?\n" for i in range(40) for thing in ("a cat", "two dogs", "naïve 猫 drawings")]


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer_dir: Path) -> Any:
    return load_tokenizer(qwen_tokenizer_dir)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), 400)


def text(value: str) -> Part:
    return Part("text", text=value)


def item(*messages: tuple[str, list[Part]], task: str = "vqa") -> Item:
    return Item(task, 0, tuple(Message(role, tuple(content)) for role, content in messages))  # type: ignore[arg-type]


def pieces(encoded: Any, tokenizer: Any) -> list[tuple[str, bool]]:
    """Runs of labelled and unlabelled tokens as text."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, IGNORED)
        if not runs or runs[-1][1] != (label != IGNORED):
            runs.append(([], label != IGNORED))
        runs[-1][0].append(int(token))
    return [(tokenizer.decode(ids), labelled) for ids, labelled in runs]


def test_image_prompt_equals_transformers(qwen: Any) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60, 90, 3), dtype=np.uint8), rng.integers(0, 256, (84, 56, 3), dtype=np.uint8)]
    processor = VideoLlama3Processor(VideoLlama3ImageProcessor(), qwen, VideoLlama3VideoProcessor())
    prompt = (
        f"{START}system\nBe brief.{END}\n{START}user\n{IMAGE}\nand {IMAGE}\nWhat's  the\n\ndifference?{END}\n"
        f"{START}assistant\nOne is  wider.{END}\n{START}user\nWhich? 123{END}\n{START}assistant\nThe first.{END}\n"
    )
    theirs = processor(images=images, text=[prompt], return_tensors="np")
    one = item(
        ("system", [text("Be brief.")]),
        ("user", [Part("image", media=0), text("and "), Part("image", media=1), text("What's  the\n\ndifference?")]),
        ("assistant", [text("One is  wider.")]),
        ("user", [text("Which? 123")]),
        ("assistant", [text("The first.")]),
    )
    kept = [MediumTokens("image", [int(np.prod(grid))]) for grid in theirs["image_grid_thw"]]
    encoded = encode_item(one, qwen, kept)
    assert encoded.input_ids.tolist() == theirs["input_ids"][0].tolist()
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int64
    assert encoded.visual.sum() == sum(m.per_frame_kept[0] for m in kept)
    assert (
        render_item(one, kept).replace(IMAGE * kept[0].per_frame_kept[0], IMAGE).replace(IMAGE * kept[1].per_frame_kept[0], IMAGE) == prompt
    )


def test_video_prompt_equals_transformers(qwen: Any) -> None:
    rng = np.random.default_rng(1)
    frames = np.repeat(rng.integers(0, 256, (1, 84, 112, 3), dtype=np.uint8), 4, axis=0)
    frames[2:, :28] = 255 - frames[2:, :28]  # the top row of blocks changes once
    processor = VideoLlama3Processor(VideoLlama3ImageProcessor(), qwen, VideoLlama3VideoProcessor(do_resize=False))
    prompt = f"{START}user\n{VIDEO}\nWhat happens?{END}\n{START}assistant\nIt flips.{END}\n"
    theirs = processor(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=4, fps=2.0, frames_indices=[0, 1, 2, 3])],
        text=[prompt],
        return_tensors="pt",
    )
    kept = theirs["video_compression_mask"].reshape(4, 12).sum(axis=1).tolist()
    assert kept == [12, 1, 4, 1]
    one = item(("user", [Part("video", media=0), text("What happens?")]), ("assistant", [text("It flips.")]))
    encoded = encode_item(one, qwen, [MediumTokens("video", kept, [0.0, 0.5, 1.0, 1.5])])
    assert encoded.input_ids.tolist() == theirs["input_ids"][0].tolist()
    assert "Time 0.0s:" + VIDEO * 12 + ",Time 0.5s:" + VIDEO + ",Time 1.0s:" in qwen.decode(encoded.input_ids)


CLIP, CLIP_2, PICTURE = Part("video", media=0), Part("video", media=1), Part("image", media=2)
CONVERSATIONS: dict[str, tuple[tuple[tuple[str, list[Part]], ...], str]] = {
    "a moment": (
        (
            ("user", [CLIP, text("When does it flip? Give the start and end in seconds.")]),
            ("assistant", [text("0.5-1.0 s")]),
        ),
        f"{START}user\n{VIDEO}\nWhen does it flip? Give the start and end in seconds.{END}\n{START}assistant\n0.5-1.0 s{END}\n",
    ),
    "a caption, turns and a system's word": (
        (
            ("system", [text("Be brief.")]),
            ("user", [CLIP, text("Describe it.")]),
            ("assistant", [text("It flips,  twice.\n\nThen no more.")]),
            ("user", [text("At 1.0 s?")]),
            ("assistant", [text("Yes: 1.0 s.")]),
        ),
        f"{START}system\nBe brief.{END}\n{START}user\n{VIDEO}\nDescribe it.{END}\n{START}assistant\nIt flips,  twice.\n\nThen no more."
        f"{END}\n{START}user\nAt 1.0 s?{END}\n{START}assistant\nYes: 1.0 s.{END}\n",
    ),
    "two videos": (
        (("user", [CLIP, CLIP_2, text("Which is longer?")]), ("assistant", [text("The first.")])),
        f"{START}user\n{VIDEO}\n{VIDEO}\nWhich is longer?{END}\n{START}assistant\nThe first.{END}\n",
    ),
    "videos and a picture, over turns": (
        (
            ("user", [text("This is it: "), PICTURE, text("Where is it in "), CLIP, text("?")]),
            ("assistant", [text("From 0.0 to 0.5 s.")]),
            ("user", [text("And in this?"), CLIP_2]),
            ("assistant", [text("Nowhere.")]),
        ),
        f"{START}user\nThis is it: {IMAGE}\nWhere is it in {VIDEO}\n?{END}\n{START}assistant\nFrom 0.0 to 0.5 s.{END}\n"
        f"{START}user\nAnd in this?{VIDEO}\n{END}\n{START}assistant\nNowhere.{END}\n",
    ),
}


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_conversations_over_videos_equal_transformers(qwen: Any, name: str) -> None:
    """Moments, captions, turns, several videos and pictures between them: token by token, from the same pixels."""
    messages, prompt = CONVERSATIONS[name]
    rng = np.random.default_rng(2)
    clips = [np.repeat(rng.integers(0, 256, (1, 56, 84, 3), dtype=np.uint8), frames, axis=0) for frames in (4, 2)]
    clips[0][2:, :28] = 255 - clips[0][2:, :28]
    picture, rates = rng.integers(0, 256, (56, 84, 3), dtype=np.uint8), (2.0, 0.8)
    one = item(*messages)
    parts = shown(one)
    videos = [part.media for part in parts if part.type == "video"]
    times = [[index / rate for index in range(len(clip))] for clip, rate in zip(clips, rates, strict=True)]
    processor = VideoLlama3Processor(VideoLlama3ImageProcessor(), qwen, VideoLlama3VideoProcessor(do_resize=False))
    theirs = processor(
        images=[picture] if PICTURE in parts else None,
        videos=[torch.from_numpy(clips[number]).permute(0, 3, 1, 2) for number in videos],
        video_metadata=[
            VideoMetadata(total_num_frames=len(clips[n]), fps=rates[n], frames_indices=list(range(len(clips[n])))) for n in videos
        ],
        text=[prompt],
        return_tensors="pt",
    )
    masks, kept = theirs["video_compression_mask"], {}
    for number in videos:
        length = 6 * len(clips[number])
        kept[number], masks = masks[:length].reshape(-1, 6).sum(axis=1).tolist(), masks[length:]
    media = [
        MediumTokens("image", [int(theirs["image_grid_thw"][0].prod())])
        if part.type == "image"
        else MediumTokens("video", kept[part.media], times[part.media])
        for part in parts
    ]
    assert encode_item(one, qwen, media).input_ids.tolist() == theirs["input_ids"][0].tolist()


def test_labels_are_the_answers_and_their_ends(qwen: Any) -> None:
    one = item(
        ("user", [Part("image", media=0), text("What?")]),
        ("assistant", [text("\n A cat.")]),
        ("user", [text("Sure?")]),
        ("assistant", [text("Yes.")]),
    )
    assert pieces(encode_item(one, qwen, [MediumTokens("image", [2])]), qwen) == [
        (f"{START}user\n{IMAGE * 2}\nWhat?{END}\n{START}assistant\n", False),
        (f"\n A cat.{END}", True),
        (f"\n{START}user\nSure?{END}\n{START}assistant\n", False),
        (f"Yes.{END}", True),
        ("\n", False),
    ]


def test_a_medium_ends_its_line_once(qwen: Any) -> None:
    """Also where the text brings the line break itself, where media follow each other, and at the end of a message."""
    media = [MediumTokens("image", [1]), MediumTokens("image", [1]), MediumTokens("video", [1, 2], [0.0, 1.04])]
    one = item(
        ("user", [Part("image", media=0), Part("image", media=1), text("\nWhat?"), Part("video", media=2)]), ("assistant", [text("A.")])
    )
    wanted = f"{START}user\n{IMAGE}\n{IMAGE}\nWhat?Time 0.0s:{VIDEO},Time 1.0s:{VIDEO * 2}\n{END}\n{START}assistant\nA.{END}\n"
    assert render_item(one, media) == wanted
    assert qwen.decode(encode_item(one, qwen, media).input_ids) == wanted


IMITATIONS = [END, START, IMAGE, VIDEO, "<|endoftext|>", "<|stream_end|>", "<image>", "<tool_call>", "<|fim_pad|>", "<|vision_start|>"]


@pytest.mark.parametrize("imitation", IMITATIONS)
def test_texts_never_become_special_tokens(qwen: Any, small: Any, imitation: str) -> None:
    one = item(("user", [text(f"a{imitation}\nassistant b")]), ("assistant", [text(imitation)]))
    for tokenizer in (qwen, small):
        encoded = encode_item(one, tokenizer, [])
        special = set(tokenizer.get_added_vocab().values())
        wanted = [tokenizer.convert_tokens_to_ids(t) for t in (START, END, START, END)]
        assert [int(i) for i in encoded.input_ids if int(i) in special] == wanted
        assert imitation in tokenizer.decode(encoded.input_ids)


def test_hostile_texts(qwen: Any) -> None:
    with pytest.raises(SampleError, match="no valid Unicode"):
        encode_item(item(("user", [text("half \ud83d emoji")]), ("assistant", [text("x")])), qwen, [])
    odd = "\x00\u202e \ufeff e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0627\u0644"
    encoded = encode_item(item(("user", [text(odd)]), ("assistant", [text("x")])), qwen, [])
    assert "\U0001f468\u200d\U0001f469" in qwen.decode(encoded.input_ids)


def test_wrong_media_are_refused(qwen: Any) -> None:
    one = item(("user", [Part("image", media=0)]), ("assistant", [text("x")]))
    for media in ([], [MediumTokens("video", [1], [0.0])], [MediumTokens("image", [1])] * 2):
        with pytest.raises(ValueError, match="the item's media are"):
            encode_item(one, qwen, media)


def stream(until: float | None, media: int = 0) -> tuple[str, list[Part]]:
    return "stream", [Part("video", media=media, until=until)]


STREAM = (
    ("user", [text("Say when it flips.")]),
    stream(1.0),
    ("assistant", [text("Not yet.")]),
    stream(2.55),
    ("user", [text("And now?")]),
    ("assistant", [text("It flipped at 1.5 s.")]),
    stream(2.6),  # no frame has come in meanwhile
    stream(None),
)
FRAMES = MediumTokens("video", [4, 1, 2, 1, 1, 3], [0.0, 0.5, 1.0, 1.5, 2.55, 3.25])


def frame(seconds: str, kept: int) -> str:
    return f"{STREAM_START}stream\nTime {seconds}s: {VIDEO * kept}\n{STREAM_END}\n"


STREAMED = (
    f"{START}user\nSay when it flips.{END}\n{frame('0.0', 4)}{frame('0.5', 1)}{frame('1.0', 2)}{START}assistant\nNot yet.{END}\n"
    f"{frame('1.5', 1)}{frame('2.5', 1)}{START}user\nAnd now?{END}\n{START}assistant\nIt flipped at 1.5 s.{END}\n{frame('3.2', 3)}"
)


def test_each_streamed_frame_is_a_message_before_what_is_said_at_its_time(qwen: Any, small: Any) -> None:
    one = item(*STREAM, task="streaming")
    assert shown(one) == (Part("video", media=0),)
    assert render_item(one, [FRAMES]) == STREAMED
    encoded = encode_item(one, small, [FRAMES])
    assert [run for run, labelled in pieces(encoded, small) if labelled] == [f"Not yet.{END}", f"It flipped at 1.5 s.{END}"]
    assert encoded.visual.sum() == 12
    specials = [small.convert_tokens_to_ids(token) for token in (STREAM_START, STREAM_END)]
    assert [int((encoded.input_ids == token).sum()) for token in specials] == [6, 6]
    assert small.decode(encoded.input_ids) == STREAMED
    imitation = item(("user", [text(frame("0.0", 1))]), *STREAM[1:], task="streaming")
    assert int((encode_item(imitation, small, [FRAMES]).input_ids == specials[0]).sum()) == 6


@pytest.mark.parametrize("added", [True, False])
def test_a_streamed_prompt_is_tokenized_as_a_whole(qwen: Any, small: Any, added: bool) -> None:
    """With the special tokens and without (then they are text), ids are those of the prompt as one string."""
    tokenizer = small if added else qwen
    assert ({STREAM_START, STREAM_END} <= set(tokenizer.get_added_vocab())) == added
    encoded = encode_item(item(*STREAM, task="streaming"), tokenizer, [FRAMES])
    assert encoded.input_ids.tolist() == tokenizer(STREAMED)["input_ids"]
    text_tokens, labelled = count_item(item(*STREAM, task="streaming"), tokenizer, [FRAMES])
    assert (text_tokens, labelled) == (len(encoded.input_ids) - 12, int((encoded.labels != IGNORED).sum()))


def test_a_stream_item_survives_json() -> None:
    one = item(*STREAM, task="streaming")
    assert item_from_json(json.loads(json.dumps(one.to_json()))) == one
    assert one.to_json()["messages"][1] == {"role": "stream", "content": [{"type": "video", "media": 0, "until": 1.0}]}
    assert one.to_json()["messages"][-1]["content"] == [{"type": "video", "media": 0}]


def test_a_stream_counts_once_and_ends_with_its_last_message() -> None:
    """Pictures may stand between its messages; one video streamed after another is two media."""
    one = item(
        ("user", [Part("image", media=2)]),
        stream(1.0, 1),
        ("user", [Part("image", media=0)]),
        stream(2.0, 1),
        stream(None, 3),
        stream(None, 3),
    )
    assert [(part.media, part.until) for part in shown(one)] == [(2, None), (1, 2.0), (0, None), (3, None)]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([stream(2.0), stream(1.5)], "until 1.5 s after 2.0 s"),
        ([stream(None), stream(3.0)], "until 3.0 s after inf s"),
        ([stream(-0.5)], "until a second from 0 on"),
        ([stream(float("nan"))], "until a second from 0 on"),
        ([("stream", [text("x")])], "is one video"),
        ([("stream", [Part("video", media=0), text("x")])], "is one video"),
        ([("stream", [])], "is one video"),
        ([stream(1.0, 0), stream(1.0, 1), stream(2.0, 0)], "video 0 after another video"),
        ([stream(1.0, 0), ("user", [Part("video", media=1)]), stream(2.0, 0)], "video 0 after another video"),
        ([("user", [Part("video", media=0, until=1.0)])], "in no stream message"),
    ],
)
def test_streams_that_go_backwards_or_mix_are_refused(small: Any, messages: list[tuple[str, list[Part]]], why: str) -> None:
    with pytest.raises(SampleError, match=why):
        encode_item(item(*messages, task="streaming"), small, [FRAMES])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    times=st.lists(st.integers(0, 80), min_size=1, max_size=8, unique=True).map(sorted),
    untils=st.lists(st.integers(0, 80), max_size=6).map(sorted),
)
def test_every_frame_is_shown_once_in_order_and_not_before_its_time(small: Any, times: list[int], untils: list[int]) -> None:
    """Times and bounds in tenths of a second, as floats that no binary fraction equals."""
    ends = [n / 10 for n in untils]
    messages = [said for end in ends for said in (stream(end), ("assistant", [text(f"at {end:.1f}")]))]
    frames = MediumTokens("video", [1] * len(times), np.array([n / 10 for n in times], dtype=np.float32).tolist())
    encoded = encode_item(item(*messages, stream(None), task="streaming"), small, [frames])
    told = re.findall(r"(Time|at) (\d+\.\d)", small.decode(encoded.input_ids))
    assert [float(second) for what, second in told if what == "Time"] == [n / 10 for n in times]
    shown_by = {place: [float(s) for what, s in told[:place] if what == "Time"] for place, (what, _) in enumerate(told) if what == "at"}
    for (place, seen), end in zip(shown_by.items(), ends, strict=True):
        assert seen == [n / 10 for n in times if n / 10 <= end], told[place]


def test_frames_that_no_message_shows_are_not_of_the_item(small: Any) -> None:
    """They are left out when the item is measured; given here they are a bug."""
    with pytest.raises(ValueError, match=r"streams \{0: 3\} frames of its videos, given were \[6\]"):
        encode_item(item(stream(1.0), ("assistant", [text("x")])), small, [FRAMES])


PARTS = st.one_of(
    st.builds(
        lambda value: text(value), st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["\n", " ", END])
    ),
    st.just(Part("image", media=0)),
    st.just(Part("video", media=0)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    contents=st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=3),
    answers=st.lists(st.text("ab \n<|>", max_size=8), min_size=3, max_size=3),
    kept=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_counts_equal_lengths(small: Any, contents: list[list[Part]], answers: list[str], kept: list[int]) -> None:
    messages: list[tuple[str, list[Part]]] = []
    for content, answer in zip(contents, answers, strict=False):
        messages += [("user", content), ("assistant", [text(answer)])]
    one = item(*messages)
    media = [
        MediumTokens("image", [kept[0]]) if part.type == "image" else MediumTokens("video", kept, [k / 2 for k in range(len(kept))])
        for content in contents
        for part in content
        if part.type != "text"
    ]
    encoded = encode_item(one, small, media)
    placeholders = sum(sum(m.per_frame_kept) for m in media)
    text_tokens, labelled = count_item(one, small, media)
    assert len(encoded.input_ids) == len(encoded.labels) == text_tokens + placeholders
    assert encoded.visual.sum() == placeholders
    assert (encoded.labels != IGNORED).sum() == labelled
    assert not (encoded.labels[encoded.visual] != IGNORED).any()
    assert encoded.labels[0] == IGNORED
    ends = encoded.input_ids == small.convert_tokens_to_ids(END)
    assert (ends & (encoded.labels != IGNORED)).sum() == len(contents)
    # Kept tokens change the placeholders alone, so one count of text serves every compression.
    fewer = [MediumTokens(m.kind, [1] * len(m.per_frame_kept), m.times) for m in media]
    assert count_item(one, small, fewer) == (text_tokens, labelled)


def test_training_depends_on_the_set_of_texts_alone(tmp_path: Path) -> None:
    shuffled = TEXTS * 2
    random.Random(3).shuffle(shuffled)
    first = train_tokenizer(TEXTS, tmp_path / "a", 330)
    train_tokenizer(iter(shuffled), tmp_path / "b", 330)
    (tmp_path / "texts.json").write_text(json.dumps(shuffled[::-1]))
    program = (
        "import json, sys; from shards.chat import train_tokenizer;"
        f"train_tokenizer(json.load(open({str(tmp_path / 'texts.json')!r})), {str(tmp_path / 'c')!r}, 330)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    files = {(tmp_path / name / "tokenizer.json").read_bytes() for name in "abc"}
    assert len(files) == 1
    assert len({tokenizer_digest(tmp_path / name) for name in "abc"}) == 1
    train_tokenizer([*TEXTS, "zebra zebra zebra zebra"], tmp_path / "d", 330)
    assert tokenizer_digest(tmp_path / "d") != tokenizer_digest(tmp_path / "a")
    assert len(first) <= 330
    assert set(TRAINED_SPECIALS) <= set(first.get_added_vocab())
    with pytest.raises(ValueError, match="vocab_size 200"):
        train_tokenizer(TEXTS, tmp_path / "e", 200)


def test_trained_tokenizers_load_everywhere_and_lose_no_text(small: Any, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for value in ("Picture 3 shows a cat, isn't it?\n", "ünseen 漢字 \t\n x", f"a{END}b"):
        assert auto(value)["input_ids"] == small(value)["input_ids"]
        assert auto.decode(auto(value)["input_ids"]) == value
    assert auto.eos_token == END
    assert auto.pad_token == "<|endoftext|>"


def test_the_digest_is_of_what_decides_ids(qwen: Any, qwen_tokenizer_dir: Path, tmp_path: Path) -> None:
    digest = tokenizer_digest(qwen_tokenizer_dir)
    qwen.save_pretrained(tmp_path)  # laid out otherwise: merges as pairs, new fields, indented
    assert tokenizer_digest(tmp_path) == digest
    qwen_auto = AutoTokenizer.from_pretrained(qwen_tokenizer_dir, local_files_only=True)
    for value in ("Hello  world\n\n it's 12345 é", f"a{END}\nb <tool_call>"):
        assert qwen(value)["input_ids"] == qwen_auto(value)["input_ids"]
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"] = {"type": "NFKC"}
    path.write_text(json.dumps(value))
    assert tokenizer_digest(tmp_path) != digest


def test_missing_tokenizers_are_named(tmp_path: Path, small: Any) -> None:
    with pytest.raises(ConfigError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    small.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != IMAGE]
    path.write_text(json.dumps(value))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"lacks <\|image_pad\|>"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda value: value.update(model=None)),
        ("tokenizer.json", lambda value: value["model"].update(vocab=[1])),
        ("tokenizer.json", lambda value: value["model"].update(merges=[["never", "seen"]])),
        ("tokenizer.json", lambda value: value.update(added_tokens=[{"x": 1}])),
        ("tokenizer_config.json", None),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], None] | None, name: str) -> None:
    train_tokenizer(["some words"], tmp_path, 300)
    value = json.loads((tmp_path / name).read_text("utf-8"))
    if change is not None:
        change(value)
    (tmp_path / name).write_text(json.dumps(value) if change is not None else "{", "utf-8")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
    if change is not None and "never" not in json.dumps(value):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            tokenizer_digest(tmp_path)

"""The benchmark's clips of digits: nothing but pixels tells an answer, and what stands still decodes to equal pixels."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.digits_data import Originals, originals
from benchmarks.motion_data import (
    CLIP_KINDS,
    FPS,
    MOST_CHANGES,
    WAYS,
    AskedClip,
    clips,
    frames_of,
    write_clips,
    write_spelling,
    write_video,
)
from benchmarks.motion_run import HERE
from shards.compression import compress
from shards.media import Limits
from shards.preprocess import frame_grid, patchify, resize_frames
from shards.profile import load_profile
from shards.video import sample_frames, video_header

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def found() -> Originals:
    return originals("train")


@pytest.fixture(scope="module", params=CLIP_KINDS)
def asked(request: pytest.FixtureRequest, found: Originals) -> list[AskedClip]:
    return clips(found, request.param, 1200, seed=3)


def outside(one: AskedClip) -> list[int]:
    """All that is known of a clip without seeing a digit: sizes, length, where it starts, and when something happens, except where that is
    what is asked."""
    clip, first = one.clip, one.clip.spots[0]
    when = [] if one.kind == "changes" else [*map(int, clip.changes), *[0] * (8 - len(clip.spots))]
    return [clip.width, clip.height, first.side, first.left, first.top, len(clip.spots), *when]


def forest_right(seen: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.ensemble import RandomForestClassifier

    half = len(seen) // 2
    forest = RandomForestClassifier(30, min_samples_leaf=5, random_state=0).fit(seen[:half], answers[:half])
    return float((forest.predict(seen[half:]) == answers[half:]).mean())


def test_nothing_but_the_pixels_tells_the_answer(asked: list[AskedClip]) -> None:
    seen = np.array([outside(a) for a in asked])
    chance = {"name": 0.16, "way": 0.32, "changes": 0.32}
    for question, most in chance.items():
        if question in asked[0].answers:
            assert forest_right(seen, np.array([a.answers[question] for a in asked])) < most, question
    for place in (0, -1):
        assert forest_right(seen, np.array([a.labels[place] for a in asked])) < 0.16


def test_the_forest_sees_the_way_where_it_can_be_seen(found: Originals) -> None:
    """The test above can fail: given where a digit ends, the forest knows the way."""
    moving = clips(found, "moves", 1200, 3)
    ends = [[a.clip.spots[-1].left - a.clip.spots[0].left, a.clip.spots[-1].top - a.clip.spots[0].top] for a in moving]
    assert forest_right(np.array(ends), np.array([a.answers["way"] for a in moving])) > 0.6


def test_a_moving_digit_goes_one_way_around_its_border(found: Originals) -> None:
    moving = clips(found, "moves", 600, 1)
    assert set(Counter(a.answers["way"] for a in moving).values()) == {150}
    wrapped = 0
    for one in moving:
        clip, (across, down) = one.clip, WAYS[one.answers["way"]]
        strides = set()
        for before, after in zip(clip.spots, clip.spots[1:], strict=False):
            x, y = (after.left - before.left) % clip.width, (after.top - before.top) % clip.height
            if before != after:
                strides.add((x * across % clip.width) or (y * down % clip.height))
                assert (x == 0) == (across == 0)
                assert (y == 0) == (down == 0)
        assert len(strides) == 1
        assert 2 * strides.pop() < min(clip.width, clip.height)
        wrapped += any(s.left + s.side > clip.width or s.top + s.side > clip.height for s in clip.spots)
        assert one.labels == (int(found.labels[clip.spots[0].original]),)
        assert one.answers["name"] == str(one.labels[0])
    assert wrapped > 300
    for way in WAYS:  # starts are everywhere, whatever the way
        starts = np.array([(a.clip.spots[0].left, a.clip.spots[0].top) for a in moving if a.answers["way"] == way])
        assert (starts.min(0) < 6).all()
        assert (starts.max(0) > 54).all()


def test_digits_that_follow_each_other_differ_and_are_told_in_their_order(found: Originals) -> None:
    for kind in ("order", "changes"):
        shown = clips(found, kind, 400, 2)
        for one in shown:
            seen = [
                one.clip.spots[0],
                *(after for before, after in zip(one.clip.spots, one.clip.spots[1:], strict=False) if before != after),
            ]
            labels = [int(found.labels[s.original]) for s in seen]
            assert all(a != b for a, b in itertools.pairwise(labels))
            assert one.answers["order"] == "".join(map(str, labels))
            assert list(one.labels) == labels
            if kind == "order":
                assert len(labels) == 2
            else:
                assert one.answers["changes"] == str(len(labels) - 1)
        if kind == "changes":
            assert Counter(len(a.labels) for a in shown) == dict.fromkeys(range(1, MOST_CHANGES + 2), 100)


def test_a_seed_is_a_dataset_and_originals_come_in_turn(found: Originals) -> None:
    first, again, other = (clips(found, "order", 30, seed) for seed in (5, 5, 6))
    assert first == again != other
    names = Counter(a.clip.spots[0].original for a in clips(found, "moves", 2 * len(found.labels), 1))
    assert set(names.values()) == {2}


def test_static_stretches_decode_to_equal_pixels_and_their_tokens_are_dropped(found: Originals, tmp_path: Path) -> None:
    profile = load_profile(str(HERE / "profile.yaml"), "")
    still = kept = tokens = 0
    for kind in CLIP_KINDS:
        listed = write_clips(tmp_path, kind, clips(found, kind, 6, 7), found)
        for one, line in zip(clips(found, kind, 6, 7), listed.read_text("utf-8").splitlines(), strict=True):
            data = (tmp_path / json.loads(line)["files"]).read_bytes()
            sampled = sample_frames(data, FPS, 8, Limits())
            assert (sampled.pixels == frames_of(one.clip, found)).all()  # as drawn, to the bit
            assert sampled.times.tolist() == [n / FPS for n in range(len(one.clip.spots))]
            grid = frame_grid(one.clip.height, one.clip.width, len(sampled.pixels), profile, len(sampled.pixels))
            pixels = patchify(resize_frames(sampled.pixels, grid, profile.patch), profile.patch, profile.video_merge)
            frames = pixels.reshape(len(sampled.pixels), -1)
            for n, changed in enumerate(one.clip.changes):
                assert bool((frames[n + 1] != frames[n]).any()) == changed
                still += not changed
            mask = compress(pixels, len(frames), *grid, 1, profile.method, profile.threshold).reshape(len(frames), -1)
            assert all(row.sum() == 1 for row, changed in zip(mask[1:], one.clip.changes, strict=True) if not changed)
            kept, tokens = kept + int(mask.sum()), tokens + mask.size
    assert still > 20
    assert kept < 0.5 * tokens


def test_a_blank_clip_says_nothing_but_its_size(found: Originals, tmp_path: Path) -> None:
    asked = clips(found, "changes", 2, 1)
    blank = write_clips(tmp_path, "blank", asked, found, "changes", blank=True).read_text("utf-8").splitlines()
    for one, line in zip(asked, blank, strict=True):
        record = json.loads(line)
        data = (tmp_path / record["files"]).read_bytes()
        assert len(np.unique(sample_frames(data, FPS, 8, Limits()).pixels)) == 1
        header = video_header(data, Limits())
        assert (header.width, header.height, header.duration) == (one.clip.width, one.clip.height, len(one.clip.spots) / FPS)
        assert [turn["value"] for turn in record["conversations"]] == ["<video>\nchanges", one.answers["changes"]]


def test_what_is_learned_from_has_all_turns_and_counts_before_it_names(found: Originals, tmp_path: Path) -> None:
    asked = clips(found, "moves", 2, 1)
    lines = write_clips(tmp_path, "moves", asked, found).read_text("utf-8").splitlines()
    said = [[turn["value"] for turn in json.loads(line)["conversations"]] for line in lines]
    (first, second), (a, b) = (("name", "way"), ("way", "name")), asked
    assert said[0] == [f"<video>\n{first[0]}", a.answers["name"], "way", a.answers["way"]]
    assert said[1] == [f"<video>\n{second[0]}", b.answers["way"], "name", b.answers["name"]]
    lines = write_clips(tmp_path, "changes", clips(found, "changes", 2, 1), found).read_text("utf-8").splitlines()
    assert [[turn["value"] for turn in json.loads(line)["conversations"]][::2] for line in lines] == [["<video>\nchanges", "order"]] * 2


def test_a_video_is_without_loss(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 62, 74, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mkv", noise)
    assert (sample_frames((tmp_path / "noise.mkv").read_bytes(), FPS, 8, Limits()).pixels == noise).all()


def test_each_answer_is_one_token(tmp_path: Path) -> None:
    from shards.tokenizer import text_only, train_tokenizer

    said = [
        turn["value"] for line in write_spelling(tmp_path).read_text("utf-8").splitlines() for turn in json.loads(line)["conversations"]
    ]
    tokenizer = text_only(train_tokenizer(said, tmp_path / "words", 512))
    for word in (*WAYS, "name", "way", "order", "changes", "user", "assistant", "Time", *"0123456789"):
        assert len(tokenizer.encode(word).ids) == 1, word

"""The benchmark's pictures of digits: nothing held out is trained on, and no answer can be told from a picture's outside."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.digits_data import (
    HELD_OUT,
    KINDS,
    QUESTIONS,
    Asked,
    Kind,
    Originals,
    Part,
    answer_of,
    draw,
    lay,
    originals,
    scenes,
    shuffled,
    textured,
    words,
    write_pictures,
)
from benchmarks.digits_score import one_digit_alone, scored

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def found() -> Originals:
    return originals("train")


@pytest.fixture(scope="module", params=KINDS)
def asked(request: pytest.FixtureRequest, found: Originals) -> list[Asked]:
    return scenes(found, request.param, 1200, seed=3)


def test_originals_are_split_before_anything_else() -> None:
    parts: dict[Part, set[int]] = {part: set(originals(part, tuning=True).rows.tolist()) for part in ("train", "tune", "held_out")}
    assert len(parts["held_out"]) == HELD_OUT >= 350
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 1797
    assert set(originals("train").rows.tolist()) == parts["train"] | parts["tune"]
    assert set(originals("held_out").labels.tolist()) == set(range(10))
    images = {part: {image.tobytes() for image in originals(part).images} for part in ("train", "held_out")}
    assert not images["train"] & images["held_out"]


def test_sizes_and_places_vary(asked: list[Asked], found: Originals) -> None:
    assert len({(a.scene.width, a.scene.height) for a in asked}) > 100
    for get in (lambda d: d.left, lambda d: d.top, lambda d: d.side):
        assert len({get(d) for a in asked for d in a.scene.digits}) >= 10
    for one in asked:
        assert all(d.left >= 0 and d.left + d.side <= one.scene.width for d in one.scene.digits)
        assert all(d.top >= 0 and d.top + d.side <= one.scene.height for d in one.scene.digits)
        for left, right in zip(one.scene.digits, one.scene.digits[1:], strict=False):
            assert left.left + left.side <= right.left + 1  # side by side
        assert [int(found.labels[d.original]) for d in one.scene.digits] == list(one.labels)


def test_nothing_but_the_digits_tells_the_answer(asked: list[Asked]) -> None:
    from sklearn.ensemble import RandomForestClassifier

    def outside(one: Asked) -> list[int]:
        flat = [value for d in one.scene.digits for value in (d.left, d.top, d.side)]
        return [one.scene.width, one.scene.height, *flat, *[0] * (9 - len(flat))]

    seen = np.array([outside(a) for a in asked])
    last = np.array([a.answer if a.kind == "larger" else str(a.labels[-1]) for a in asked])
    half = len(asked) // 2
    forest = RandomForestClassifier(30, min_samples_leaf=5, random_state=0).fit(seen[:half], last[:half])
    right = float((forest.predict(seen[half:]) == last[half:]).mean())
    assert right < (0.57 if asked[0].kind == "larger" else 0.16)


def test_answers_are_balanced(found: Originals) -> None:
    names = Counter(a.scene.digits[0].original for a in scenes(found, "name", 3 * len(found.labels), 1))
    assert set(names.values()) == {3}
    read = scenes(found, "read", 1000, 1)
    assert Counter(len(a.labels) for a in read) == {2: 500, 3: 500}
    widths = {n: [a.scene.width for a in read if len(a.labels) == n] for n in (2, 3)}
    assert abs(np.mean(widths[2]) - np.mean(widths[3])) < 3
    pairs = scenes(found, "larger", 2000, 1)
    assert Counter(a.answer for a in pairs) == {"left": 1000, "right": 1000}
    assert all(a.labels[0] != a.labels[1] for a in pairs)
    assert one_digit_alone((a.labels[0], a.labels[1]) for a in pairs) < 0.81  # 0.78 of all pairs that differ


def test_labels_dealt_at_random_keep_their_numbers_and_lose_their_meaning(found: Originals) -> None:
    wrong = shuffled(found, 1)
    assert Counter(wrong.labels.tolist()) == Counter(found.labels.tolist())
    assert float((wrong.labels == found.labels).mean()) < 0.15
    assert (wrong.images == found.images).all()
    assert not (wrong.labels == shuffled(found, 2).labels).all()


def test_a_seed_is_a_dataset(found: Originals) -> None:
    kind: Kind = "larger"
    first, again, other = (scenes(found, kind, 30, seed) for seed in (5, 5, 6))
    assert first == again != other
    assert (draw(first[0].scene, found) == draw(again[0].scene, found)).all()


def test_digits_stand_out_from_a_ground_that_is_textured(found: Originals) -> None:
    for one in scenes(found, "name", 20, 2):
        picture = draw(one.scene, found).astype(float)
        digit = one.scene.digits[0]
        inside = picture[digit.top : digit.top + digit.side, digit.left : digit.left + digit.side].mean(2)
        ground, _ = textured(one.scene.width, one.scene.height, one.scene.ground)
        assert ground.mean(2).std() > 2
        assert inside.min() < ground.mean() - 60


def test_frames_of_a_clip_share_their_ground(found: Originals) -> None:
    one = scenes(found, "name", 1, 4)[0]
    ground, ink = textured(60, 60, 1)
    frames = [lay(ground, ink, [type(d)(d.original, d.left + move, d.top, 20) for d in one.scene.digits], found) for move in (0, 1)]
    assert (frames[0] != frames[1]).any()
    assert (frames[0][:, -3:] == frames[1][:, -3:]).all()
    assert (ground == textured(60, 60, 1)[0]).all()  # laying digits leaves the ground as it was


def test_files_hold_what_is_asked(found: Originals, tmp_path: Path) -> None:
    asked = scenes(found, "read", 3, 1)
    records = [json.loads(line) for line in write_pictures(tmp_path, "read", asked, found).read_text("utf-8").splitlines()]
    for one, record in zip(asked, records, strict=True):
        with Image.open(tmp_path / record["files"]) as picture:
            assert (np.asarray(picture) == draw(one.scene, found)).all()
        question, answer = record["conversations"]
        assert question == {"from": "human", "value": f"<image>\n{QUESTIONS['read']}"}
        assert answer == {"from": "gpt", "value": "".join(map(str, one.labels))}


def test_pairs_that_are_learned_from_have_a_second_turn_and_those_that_are_asked_about_have_not(found: Originals, tmp_path: Path) -> None:
    asked = scenes(found, "larger", 4, 1)
    learned = write_pictures(tmp_path / "train", "larger", asked, found, more=True)
    for number, (one, line) in enumerate(zip(asked, learned.read_text("utf-8").splitlines(), strict=True)):
        said = [turn["value"] for turn in json.loads(line)["conversations"]]
        both = {"larger": one.answer, "read": "".join(map(str, one.labels))}
        first, second = ("read", "larger") if number % 2 == 0 else ("larger", "read")
        assert said == [f"<image>\n{first}", both[first], second, both[second]]
    line = write_pictures(tmp_path / "held_out", "larger", asked, found).read_text("utf-8").splitlines()[0]
    assert [turn["value"] for turn in json.loads(line)["conversations"]] == ["<image>\nlarger", asked[0].answer]


def test_what_is_said_in_words_is_true() -> None:
    numbers = {word: n for n, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))}
    sides: Counter[str] = Counter()
    for question, answer in words(800, 1)[2:]:
        text, said = question["value"], answer["value"]
        labels = [numbers[word] for word in text.split() if word in numbers]
        if text.startswith("count"):
            assert said == "".join(map(str, range(labels[0], labels[1] + 1)))
            continue
        kind = next(kind for kind in KINDS if text.endswith(f"\n{QUESTIONS[kind]}"))
        assert said == answer_of(kind, labels)
        sides[said] += kind == "larger"
    assert 0.4 < sides["left"] / (sides["left"] + sides["right"]) < 0.6


def test_scores_count_what_is_right() -> None:
    said = [("name", "3", "3"), ("name", "4", " 9"), ("read", "12", "12"), ("read", "345", "34"), ("read", "67", "677")]
    said += [("larger", "left", "left"), ("larger", "right", "left"), ("larger", "right", "right")]
    found = scored({"source": kind, "gold": [gold], "answer": answer} for kind, gold, answer in said)
    assert (found.name, found.read, found.read_two, found.read_three) == (0.5, 1 / 3, 0.5, 0.0)
    assert found.read_digits == 6 / 7
    assert (found.larger, found.said_left) == (2 / 3, 2 / 3)
    assert found.pictures == {"name": 2, "read": 3, "larger": 3}
    with pytest.raises(ValueError, match="no answers about pictures of name"):
        scored([{"source": "larger", "gold": ["left"], "answer": "left"}])


def test_each_answer_and_each_header_is_one_token(tmp_path: Path) -> None:
    from shards.tokenizer import text_only, train_tokenizer

    said = [turn["value"] for turns in words(400, 1) for turn in turns]
    tokenizer = text_only(train_tokenizer(said, tmp_path, 512))
    for word in ("left", "right", *QUESTIONS.values(), "user", "assistant", *"0123456789"):
        assert len(tokenizer.encode(word).ids) == 1, word

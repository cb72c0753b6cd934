"""Pictures of real handwritten digits, and what is asked about them: files and conversations that any corpus could have.

The 1,797 digits are scikit-learn's (`load_digits`, 8×8). They are split by original before anything is drawn: no picture to be trained on
shows a held-out one. A picture is a `Scene`: a textured ground with digits laid on it. A clip is scenes that share a ground (`textured`)
and lay the digits elsewhere (`lay`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

Kind = Literal["name", "read", "larger"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Part = Literal["train", "tune", "held_out"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS: dict[Kind, str] = {"name": "name", "read": "read", "larger": "larger"}
SIDES = ("left", "right")

HELD_OUT = 360  # originals
TUNE = 240  # of the others, for choosing settings: never those that are reported
_SPLIT_SEED = 1797
_CELL = (34, 46)  # least and greatest height of a picture, and width for each digit, in pixels
_SHARE = (0.72, 0.98)  # side of a digit, as a share of the room it has


@dataclass(frozen=True)
class Originals:
    """images uint8 [n, 8, 8], ink 255; labels int64 [n]; rows: their numbers in `load_digits`, int64 [n]."""

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, slots=True)
class Placed:
    """One digit of a scene: `original` is a place in Originals, the rest pixels."""

    original: int
    left: int
    top: int
    side: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture of width × height pixels. `ground` seeds its texture and colours; digits stand from left to right."""

    width: int
    height: int
    ground: int
    digits: tuple[Placed, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture and what is asked about it first; `labels` are its digits' from left to right."""

    kind: Kind
    scene: Scene
    labels: tuple[int, ...]

    @property
    def answer(self) -> str:
        return answer_of(self.kind, self.labels)


def answer_of(kind: Kind, labels: Sequence[int]) -> str:
    """What is right to say of digits from left to right. `larger` takes two that differ."""
    if kind == "larger":
        left, right = labels
        if left == right:
            raise ValueError(f"neither of {left} and {right} is the larger")
        return SIDES[right > left]
    return "".join(map(str, labels))


@cache
def _all_digits() -> Originals:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    return Originals(images, found.target.astype(np.int64), np.arange(len(images)))


def originals(part: Part, tuning: bool = False) -> Originals:
    """The originals of a part. While tuning, `tune` is taken out of `train`; otherwise it is inside it. The split never changes."""
    digits = _all_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.labels))
    first = HELD_OUT + TUNE if tuning else HELD_OUT
    rows = {"held_out": order[:HELD_OUT], "tune": order[HELD_OUT : HELD_OUT + TUNE], "train": order[first:]}[part]
    return Originals(digits.images[rows], digits.labels[rows], rows)


def shuffled(found: Originals, seed: int) -> Originals:
    """The same originals with labels dealt at random among them: as many of each label, none that means anything."""
    return replace(found, labels=np.random.default_rng([seed, 7]).permutation(found.labels))


def scenes(found: Originals, kind: Kind, count: int, seed: int) -> list[Asked]:
    """`count` pictures of one kind. Sizes, places and grounds are drawn before the digits and without looking at them.

    name    one digit; originals in turn, each as often as any other (±1).
    read    two or three digits, as many pictures of either; widths are drawn alike for both.
    larger  two digits that differ, half of the pictures with the larger one on the right.
    """
    random = np.random.default_rng([seed, KINDS.index(kind)])
    turns = np.concatenate([random.permutation(len(found.labels)) for _ in range(1 + count // len(found.labels))])
    made: list[Asked] = []
    for number in range(count):
        chosen = _choose(found, kind, number, turns, random)
        scene = _placed(kind, chosen, random)
        made.append(Asked(kind, scene, tuple(int(found.labels[i]) for i in chosen)))
    order = random.permutation(count)
    return [made[i] for i in order]


def _choose(found: Originals, kind: Kind, number: int, turns: np.ndarray, random: np.random.Generator) -> list[int]:
    if kind == "name":
        return [int(turns[number])]
    if kind == "read":
        return [int(i) for i in random.choice(len(found.labels), 2 + number % 2, replace=False)]
    first = int(turns[number])
    second = first
    while found.labels[second] == found.labels[first]:
        second = int(random.integers(len(found.labels)))
    low, high = sorted((first, second), key=lambda i: int(found.labels[i]))
    return [low, high] if number % 2 else [high, low]


def _placed(kind: Kind, chosen: Sequence[int], random: np.random.Generator) -> Scene:
    """Digits side by side, each somewhere within its own share of the width."""
    room = {"name": 1, "read": 3, "larger": 2}[kind]
    height = int(random.integers(_CELL[0], _CELL[1] + 1))
    width = int(random.integers(room * _CELL[0], room * _CELL[1] + 1))
    if kind == "name":
        width = int(random.integers(_CELL[0], _CELL[1] + 14))
    digits = []
    for place, original in enumerate(chosen):
        share = width / len(chosen)
        side = int(min(share, height) * random.uniform(*_SHARE))
        left = int(place * share + random.uniform(0, share - side))
        top = int(random.uniform(0, height - side))
        digits.append(Placed(original, left, top, side))
    return Scene(width, height, int(random.integers(2**31)), tuple(digits))


def draw(scene: Scene, found: Originals) -> np.ndarray:
    """uint8 (height, width, 3)."""
    ground, ink = textured(scene.width, scene.height, scene.ground)
    return lay(ground, ink, scene.digits, found)


def textured(width: int, height: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(ground, ink): float32 (height, width, 3) of smooth noise around a colour, and a colour float32 (3,) that stands out from it: dark
    on light or light on dark."""
    random = np.random.default_rng(seed)
    coarse = random.normal(0, 14, (3 + height // 12, 3 + width // 12, 3)).clip(-40, 40)
    noise = Image.fromarray((coarse + 128).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    light, dark = random.uniform(165, 235, 3), random.uniform(15, 75, 3)
    colour, ink = (light, dark)
    return np.asarray(noise, dtype=np.float32) - 128 + colour.astype(np.float32), ink.astype(np.float32)


def lay(ground: np.ndarray, ink: np.ndarray, digits: Sequence[Placed], found: Originals) -> np.ndarray:
    """uint8 picture of digits on a ground, each drawn at its side by bicubic enlargement of its 8×8 ink. What stands out on one side comes
    in on the other."""
    picture = ground.copy()
    for digit in digits:
        mask = Image.fromarray(found.images[digit.original]).resize((digit.side, digit.side), Image.Resampling.BICUBIC)
        share = np.asarray(mask, dtype=np.float32)[..., None] / 255
        rows, columns = (
            np.arange(start, start + digit.side) % size for start, size in zip((digit.top, digit.left), ground.shape, strict=False)
        )
        spot = np.ix_(rows, columns)
        picture[spot] = picture[spot] * (1 - share) + ink * share
    return picture.round().clip(0, 255).astype(np.uint8)


def write_pictures(folder: Path, kind: Kind, asked: Sequence[Asked], found: Originals, more: bool = False) -> Path:
    """PNG files under folder/<kind>/ and folder/<kind>.jsonl beside it, a record for each with its conversation. Returns the JSONL.

    more  pairs have two turns: which is larger, and both read, half of them the other way round. For training: who is asked has one.
    """
    (folder / kind).mkdir(parents=True, exist_ok=True)
    listed = folder / f"{kind}.jsonl"
    with listed.open("w", encoding="utf-8") as file:
        for number, one in enumerate(asked):
            name = f"{kind}/{number:06}.png"
            Image.fromarray(draw(one.scene, found)).save(folder / name, compress_level=1)
            turns = [(QUESTIONS[kind], one.answer)]
            if more and kind == "larger":
                turns.insert(number % 2, (QUESTIONS["read"], answer_of("read", one.labels)))
            first, *rest = turns
            conversation = talk([(f"<image>\n{first[0]}", first[1]), *rest])
            file.write(json.dumps({"id": f"{kind}-{number:06}", "files": name, "conversations": conversation}) + "\n")
    return listed


def talk(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and answers in LLaVA's form."""
    return [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]


def words(count: int, seed: int) -> list[list[dict[str, str]]]:
    """Conversations without pictures: the same questions about digits that are spelled out, and counting.

    A picture is so many tokens, most of them of paper; so the words stand among so many words `paper`, at places that mean nothing. Which
    of two is larger has as many answers left as right. The first two talks are for the tokenizer: words that
    begin a turn or an answer become one token each, so that an answer's weight lies on the choice and not on its spelling.
    """
    random = np.random.default_rng([seed, len(KINDS)])
    said = (" or ".join(SIDES), " or ".join(reversed(SIDES)))
    talks = [talk([(f"user asks user\n{sides}", f"assistant answers assistant\n{sides}")]) for sides in said]
    while len(talks) < count:
        number = len(talks)
        if number % 4 == 3:
            first, last = sorted(int(n) for n in random.choice(10, 2, replace=False))
            counted = "".join(str(n) for n in range(first, last + 1))
            talks.append(talk([(f"count {WORDS[first]} {WORDS[last]}", counted)]))
            continue
        kind = KINDS[number % 4]
        size = {"name": 1, "larger": 2, "read": int(random.integers(2, 4))}[kind]
        labels = [int(n) for n in random.choice(10, size, replace=kind == "read")]
        talks.append(talk([(f"{_on_paper(labels, random)}\n{QUESTIONS[kind]}", answer_of(kind, labels))]))
    return talks


def _on_paper(labels: Sequence[int], random: np.random.Generator) -> str:
    """Digits as words in their order, among 4 to 20 words `paper`."""
    spots = int(random.integers(4, 21)) + len(labels)
    places = dict(zip(sorted(random.choice(spots, len(labels), replace=False).tolist()), labels, strict=True))
    return " ".join(WORDS[places[spot]] if spot in places else "paper" for spot in range(spots))


def write_words(folder: Path, count: int, seed: int) -> Path:
    """folder/words.jsonl: `count` conversations without pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "words.jsonl"
    with listed.open("w", encoding="utf-8") as file:
        for number, conversation in enumerate(words(count, seed)):
            file.write(json.dumps({"id": f"words-{number:06}", "conversations": conversation}) + "\n")
    return listed

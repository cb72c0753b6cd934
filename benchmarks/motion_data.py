"""Clips of real handwritten digits that move and change, and what is asked about them: video files and conversations.

A clip is one still, textured ground with one digit at a time on it (`Clip`), written without loss, so that stretches where nothing
happens decode to equal pixels. Its border does not end it: what leaves on one side comes back on the other, so that neither the start nor
the end tells where a digit goes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from benchmarks.digits_data import Originals, Placed, lay, talk, textured

ClipKind = Literal["moves", "order", "changes"]
CLIP_KINDS: tuple[ClipKind, ...] = get_args(ClipKind)

WAYS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOST_CHANGES = 3
FPS = 2  # what a clip's states are told by; the file has every state FILE_FRAMES times
FILE_FRAMES = 2

_FRAMES = (6, 7)
_CANVAS = 70  # width and height, pixels: five patches
_SIDE: dict[ClipKind, tuple[int, int]] = {"moves": (24, 31), "order": (28, 38), "changes": (28, 38)}
_STRIDE = 14  # pixels a digit moves at once: below half of the canvas, or left could as well be right
_MOVES = (4, 5)  # of a clip, one after the other


@dataclass(frozen=True, slots=True)
class Clip:
    """width × height pixels, `ground` seeds texture and colours; `spots` are where the one digit stands in each of its states, FPS of them
    a second. Two equal spots in a row are a stretch without any change."""

    width: int
    height: int
    ground: int
    spots: tuple[Placed, ...]

    @property
    def changes(self) -> tuple[bool, ...]:
        """Whether something happens between two states."""
        return tuple(a != b for a, b in zip(self.spots, self.spots[1:], strict=False))


@dataclass(frozen=True, slots=True)
class AskedClip:
    """labels: of the digits in their order. answers: question → what is right to say."""

    kind: ClipKind
    clip: Clip
    labels: tuple[int, ...]
    answers: Mapping[str, str]


def clips(found: Originals, kind: ClipKind, count: int, seed: int) -> list[AskedClip]:
    """`count` clips of a kind, _CANVAS pixels wide and high. Sizes of digits, places, grounds and times are drawn without looking at labels
    or at the way.

    moves    one digit, which goes one way by four or five strides in a row and rests before and after: `name`, `way`.
    order    two digits that differ, one after the other: `order`.
    changes  one to four digits, never two equal in a row, as many clips of each number: `changes` (how often), `order`.

    Originals come in turn as the first digit, each as often as any other (±1); ways and numbers of changes as well.
    """
    random = np.random.default_rng([seed, 100 + CLIP_KINDS.index(kind)])
    turns = np.concatenate([random.permutation(len(found.labels)) for _ in range(1 + count // len(found.labels))])
    made = [
        _moving(found, int(turns[n]), n, random) if kind == "moves" else _shown(found, kind, int(turns[n]), n, random) for n in range(count)
    ]
    return [made[i] for i in random.permutation(count)]


def _moving(found: Originals, original: int, number: int, random: np.random.Generator) -> AskedClip:
    way = list(WAYS)[number % len(WAYS)]
    side, frames = _sizes("moves", random)
    left, top = (int(at) for at in random.integers(_CANVAS, size=2))
    moves = int(random.integers(_MOVES[0], _MOVES[1] + 1))
    first = int(random.integers(frames - moves))
    moved = (np.arange(frames - 1) >= first) & (np.arange(frames - 1) < first + moves)
    spots = [Placed(original, left, top, side)]
    for strides in np.cumsum(moved).tolist():
        across, down = (_STRIDE * strides * part for part in WAYS[way])
        spots.append(Placed(original, (left + across) % _CANVAS, (top + down) % _CANVAS, side))
    label = int(found.labels[original])
    return AskedClip("moves", _clip(spots, random), (label,), {"name": str(label), "way": way})


def _shown(found: Originals, kind: ClipKind, first: int, number: int, random: np.random.Generator) -> AskedClip:
    changes = 1 if kind == "order" else number % (MOST_CHANGES + 1)
    side, frames = _sizes(kind, random)
    chosen = [first]
    while len(chosen) <= changes:
        other = int(random.integers(len(found.labels)))
        if found.labels[other] != found.labels[chosen[-1]]:
            chosen.append(other)
    room = _CANVAS - side + 1
    places = [Placed(o, int(random.integers(room)), int(random.integers(room)), side) for o in chosen]
    changed = np.isin(np.arange(frames - 1), random.choice(frames - 1, changes, replace=False))
    spots = [places[at] for at in (0, *np.cumsum(changed).tolist())]
    labels = tuple(int(found.labels[o]) for o in chosen)
    answers = {"changes": str(changes)} if kind == "changes" else {}
    return AskedClip(kind, _clip(spots, random), labels, {**answers, "order": "".join(map(str, labels))})


def _sizes(kind: ClipKind, random: np.random.Generator) -> tuple[int, int]:
    """Side of the digit, states."""
    return int(random.integers(_SIDE[kind][0], _SIDE[kind][1] + 1)), int(random.integers(_FRAMES[0], _FRAMES[1] + 1))


def _clip(spots: Sequence[Placed], random: np.random.Generator) -> Clip:
    return Clip(_CANVAS, _CANVAS, int(random.integers(2**31)), tuple(spots))


def frames_of(clip: Clip, found: Originals) -> np.ndarray:
    """uint8 (states, height, width, 3)."""
    ground, ink = textured(clip.width, clip.height, clip.ground)
    drawn = {spot: lay(ground, ink, (spot,), found) for spot in set(clip.spots)}
    return np.stack([drawn[spot] for spot in clip.spots])


def write_video(path: Path, frames: np.ndarray) -> None:
    """uint8 (states, height, width, 3) as H.264 without loss, in RGB (x264's quantiser 0), FPS states a second."""
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264rgb", rate=FPS * FILE_FRAMES, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.codec_context.thread_count = 1
        for frame in np.repeat(frames, FILE_FRAMES, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_clips(folder: Path, name: str, asked: Sequence[AskedClip], found: Originals, question: str = "", blank: bool = False) -> Path:
    """Videos under folder/<name>/ and folder/<name>.jsonl beside it, a record for each with its conversation. Returns the JSONL.

    question  the one that is asked; "" = all that the clip answers, of `moves` each second clip in the other order. For training. How often
              something changes is asked first of all: after the digits have been told, it is counted there and not in the clip.
    blank     every pixel of the clip is of one grey: what is said of it has not been seen.
    """
    (folder / name).mkdir(parents=True, exist_ok=True)
    listed = folder / f"{name}.jsonl"
    with listed.open("w", encoding="utf-8") as file:
        for number, one in enumerate(asked):
            video = f"{name}/{number:06}.mkv"
            frames = frames_of(one.clip, found)
            write_video(folder / video, np.full_like(frames, 128) if blank else frames)
            file.write(json.dumps({"id": f"{name}-{number:06}", "files": video, "conversations": _talk_of(one, number, question)}) + "\n")
    return listed


def _talk_of(one: AskedClip, number: int, question: str) -> list[dict[str, str]]:
    turns = [(asks, answer) for asks, answer in one.answers.items() if question in ("", asks)]
    (asks, answer), *rest = reversed(turns) if one.kind == "moves" and number % 2 else turns
    return talk([(f"<video>\n{asks}", answer), *rest])


def write_spelling(folder: Path) -> Path:
    """folder/spelling.jsonl: a text for the tokenizer, with the words that begin a turn, a frame or an answer, each of which then is
    one token. Nothing is trained on them."""
    folder.mkdir(parents=True, exist_ok=True)
    words = "\n".join(["user", "assistant", "name", "way", "order", "changes", *WAYS, "Time 0.0s:", ",Time 0.5s:"] * 3)
    talks = [talk([(words, words)])]
    listed = folder / "spelling.jsonl"
    lines = [json.dumps({"id": f"spelling-{n}", "conversations": conversation}) for n, conversation in enumerate(talks)]
    listed.write_text("\n".join(lines) + "\n", "utf-8")
    return listed

"""How many answers about held-out digits are right: a pure function of the file that `fovea evaluate --out` writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.digits_data import SIDES


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares of right answers, 0..1, and how many pictures each is over.

    name         one digit named.
    read_digits  several digits: of all that stand there, how many are said at their place.   read_two, read_three, read: all of a picture.
    larger       which of two.   said_left: share of the answers to it that say left (half of them should).
    """

    name: float
    read_digits: float
    read_two: float
    read_three: float
    read: float
    larger: float
    said_left: float
    pictures: Mapping[str, int]


def scored(answers: Iterable[Mapping[str, Any]]) -> Scores:
    """Of records with `source` (the kind of picture), `gold` (its one right answer first) and `answer`. Raises ValueError without any of
    a kind."""
    said: dict[str, list[tuple[str, str]]] = {"name": [], "read": [], "larger": []}
    for one in answers:
        said[one["source"]].append((one["gold"][0], one["answer"].strip()))
    missing = [kind for kind, pairs in said.items() if not pairs]
    if missing:
        raise ValueError(f"no answers about pictures of {', '.join(missing)}")
    read = said["read"]
    digits = [gold[i] == answer[i : i + 1] for gold, answer in read for i in range(len(gold))]
    return Scores(
        name=_right(said["name"]),
        read_digits=sum(digits) / len(digits),
        read_two=_right([pair for pair in read if len(pair[0]) == 2]),
        read_three=_right([pair for pair in read if len(pair[0]) == 3]),
        read=_right(read),
        larger=_right(said["larger"]),
        said_left=sum(answer == SIDES[0] for _, answer in said["larger"]) / len(said["larger"]),
        pictures={kind: len(pairs) for kind, pairs in said.items()},
    )


def scores_of(path: Path) -> Scores:
    return scored(json.loads(line) for line in path.read_text("utf-8").splitlines())


def right_by_source(answers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Share of right answers of each source, by name. Records as `scored` takes them; one that failed (`error`) is a wrong answer."""
    said: dict[str, list[tuple[str, str]]] = {}
    for one in answers:
        said.setdefault(one["source"], []).append(("right", "wrong") if "error" in one else (one["gold"][0], one["answer"].strip()))
    return {source: _right(said[source]) for source in sorted(said)}


def one_digit_alone(pairs: Iterable[tuple[int, int]]) -> float:
    """What `larger` reaches if only the left digit is known, and guessed from it as well as can be: the anchor to beat."""
    counts: dict[int, list[int]] = {}
    total = 0
    for left, right in pairs:
        counts.setdefault(left, [0, 0])[right > left] += 1
        total += 1
    return sum(map(max, counts.values())) / total


def _right(pairs: list[tuple[str, str]]) -> float:
    return sum(gold == answer for gold, answer in pairs) / len(pairs)

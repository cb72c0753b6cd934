"""What a caption claims is written in a picture, and whether the text that was read there bears it out. Pure functions over text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Kind = Literal["quoted", "number", "name"]
KINDS: tuple[Kind, ...] = ("quoted", "number", "name")

MOST_CLAIMS = 100  # of one caption; what goes on after that repeats itself
_QUOTED = re.compile(
    r"“([^“”\n]{1,300})”|\"([^\"\n]{1,300})\"|«([^«»\n]{1,300})»|„([^„“”\n]{1,300})[“”]|「([^「」\n]{1,300})」|『([^『』\n]{1,300})』"
    r"|《([^《》\n]{1,300})》|(?<!\w)‘([^‘’\n]{1,300})’(?!\w)|(?<!\w)'([^'\n]{1,300})'(?!\w)"
)
_NUMBER = re.compile(r"\d(?:[\d.,:/'’\u202f\u00a0-]*\d)?")
_WORD = re.compile(r"[^\W\d_][\w’'&-]*")
_DASHES = re.compile(r"\D+")
# Scripts that write no blanks between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_SENTENCE_ENDS = frozenset(".!?:;。！？：\n•-–—")
_NO_NAMES = frozenset({"I", "I'm", "I’m", "I'll", "I’ll", "I've", "I’ve", "I'd", "I’d", "OK"})


@dataclass(frozen=True, slots=True)
class Claim:
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Text that was read, made ready to be looked through. spaced: its words with one blank between and around. joined: without blanks.
    numbers: its numbers as bare digits, neighbours joined too."""

    spaced: str
    joined: str
    numbers: frozenset[str]


def claims(caption: str) -> list[Claim]:
    """What a caption says is written: quoted strings, numbers of two digits or more, words with a capital that begin no sentence (or are
    all capitals). What is quoted is not looked at for numbers and names again. Each once, in order, at most MOST_CLAIMS."""
    found: list[tuple[int, Claim]] = []
    rest = list(caption)
    for match in _QUOTED.finditer(caption):
        text = next(group for group in match.groups() if group is not None)
        if _plain(text).strip():
            found.append((match.start(), Claim("quoted", text.strip())))
        rest[match.start() : match.end()] = "“" * (match.end() - match.start())
    outside = "".join(rest)
    for match in _NUMBER.finditer(outside):
        if len(_DASHES.sub("", match[0])) > 1:
            found.append((match.start(), Claim("number", match[0])))
    for match in _WORD.finditer(outside):
        if _is_name(match[0], outside[: match.start()]):
            found.append((match.start(), Claim("name", match[0])))
    return list(dict.fromkeys(claim for _, claim in sorted(found, key=lambda entry: entry[0])))[:MOST_CLAIMS]


def evidence(texts: Sequence[str]) -> Evidence:
    """The texts that were read, together."""
    text = "\n".join(texts)
    words = _plain(text).split()
    digits = [_DASHES.sub("", number) for number in _NUMBER.findall(unicodedata.normalize("NFKC", text))]
    joined = [first + second for first, second in pairwise(digits)]
    return Evidence(f" {' '.join(words)} ", "".join(words), frozenset(digits + joined))


def supports(read: Evidence, claim: Claim, similarity: float) -> bool:
    """Whether the claim is found in what was read: a number digit for digit, words with up to (1 - similarity) of their letters wrong."""
    if claim.kind == "number":
        return _DASHES.sub("", unicodedata.normalize("NFKC", claim.text)) in read.numbers
    words = _plain(claim.text).split()
    core = "".join(words)
    if not core:
        return True
    wrong = int(len(core) * (1 - similarity) + 1e-9)
    if _UNSPACED.search(core):
        return least_edits(core, read.joined) <= wrong
    return least_edits(f" {' '.join(words)} ", read.spaced) <= wrong


def least_edits(pattern: str, text: str) -> int:
    """Fewest insertions, deletions and substitutions that turn `pattern` into some part of `text` (Sellers, J. Algorithms 1, 1980).

    Time is len(pattern) passes over the text; memory a few times the text.
    """
    if not pattern or pattern in text:
        return 0
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    place = np.arange(len(letters) + 1, dtype=np.int32)
    row = np.zeros(len(letters) + 1, np.int32)
    for number, letter in enumerate(pattern.encode("utf-32-le", "surrogatepass")[i : i + 4] for i in range(0, 4 * len(pattern), 4)):
        above = row + 1
        above[1:] = np.minimum(above[1:], row[:-1] + (letters != int.from_bytes(letter, "little")))
        above[0] = number + 1
        row = np.minimum.accumulate(above - place) + place  # the step along the text, for all places at once
    return int(row.min())


def _is_name(word: str, before: str) -> bool:
    if word in _NO_NAMES or len(word) < 2 or not word[0].isupper():
        return False
    letters = [c for c in word if c.isalpha()]
    if len(letters) > 1 and all(c.isupper() for c in letters):
        return True
    before = before.rstrip(" \t“”\"'‘’()[]*_#")
    return bool(before) and before[-1] not in _SENTENCE_ENDS


def _plain(text: str) -> str:
    """Letters and digits in one shape and one case, without accents (which reading often loses), everything else a blank."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if unicodedata.category(c) != "Mn")
    return "".join(
        c if unicodedata.category(c)[0] in "LNM" else "" if c in "'’-\u200d\u200e\u200f" else " "
        for c in unicodedata.normalize("NFKC", bare)
    )

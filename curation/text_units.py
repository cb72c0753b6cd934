"""A text as words, lines and characters, whatever it is written in. Everything here takes time linear in its length."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import regex

Ints = npt.NDArray[np.int64]

# Scripts without spaces between words: each letter is a word, with the marks upon it.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Elsewhere a run of letters, marks, digits and underscores; single apostrophes, hyphens, points and colons inside it belong to it.
_RUN = rf"[[\p{{L}}\p{{N}}_]--[{SPACELESS}]][[\p{{L}}\p{{M}}\p{{N}}_]--[{SPACELESS}]]*+"
WORD = rf"[{SPACELESS}]\p{{M}}*+|{_RUN}(?:['’.:\-]{_RUN})*+"
_WORD = regex.compile(WORD, regex.V1)
_KINDS = {"L": 1, "M": 1, "N": 2, "P": 3, "S": 3, "Z": 4, "C": 4}  # letters and marks, digits, symbols, white space and control


@dataclass(frozen=True, slots=True)
class Units:
    """words: as written. start, end: int64, where each begins and ends in the text, in characters. lines: without white space at their
    ends, those with nothing in them left out; line_of: int64, the line of each word."""

    text: str
    words: tuple[str, ...]
    start: Ints
    end: Ints
    lines: tuple[str, ...]
    line_of: Ints


@dataclass(frozen=True, slots=True)
class Characters:
    """How many of a text's characters are letters (with their marks), digits, symbols (punctuation, signs, emoji); all but white space
    and control characters is `visible`."""

    letters: int
    digits: int
    symbols: int

    @property
    def visible(self) -> int:
        return self.letters + self.digits + self.symbols


def units_of(text: str) -> Units:
    spans = [match.span() for match in _WORD.finditer(text)]
    start, end = np.array(spans, np.int64).reshape(-1, 2).T
    raw = text.split("\n")
    breaks = np.cumsum([len(line) + 1 for line in raw])
    full = np.array([bool(line.strip()) for line in raw])
    number = np.cumsum(full) - 1  # of a line among those that are not empty; words lie in these alone
    line_of = number[np.searchsorted(breaks, start, side="right")]
    lines = tuple(stripped for line in raw if (stripped := line.strip()))
    return Units(text, tuple(text[s:e] for s, e in spans), start, end, lines, line_of)


def characters_of(text: str) -> Characters:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(_kinds()[codes], minlength=5)
    return Characters(int(counts[1]), int(counts[2]), int(counts[3]))


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """_KINDS of each code point, by Unicode's general category."""
    return np.array([_KINDS[unicodedata.category(chr(code))[0]] for code in range(0x110000)], np.uint8)

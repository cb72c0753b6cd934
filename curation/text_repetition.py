"""How much of a text says again what it has said before: lines, paragraphs and n-grams, as Gopher measures it.

Source: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (arXiv 2112.11446), appendix A.1.1 and
table A1; datatrove's GopherRepetitionFilter counts like this all copies but the first. Words are ours (`curation.text_units`), without
punctuation. Every share is of the text's characters and never above 1: a character is counted once, however many n-grams hold it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from curation.text_units import Ints, Units

TOP = (2, 3, 4)  # n of the n-grams whose commonest is looked at
DUPLICATE = (5, 6, 7, 8, 9, 10)
_PARAGRAPH = re.compile(r"\n\s*?\n")


def repetition(units: Units) -> dict[str, float]:
    """dup_lines, dup_paragraphs: share of them that are copies. dup_line_chars, dup_paragraph_chars: share of the characters in copies.
    top_2gram … top_4gram: share of the characters in the n-gram that occurs most often, if more than once. dup_5gram … dup_10gram: share
    of the characters in n-grams that occurred before. All 0 for an empty text."""
    paragraphs = [p.strip() for p in _PARAGRAPH.split(units.text)]
    total = max(1, len(units.text.strip()))
    scores: dict[str, float] = {}
    for name, pieces in (("line", units.lines), ("paragraph", [p for p in paragraphs if p])):
        copies, characters = _copies(pieces)
        scores[f"dup_{name}s"] = copies / max(1, len(pieces))
        scores[f"dup_{name}_chars"] = min(1.0, characters / total)
    ids = _ids(units.words)
    grams, names = ids, len(ids)
    for n in range(2, max(DUPLICATE) + 1):
        if len(grams) and grams.max() + 1 < len(grams):  # else none occurs twice, and none of the longer ones will
            grams = _longer(grams, ids, n, names)
        else:
            grams = grams[:0]
        if n in TOP:
            scores[f"top_{n}gram"] = _covered(units, _commonest(units, grams, n), n) / total
        if n in DUPLICATE:
            scores[f"dup_{n}gram"] = _covered(units, _again(grams), n) / total
    return scores


def _copies(pieces: Sequence[str]) -> tuple[int, int]:
    seen: set[str] = set()
    copies = characters = 0
    for piece in pieces:
        if piece in seen:
            copies, characters = copies + 1, characters + len(piece)
        seen.add(piece)
    return copies, characters


def _ids(words: Sequence[str]) -> Ints:
    """Equal numbers for equal words."""
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(word, len(known)) for word in words), np.int64, len(words))


def _longer(grams: Ints, ids: Ints, n: int, names: int) -> Ints:
    """Equal numbers for equal n-grams, from those of the (n-1)-grams. Numbers stay below `names`, the number of words."""
    count = max(0, len(ids) - n + 1)
    _, numbers = np.unique(grams[:count] * max(1, names) + ids[n - 1 : n - 1 + count], return_inverse=True)
    return numbers.astype(np.int64)


def _commonest(units: Units, grams: Ints, n: int) -> Ints:
    """Where the n-gram begins that occurs most often; of several the longest, then the first. Nowhere if none occurs twice."""
    if not len(grams):
        return np.zeros(0, np.int64)
    counts = np.bincount(grams)
    if counts.max() < 2:
        return np.zeros(0, np.int64)
    most = np.flatnonzero(counts[grams] == counts.max())
    best = most[np.argmax(units.end[most + n - 1] - units.start[most])]
    return np.flatnonzero(grams == grams[best])


def _again(grams: Ints) -> Ints:
    """Where an n-gram begins that occurred before."""
    _, first = np.unique(grams, return_index=True)
    mask = np.ones(len(grams), bool)
    mask[first] = False
    return np.flatnonzero(mask)


def _covered(units: Units, begins: Ints, n: int) -> int:
    """Characters within the n-grams of words that begin at these words, from the first letter of each to the last."""
    if not len(begins):
        return 0
    starts, ends = units.start[begins], units.end[begins + n - 1]
    before = np.concatenate([starts[:1], np.maximum(starts[1:], ends[:-1])])  # both rise with the place, so overlaps are with the last
    return int(np.maximum(0, ends - before).sum())

"""What the rules of Gopher, C4 and FineWeb look at, as scores: shape of words and lines, stop words, phrases that no author wrote.

Sources: Gopher, arXiv 2112.11446, appendix A.1.1 · C4, arXiv 1910.10683 §2.2 · FineWeb, arXiv 2406.17557 §3.6; where a paper leaves a
detail open, as datatrove's filters of these names have it. Thresholds are the recipe's.
"""

from __future__ import annotations

import re

import numpy as np

from curation.text_units import Units

STOP_WORDS = frozenset("the be to of and that have with".split())  # Gopher's eight
TERMINAL = (".", "!", "?", '"', "'", "”", "’", "»", "。", "！", "？", "」", "؟", "۔", "।")
ELLIPSES = ("...", "…")
BULLETS = ("•", "‣", "▪", "●", "◦", "- ", "* ", "– ")
SHORT_LINE = 30  # characters, FineWeb
LONG_WORD = 1000  # characters between white space, C4
LINE_WORDS = 3  # C4
_SENTENCE = re.compile(r"[.!?؟۔।]+(?=[\s\"'”’»)\]]|$)|[。！？]+")
_LONG = re.compile(rf"\S{{{LONG_WORD + 1}}}")
_POLICY = re.compile(r"terms of (?:use|service)|privacy policy|cookie policy|uses? (?:of )?cookies", re.IGNORECASE)
# Each is linear in the text. Image endings are sought by what follows the point, for a name may be as long as the text.
_BOILERPLATE = {
    "lorem_ipsum": r"lorem ipsum",
    "curly_bracket": r"\{",
    "javascript": r"javascript",
    "cookies": r"cookie policy|uses? (?:of )?cookies|accept (?:all )?cookies",
    "terms": r"terms of (?:use|service)|privacy policy|all rights reserved",
    "click_here": r"click (?:here|to (?:enlarge|zoom|view)|image|(?:on )?(?:the )?(?:image|picture|photo))\b",
    "url": r"https?://|\bwww\.\w",
    "image_name": r"(?<=\w)\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|svg)\b",
    "camera_name": r"\b(?:img|dsc[nf]?|dscf|pict|imgp|sam|gopr|mvi|pxl|p10)[_-]?\d{4,}|\bimage ?\d{3,}\b|\bscreen ?shot\b|\buntitled\b",
}
_PHRASES = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _BOILERPLATE.items()}


def shape(units: Units) -> dict[str, float]:
    """Scores of words and lines; 0 where there are none of them.

    mean_word_length, alpha_words (share with a letter), stop_words (how many of Gopher's eight occur), hashes and ellipses for each word,
    bullet_lines, ellipsis_lines, punct_lines, short_lines (shares), newlines for each word, c4_lines (share that C4 keeps), c4_sentences
    (in those).
    """
    words, lines = units.words, units.lines
    n_words, n_lines = max(1, len(words)), max(1, len(lines))
    kept = _c4_lines(units)
    return {
        "mean_word_length": sum(map(len, words)) / n_words,
        "alpha_words": sum(any(c.isalpha() for c in word) for word in words) / n_words,
        "stop_words": float(len(STOP_WORDS.intersection(word.lower() for word in words))),
        "hashes": units.text.count("#") / n_words,
        "ellipses": sum(units.text.count(mark) for mark in ELLIPSES) / n_words,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / n_lines,
        "ellipsis_lines": sum(line.endswith(ELLIPSES) for line in lines) / n_lines,
        "punct_lines": sum(line.endswith(TERMINAL) for line in lines) / n_lines,
        "short_lines": sum(len(line) <= SHORT_LINE for line in lines) / n_lines,
        "newlines": units.text.strip().count("\n") / n_words,
        "c4_lines": len(kept) / n_lines,
        "c4_sentences": float(sum(max(1, len(_SENTENCE.findall(line))) for line in kept)),
    }


def boilerplate(text: str) -> list[str]:
    """Names of the phrases found, in a fixed order."""
    return [name for name, pattern in _PHRASES.items() if pattern.search(text)]


def _c4_lines(units: Units) -> list[str]:
    """Lines that end like a sentence, have three words or more, none without end, and speak neither of JavaScript nor of policies."""
    counts = np.bincount(units.line_of, minlength=len(units.lines))
    return [
        line
        for line, count in zip(units.lines, counts.tolist(), strict=True)
        if count >= LINE_WORDS
        and line.endswith(TERMINAL)
        and not line.endswith(ELLIPSES)
        and not _PHRASES["javascript"].search(line)
        and not _POLICY.search(line)
        and not _LONG.search(line)
    ]

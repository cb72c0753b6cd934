"""How right an answer is: exact match, ANLS, characters, choice. Pure functions of texts; captions are scored in training.captions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from training.intervals import intervals_of

ANLS_THRESHOLD = 0.5
SHORT_WORDS = 5  # an answer of more words is a sentence: to be told in the very words is then no measure

_NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split(), strict=True))
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he's how'd how'll "
    "how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't "
    "shan't she'd've she's should've shouldn't shouldn't've somebody'd somebody'll somebody's someone'd someone'll someone's "
    "something'd something'll that'd that'd've that's there'd there'd've there're there's they'd they'd've they'll they're they've "
    "'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll you'd you'd've you'll you're you've"
)
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_LINE_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*)$", re.MULTILINE)
_INLINE_OPTION = re.compile(r"\(([A-Z])\)\s*(\S.*?)\s*(?=\([A-Z]\)|$)", re.MULTILINE)
_LETTER_ALONE = re.compile(r"^\(?([A-Za-z])[.):]?\)?$")
_LETTER_FIRST = re.compile(r"^\(?([A-Z])[.):]\)?\s")
# "The answer is A dog" names no letter: before a small word, A is the article.
_LETTER_TOLD = re.compile(r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\b(?:\s+is)?\s*:?\s*\(?([A-Z])(?![\w'])(?<!A(?=\s[a-z]))")


def _spellings() -> dict[str, str]:
    """Each contraction by its spellings that lack an apostrophe, or more."""
    found: dict[str, str] = {}
    for word in _CONTRACTIONS.split():
        places = [i for i, letter in enumerate(word) if letter == "'"]
        for lost in range(1, 2 ** len(places)):
            gone = {place for bit, place in enumerate(places) if lost >> bit & 1}
            found["".join(letter for i, letter in enumerate(word) if i not in gone)] = word
    return found


_MENDED = _spellings()


def normalised(text: str) -> str:
    """The text as VQA compares answers (Antol et al. 2015, visualqa.org/evaluation): lower case; commas between digits dropped, other
    punctuation (not the apostrophe and the colon) a space; periods dropped except inside a number; the words none and zero to ten as
    digits; articles dropped; contractions with their apostrophe."""
    plain = _PUNCTUATION.sub(" ", _BETWEEN_DIGITS.sub("", text.lower()))
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 where the answer, normalised, is one of the gold answers, normalised; else 0. A gold of which nothing is left normalised ("The",
    "?") is compared as it stands, but for case and white space."""
    for gold in golds:
        said, meant = normalised(answer), normalised(gold)
        if not meant:
            said, meant = _plain(answer), _plain(gold)
        if said == meant:
            return 1.0
    return 0.0


def anls(answer: str, golds: Sequence[str], threshold: float = ANLS_THRESHOLD) -> float:
    """The best of the gold answers' similarity 1 - NL, where NL = edits / characters of the longer text is below `threshold`; else 0. Case
    and runs of white space do not count. Biten et al. 2019 (Scene Text Visual Question Answering, eq. 1); the mean of it is ANLS."""
    best = 0.0
    for gold in golds:
        distance = Levenshtein.normalized_distance(_plain(answer), _plain(gold))
        best = max(best, 1 - distance if distance < threshold else 0.0)
    return best


def characters(answer: str, golds: Sequence[str]) -> float:
    """1 - edits / characters of the gold text, at least 0: the best over the gold texts. Case counts, runs of white space are one space.
    This is 1 - CER, cut at 0."""
    said = " ".join(answer.split())
    return max(_accuracy(said, " ".join(gold.split())) for gold in golds)


def options_of(question: str) -> dict[str, str]:
    """The options of a multiple-choice question, letter → text, in order; empty where there are none.

    Options are lines that begin `A.`, `A)`, `A:` or `(A)`; else, within a line, texts after `(A)`. They are lettered from A on without
    a gap, and there are at least two. Where lettering begins anew, the last run counts.
    """
    for pattern in (_LINE_OPTION, _INLINE_OPTION):
        run: list[tuple[str, str]] = []
        found: list[tuple[str, str]] = []
        for letter, text in pattern.findall(question):
            if letter == "A":
                run = []
            elif ord(letter) != ord("A") + len(run):
                continue
            run.append((letter, " ".join(text.split())))
            found = run if len(run) >= 2 else found
        if found:
            return dict(found)
    return {}


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several. The first rule that finds one decides:

    1. The answer is a letter, with or without brackets or a mark: `B`, `(b)`, `B.`
    2. It begins with a letter and a mark: `B. the red one`, `(B) the red one`, `B: …`
    3. A capital follows the words answer, option or choice: `The answer is (B)`, `Option B` (an A before a small word is the article).
    4. It is an option's text, both normalised.
    5. One option's text, normalised, is in it as whole words (of texts that contain each other the longest).
    """
    text = answer.strip()
    for pattern in (_LETTER_ALONE, _LETTER_FIRST, _LETTER_TOLD):
        found = pattern.search(text)
        if found and found[1].upper() in options:
            return found[1].upper()
    said = normalised(text)
    texts = {letter: normalised(option) for letter, option in options.items()}
    same = [letter for letter, option in texts.items() if option and option == said]
    if same:
        return same[0] if len(same) == 1 else None
    inside = [letter for letter, option in texts.items() if option and f" {option} " in f" {said} "]
    longest = [a for a in inside if not any(a != b and f" {texts[a]} " in f" {texts[b]} " for b in inside)]
    return longest[0] if len(longest) == 1 else None


def choice(answer: str, golds: Sequence[str], options: Mapping[str, str]) -> float:
    """1 where the answer names the option that a gold answer names (a letter or a text), else 0."""
    named = chosen(answer, options)
    return float(named is not None and named in {chosen(gold, options) for gold in golds})


def metrics_of(task: str, golds: Sequence[str], options: Mapping[str, str]) -> tuple[str, ...]:
    """Which metrics `auto` means for a question: by its options, its task, and whether its gold answers are short (SHORT_WORDS)."""
    if options and any(chosen(gold, options) for gold in golds):
        return ("choice",)
    if task in ("short_caption", "detailed_caption"):
        return ("caption",)
    if task in ("ocr", "document"):
        return ("anls", "characters")
    if task == "temporal_grounding" and any(map(intervals_of, golds)):
        return ("iou",)
    if task == "grounding":
        return ("exact_match",)
    if any(len(gold.split()) > SHORT_WORDS for gold in golds):
        return ("caption",)
    return ("exact_match", "anls") if task == "chart" else ("exact_match",)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _accuracy(said: str, gold: str) -> float:
    if not gold:
        return float(not said)
    return max(0.0, 1 - Levenshtein.distance(said, gold) / len(gold))

"""What a model answered, and whether that is a caption: refusals, empty, runaway, too long and garbled replies are errors with a reason."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from curation.step import Result
from shards.errors import SampleError

if TYPE_CHECKING:
    from curation.caption import What

REFUSALS_VERSION = 1  # of the patterns below and of `repeats`: part of the step's digest

# Looked for where a reply begins: a sign in the picture may well say "I am sorry".
_SORRY = r"(?:i['’]?m |i am |we are |we['’]re )?(?:so |very |really |truly )?(?:sorry|afraid)\b[,.!]? ?(?:but |that )?"
_UNABLE = r"i(?: can ?not| can['’]t| could not| won['’]t| will not| am (?:unable|not able) to|['’]m (?:unable|not able) to)"
_DEEDS = r"help|assist|comply|provide|fulfil+|describe|identify|view|process|discuss|generate|create|caption"
_PICTURE = r"(?:the|this|any|an?) (?:image|picture|photo)"
_REFUSALS = re.compile(
    "|".join(
        [
            rf"{_SORRY}(?:i|we|as an|this|{_PICTURE})\b",
            rf"(?:unfortunately,? |i apologi[sz]e,? (?:but )?)?{_UNABLE} (?:\w+ )?(?:{_DEEDS}|(?:see|access) {_PICTURE})\b",
            r"as an (?:ai|artificial intelligence)\b",
            rf"i (?:do not|don['’]t) (?:see|have|have access to) {_PICTURE}",
            r"(?:there is |it (?:seems|looks like) (?:there is )?)?no (?:image|picture|photo) (?:was |is |has been )?"
            r"(?:attached|provided|uploaded|visible)",
            r"(?:请)?(?:抱歉|对不起|很抱歉|非常抱歉)[,，。!！ ]",
            r"(?:作为(?:一个|一名)?(?:人工智能|AI)|我(?:无法|不能)(?:描述|识别|查看|看到|提供|协助|回答))",
        ]
    ),
    re.IGNORECASE,
)
_LONGEST_PERIOD = 200
_LEAST_RUN = 30  # characters that must repeat what came one period before
_COPIES = 4


Finish = Literal["stop", "length", "refused"]


class RefusalError(SampleError):
    """The model, or a filter before it, would not describe the picture."""

    kind = "refusal"


class ReplyError(SampleError):
    """What came back is no caption. The message begins with the reason: empty, runaway, too long, garbled, failed."""

    kind = "reply"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a backend got, unjudged.

    text    as it came. tokens: of the answer, its end among them; None where nobody says.
    finish  stop: the model ended it · length: it was cut at `max_new_tokens` · refused: a filter held it back.
    """

    text: str
    finish: Finish
    tokens: int | None = None


def check_reply(what: What, reply: Reply) -> Result:
    """The row of a reply, or the error of a picture whose reply is none."""
    if reply.finish == "refused":
        return RefusalError("refused by the server's content filter" + _quoted(reply.text))
    if len(reply.text) > what.max_chars:
        return ReplyError(f"too long: {len(reply.text):,} characters, allowed are max_chars: {what.max_chars:,}")
    text = reply.text.replace("\r\n", "\n").strip()
    if (odd := _control(text)) is not None:
        return ReplyError(f"garbled: it holds {odd}{_quoted(text)}")
    if not any(unicodedata.category(c)[0] in "LN" or unicodedata.category(c) == "So" for c in text):
        return ReplyError(f"empty: no word in it{_quoted(text)}")
    if (found := repeats(text)) is not None:
        return ReplyError(f"runaway: it repeats {found!r} over and over")
    if reply.finish == "length":
        return ReplyError(f"runaway: no end within max_new_tokens: {what.max_new_tokens}{_quoted(text)}")
    if refused(text, what.refusals):
        return RefusalError(f"the model refuses{_quoted(text)}")
    return {"text": text, "tokens": reply.tokens}


def refused(text: str, more: tuple[str, ...] = ()) -> bool:
    """Whether a reply begins like a refusal. more: further regular expressions, matched where the reply begins, case ignored."""
    return _REFUSALS.match(text) is not None or any(re.match(pattern, text, re.IGNORECASE) for pattern in more)


def repeats(text: str) -> str | None:
    """What a text repeats at least four times in a row (up to 200 characters, at least 30 in all, a letter or digit among them)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    for period in range(1, min(_LONGEST_PERIOD, len(codes) // _COPIES) + 1):
        same = codes[period:] == codes[:-period]
        ends = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
        lengths = np.diff(ends) - 1
        for place in np.flatnonzero(lengths >= max((_COPIES - 1) * period, _LEAST_RUN)):
            piece = text[ends[place] : ends[place] + period]
            if any(c.isalnum() for c in piece):
                return piece.strip()
    return None


def _control(text: str) -> str | None:
    for c in text:
        if c == "\ufffd" or (c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")):
            return f"U+{ord(c):04X} ({'half a character' if c == chr(0xFFFD) else 'no character of a text'})"
    return None


def _quoted(text: str) -> str:
    """The beginning of a reply, for a message: one line, control characters escaped."""
    short = " ".join(text.split())[:80]
    return f": {short!r}" if short else ""

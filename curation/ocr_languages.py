"""Which of PaddleOCR's recognisers reads a language: the detector finds lines of any script, a recogniser knows its own characters.

Groups as PaddleOCR 3.7 has them (paddleocr/_utils/langs.py), under ISO 639 codes.
"""

from __future__ import annotations

PACKAGED = frozenset(
    """zh en ja af az bs ca cs cy da de es et eu fi fr ga gl hr hu id is it la lb lt lv mi ms mt nl no oc pl pt qu rm ro sk sl sq sv sw tl
    tr uz vi""".split()
)  # PP-OCRv6 small: Chinese (both scripts), Japanese, and languages in Latin letters

_GROUPS = {
    "arabic_PP-OCRv5_mobile_rec": "ar fa ku ps sd ug ur bal",
    "cyrillic_PP-OCRv5_mobile_rec": "ab ady av ba bg bua ce cv dar inh kaa kbd kk kv ky lbe lez mhr mk mn os sah sr tab tg tt tyv udm xal",
    "devanagari_PP-OCRv5_mobile_rec": "bho hi mai mr ne sa",
    "el_PP-OCRv5_mobile_rec": "el",
    "eslav_PP-OCRv5_mobile_rec": "be ru uk",
    "korean_PP-OCRv5_mobile_rec": "ko",
    "ta_PP-OCRv5_mobile_rec": "ta",
    "te_PP-OCRv5_mobile_rec": "te",
    "th_PP-OCRv5_mobile_rec": "th",
}
RECOGNISERS: dict[str, str] = {code: name for name, codes in _GROUPS.items() for code in codes.split()}


def recogniser_for(language: str) -> str | None:
    """PaddleOCR's name of the recogniser for an ISO 639 code; None = the packaged one reads it. Raises ValueError for a code none reads."""
    if language in PACKAGED:
        return None
    if language not in RECOGNISERS:
        known = " ".join(sorted(PACKAGED | RECOGNISERS.keys()))
        raise ValueError(f"language: no recogniser is known for {language!r}; give `rec` a folder, or one of the codes {known}")
    return RECOGNISERS[language]

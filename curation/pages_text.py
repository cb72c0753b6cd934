"""The text layer of a PDF's page, and whether it may stand as the truth of what is written there."""

from __future__ import annotations

import re
import unicodedata

import pypdfium2 as pdfium
import pypdfium2.raw as raw

MIN_CHARS = 16  # letters and digits; fewer are a page number or a stamp on a page whose text lies elsewhere. Ours
MAX_BAD = 0.02  # share of characters that are none; more and the font's table of characters is missing or wrong. Ours
_BAD = frozenset({"Co", "Cn", "Cs"})  # private use, unassigned and noncharacters, surrogates
_HYPHEN = "\ufffe"  # what pdfium writes for a hyphen that ends a line, the line's end included
_INVISIBLE = frozenset({raw.FPDF_TEXTRENDERMODE_INVISIBLE, raw.FPDF_TEXTRENDERMODE_CLIP})
_DEPTH = 8  # of forms within forms that are searched for visible text
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"\n{3,}")


def transcription(page: pdfium.PdfPage, most: int) -> tuple[str, str | None]:
    """(what was decided, the text or None).

    The text is what pdfium gives within the page's box, in its order: that of the content stream, mended by position, which is the
    reading order of most typeset pages and not of all. Control characters are dropped, runs of spaces and of empty lines shortened.

    "used", or why it is not believed: "none"; "invisible" (no glyph of it is drawn: somebody's OCR behind a scan, which is no truth);
    "short" (below MIN_CHARS letters and digits); "unusable" (above MAX_BAD characters that are none); "too long" (above `most`).
    Raises PdfiumError.
    """
    layer = page.get_textpage()
    try:
        if layer.count_chars() > 4 * most:
            return "too long", None
        found = layer.get_text_bounded()
    finally:
        layer.close()
    if not found.strip():
        return "none", None
    if not _visible(page):
        return "invisible", None
    return judged(found, most)


def judged(found: str, most: int) -> tuple[str, str | None]:
    """As `transcription`, of the text alone."""
    found = found.replace(_HYPHEN, "-\n").replace("\r\n", "\n").replace("\r", "\n")
    shown = [c for c in found if not c.isspace() and unicodedata.category(c) != "Cc"]
    bad = sum(c == "\ufffd" or unicodedata.category(c) in _BAD for c in shown)
    if bad > MAX_BAD * len(shown):
        return "unusable", None
    if sum(c.isalnum() for c in shown) < MIN_CHARS:
        return "short", None
    kept = "".join(c for c in found if c == "\n" or (unicodedata.category(c) not in {"Cc", *_BAD} and c != "\ufffd") or c == "\t")
    text = "\n".join(_SPACES.sub(" ", line).strip() for line in kept.split("\n"))
    text = _LINES.sub("\n\n", text).strip("\n")
    return ("used", text) if len(text) <= most else ("too long", None)


def _visible(page: pdfium.PdfPage) -> bool:
    """Whether any text of the page is drawn. Its colour, or what lies over it, is not looked at."""
    texts = page.get_objects(filter=[raw.FPDF_PAGEOBJ_TEXT], max_depth=_DEPTH)
    return any(raw.FPDFTextObj_GetTextRenderMode(text) not in _INVISIBLE for text in texts)

"""Pages: a PDF is split into its pages, each a picture drawn by pdfium, with the text layer as transcription where it can be believed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from curation.pages_text import transcription
from curation.step import Child, ChildMedium, How, Result, Step
from curation.view import MediaView, SampleView
from shards.errors import DecodeError, LimitError, SampleError
from shards.sample import Texts

VERSION = 1
POINTS = 72.0  # of an inch


@dataclass(frozen=True, slots=True)
class What:
    """How a page is drawn.

    dpi          dots an inch: A4 at 144 is 1191×1684. 144 is our choice: small print stays readable, a page stays below 3,000 tokens.
    max_side     pixels of the longer side; a larger page is drawn with fewer dots an inch. Ours.
    max_pages    only so many pages from the first on; 0 = all. A document above `limits.pdf.pages` is an error whatever this says.
    format       "png" or "jpeg"; quality: of a jpeg, 1..95.
    annotations  draw annotations and form fields, too; what is written there is not in the text layer.
    text_layer   take the text layer as transcription where `curation.pages_text` believes it.
    """

    dpi: int = 144
    max_side: int = 4096
    max_pages: int = 0
    format: str = "png"
    quality: int = 90
    annotations: bool = False
    text_layer: bool = True


def pages_of(what: What, view: SampleView) -> Iterator[Child]:
    """The pages of a sample's PDF, one after another; place = (page,), counted from 1, or (medium, page) where there are several PDFs.

    A page that cannot be drawn is a child with `damage`; of several PDFs, one that cannot be opened is its page 0, with `damage`.
    Raises DecodeError for a PDF that is none, is damaged, encrypted or has no pages, LimitError for one above the limits, SampleError
    for a sample that has other media beside.
    """
    others = sum(medium.ref.kind != "pdf" for medium in view.media)
    if others:
        raise SampleError(f"{others} other media lie beside its PDF, which pages would lose; give the PDFs a source of their own")
    for number, medium in enumerate(view.media):
        before = () if len(view.media) == 1 else (number,)
        try:
            with _opened(medium) as document:
                yield from _drawn(what, medium, document, before)
        except SampleError as error:
            if not before:
                raise
            yield Child("page", (*before, 0), damage=error)


@contextmanager
def _opened(medium: MediaView) -> Iterator[pdfium.PdfDocument]:
    data = medium.data()  # pdfium reads in it for as long as the document is open
    with medium.decoding():
        handle = raw.FPDF_LoadMemDocument64(data, len(data), None)
        if not handle:
            raise DecodeError(_told(raw.FPDF_GetLastError()))
        document = pdfium.PdfDocument(handle)
    try:
        pages, most = len(document), medium.limits.pdf_pages
        if pages < 1:
            raise DecodeError("the PDF has no pages")
        if pages > most:
            raise LimitError(f"a PDF of {pages:,} pages, more than limits.pdf.pages = {most:,}")
        yield document
    finally:
        document.close()


def _told(code: int) -> str:
    if code == raw.FPDF_ERR_PASSWORD:
        return "the PDF is encrypted and asks for a password"
    if code == raw.FPDF_ERR_SECURITY:
        return "the PDF is encrypted in a way that pdfium does not know"
    return "no readable PDF: it is damaged, cut, or something else"


def _drawn(what: What, medium: MediaView, document: pdfium.PdfDocument, before: tuple[int, ...]) -> Iterator[Child]:
    count = len(document)
    if what.annotations:
        with medium.decoding():
            document.init_forms()
    for index in range(min(count, what.max_pages or count)):
        place = (*before, index + 1)
        try:
            with medium.decoding():
                child = _page(what, medium, document, index, place)
        except (DecodeError, LimitError) as error:
            child = Child("page", place, damage=error)
        yield child


def _page(what: What, medium: MediaView, document: pdfium.PdfDocument, index: int, place: tuple[int, ...]) -> Child:
    number, count = index + 1, len(document)
    try:
        page = document[index]
    except pdfium.PdfiumError as error:
        raise DecodeError(f"page {number} of {count} cannot be loaded: {error}") from error
    try:
        width, height = page.get_size()
        if not (width > 0 and height > 0):
            raise DecodeError(f"page {number} of {count} is {width:g}×{height:g} points large, so there is nothing to draw")
        scale = min(what.dpi / POINTS, what.max_side / max(width, height))
        pixels = (width * scale) * (height * scale)
        if pixels > medium.limits.image_pixels:
            told = f"page {number} of {count} has {pixels:,.0f} pixels, more than limits.image.pixels = {medium.limits.image_pixels:,}"
            raise LimitError(f"{told}; lower max_side")
        data = _picture(what, page, scale)
        said, text = transcription(page, medium.limits.text_chars) if what.text_layer else ("not read", None)
    except pdfium.PdfiumError as error:
        raise DecodeError(f"page {number} of {count} cannot be drawn: {error}") from error
    finally:
        page.close()
    meta = {
        "page": number,
        "pages": count,
        "width_points": round(width, 3),
        "height_points": round(height, 3),
        "has_text_layer": text is not None,
        "text_layer": said,
    }
    parameters: dict[str, Any] = {"page": number, "dpi": round(scale * POINTS, 3), "format": what.format, "annotations": what.annotations}
    if what.format == "jpeg":
        parameters["quality"] = what.quality
    transform = json.dumps({"operator": "pages", "version": VERSION, "parameters": parameters}, sort_keys=True)
    name = f"{medium.ref.name}#page={number}.{'jpg' if what.format == 'jpeg' else 'png'}"
    made = ChildMedium("image", name, data, transform, medium.number)
    return Child("page", place, (made,), Texts(transcription=text, meta=meta))


def _picture(what: What, page: pdfium.PdfPage, scale: float) -> bytes:
    bitmap = page.render(scale=scale, may_draw_forms=what.annotations, draw_annots=what.annotations, rev_byteorder=True)
    try:
        image, file = bitmap.to_pil(), io.BytesIO()
        options: dict[str, Any] = {"quality": what.quality} if what.format == "jpeg" else {"compress_level": 6}
        image.convert("RGB").save(file, what.format, **options)
    finally:
        bitmap.close()
    return file.getvalue()


def _open(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    return lambda views: [{"children": pages_of(what, view)} for view in views]


def _check(what: What) -> None:
    for name, low, high in (("dpi", 1, 2400), ("max_side", 16, 65_500), ("max_pages", 0, 10_000_000), ("quality", 1, 95)):
        if not low <= getattr(what, name) <= high:
            raise ValueError(f"{name}: {getattr(what, name)} is outside {low}..{high}")
    if what.format not in ("png", "jpeg"):
        raise ValueError(f"format: {what.format!r} is unknown; pages are drawn as 'png' or 'jpeg'")


STEP = Step(
    version=VERSION,
    shape="splitter",
    level="sample",
    applies=frozenset({"pdf"}),
    prefix="pages_",
    what=What,
    how=How,
    columns=lambda what: (),
    reads=lambda what: ("media",),
    open=_open,
    check=_check,
)

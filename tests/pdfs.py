"""PDFs written by hand: pages with a text layer, without one, and what a crawl brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """Lines in Helvetica from the top. mode: the text's render mode (3 = invisible). box: in points. broken: the object is no page.

    cut: the drawing ends in the middle of a string. field: an annotation with this text is drawn over the page.
    """

    lines: Sequence[str] = ()
    mode: int = 0
    box: tuple[float, float] = (200, 120)
    broken: bool = False
    grey: float | None = None


def pdf(pages: Sequence[Page], count: int | None = None, encrypted: bool = False) -> bytes:
    """The file; `count`: what its page tree claims to hold."""
    objects: list[bytes] = []  # object n lies at n - 1
    kids = [4 + 2 * i for i in range(len(pages))]
    listed = " ".join(f"{n} 0 R" for n in kids)
    objects.append(b"<</Type/Catalog/Pages 2 0 R>>")
    objects.append(f"<</Type/Pages/Kids[{listed}]/Count {len(pages) if count is None else count}>>".encode())
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>")
    for number, page in zip(kids, pages, strict=True):
        width, height = page.box
        drawn = b"" if page.grey is None else f"{page.grey} g 0 0 {width} {height} re f 0 g ".encode()
        drawn += f"BT /F 12 Tf {page.mode} Tr 14 TL 10 {height - 20} Td ".encode()
        for line in page.lines:
            text = line.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
            drawn += b"(" + text + b") Tj T* "
        drawn += b"ET"
        whole = f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Resources<</Font<</F 3 0 R>>>>/Contents {number + 1} 0 R>>"
        objects.append(b"null" if page.broken else whole.encode())
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn))
    if encrypted:
        key = b"<" + b"ab" * 32 + b">"
        objects.append(b"<</Filter/Standard/V 1/R 2/O %s/U %s/P -1>>" % (key, key))
    out = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(b"%010d 00000 n \n" % place for place in places)
    lock = b"/Encrypt %d 0 R/ID[<%s><%s>]" % (len(objects), b"cd" * 16, b"cd" * 16) if encrypted else b""
    return out + b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, lock, table)


def write_pdf(path: Path, count: int, title: str = "report", **more: object) -> Path:
    """A document of `count` pages, each with two lines that say which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pdf([Page((f"{title} page {n}", "of text in its layer")) for n in range(1, count + 1)]))
    return path

"""Pages of PDFs: pictures of a known size, the text layer where it can be believed, and no page that vanishes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.pages import STEP, What, pages_of
from curation.pages_text import judged
from curation.step import Child, How
from shards.errors import DecodeError, LimitError, SampleError
from shards.media import Limits
from tests.curation.views import file_ref, sample_view
from tests.pdfs import Page, pdf, write_pdf

GOLDEN = Path(__file__).parent / "golden/pages.json"
LINES = ("The first line of a page", "and the second one")


def split(*documents: Path, what: What | None = None, limits: Limits | None = None) -> list[Child]:
    return list(pages_of(what or What(), sample_view([file_ref(path) for path in documents], limits=limits)))


def written(path: Path, pages: Sequence[Page], **more: object) -> Path:
    path.write_bytes(pdf(pages, **more))  # type: ignore[arg-type]
    return path


def image(child: Child) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(child.media[0].data)))


def test_each_page_is_a_picture_with_its_text(tmp_path: Path) -> None:
    children = split(written(tmp_path / "a.pdf", [Page(LINES), Page((), box=(100, 300), grey=0.5)]))
    assert [(child.kind, child.place, child.damage) for child in children] == [("page", (1,), None), ("page", (2,), None)]
    first, second = children
    assert first.texts.transcription == "\n".join(LINES)
    assert first.texts.meta == {
        "page": 1, "pages": 2, "width_points": 200.0, "height_points": 120.0, "has_text_layer": True, "text_layer": "used",
    }  # fmt: skip
    assert image(first).shape == (240, 400, 3)  # 144 dots an inch are two for each point
    ink = (image(first) < 128).any(axis=2)
    assert ink[20:80, 10:380].any()  # the lines are drawn where they are written, and nowhere else
    assert not ink[100:].any()
    assert second.texts.transcription is None
    assert second.texts.meta["text_layer"] == "none"
    assert (image(second) == 128).all()
    assert json.loads(second.media[0].transform) == {
        "operator": "pages", "version": STEP.version, "parameters": {"page": 2, "dpi": 144.0, "format": "png", "annotations": False},
    }  # fmt: skip
    assert second.media[0].name == "a.pdf#page=2.png"


def test_a_page_is_never_larger_than_told(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pdf", [Page(LINES, box=(14_000, 7_000)), Page((), box=(14_000, 1))])
    large, strip = split(path, what=What(max_side=500))
    assert image(large).shape == (250, 500, 3)
    assert image(strip).shape == (1, 500, 3)
    assert json.loads(large.media[0].transform)["parameters"]["dpi"] == pytest.approx(72 * 500 / 14_000, abs=1e-3)
    refused = split(path, what=What(max_side=500), limits=Limits(image_pixels=100_000))
    assert [type(child.damage) for child in refused] == [LimitError, type(None)]
    jpeg = split(path, what=What(dpi=10, format="jpeg", quality=50))[0].media[0]
    assert jpeg.name.endswith(".jpg")
    assert Image.open(io.BytesIO(jpeg.data)).format == "JPEG"
    assert json.loads(jpeg.transform)["parameters"]["quality"] == 50
    assert len(split(path, what=What(dpi=10, max_pages=1))) == 1


def test_a_text_layer_that_is_no_truth(tmp_path: Path) -> None:
    pages = [Page(LINES, mode=3), Page(("17",)), Page(("\u2022" * 40,)), Page(LINES)]
    found = [child.texts.meta["text_layer"] for child in split(written(tmp_path / "a.pdf", pages))]
    assert found == ["invisible", "short", "short", "used"]
    assert [c.texts.transcription for c in split(tmp_path / "a.pdf", limits=Limits(text_chars=20))] == [None] * 4
    assert split(tmp_path / "a.pdf", what=What(text_layer=False))[3].texts.meta["text_layer"] == "not read"


@pytest.mark.parametrize(
    ("found", "decided"),
    [
        ("A hyphen joins two li\ufffenes of a text", ("used", "A hyphen joins two li-\nnes of a text")),
        ("tabs\tand  spaces \r\n\r\n\r\n\r\n and a\x00 bell\x07 in here", ("used", "tabs and spaces\n\nand a bell in here")),
        ("\ufffd" * 5 + "letters " * 8, ("unusable", None)),
        ("\ue001\ue002" * 20, ("unusable", None)),
        ("... --- ... 12 3", ("short", None)),
        ("مرحبا بالعالم من صفحة واحدة 👋", ("used", "مرحبا بالعالم من صفحة واحدة 👋")),
        ("word " * 30, ("too long", None)),
    ],
)
def test_what_is_believed_of_a_text(found: str, decided: tuple[str, str | None]) -> None:
    assert judged(found, most=100) == decided


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_a_transcription_holds_no_control_characters(found: str) -> None:
    said, text = judged(found, most=150)
    assert (said == "used") == (text is not None)
    if text is not None:
        assert text == text.strip("\n")
        assert all(c == "\n" or c.isprintable() or ord(c) > 127 for c in text)
        text.encode()  # and no half characters


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", DecodeError, "no readable PDF"),
        (b"%PDF-1.7\nand nothing more", DecodeError, "no readable PDF"),
        (b"<html>404</html>", DecodeError, "no readable PDF"),
        (pdf([Page(LINES)])[:200], DecodeError, "no readable PDF"),
        (pdf([Page(LINES)], encrypted=True), DecodeError, "asks for a password"),
        (pdf([]), DecodeError, "has no pages"),
        (pdf([Page(LINES)], count=1_000_000), LimitError, "1,000,000 pages, more than limits.pdf.pages = 2,000"),
        (pdf([Page(LINES)] * 3), LimitError, "limits.pdf.bytes = 500"),
    ],
)
def test_a_document_that_cannot_be_opened_is_the_samples_error(tmp_path: Path, data: bytes, error: type, words: str) -> None:
    (tmp_path / "a.pdf").write_bytes(data)
    limits = Limits(pdf_bytes=500) if "bytes" in words else Limits()
    with pytest.raises(error, match=words):
        split(tmp_path / "a.pdf", limits=limits)


def test_one_bad_page_loses_no_other(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pdf", [Page(LINES), Page((), broken=True), Page(LINES)])
    children = split(path)
    assert [child.place for child in children] == [(1,), (2,), (3,)]
    assert [child.damage is None for child in children] == [True, False, True]
    assert "page 2 of 3 cannot be loaded" in str(children[1].damage)
    assert children[1].media == ()


def test_samples_of_several_media(tmp_path: Path) -> None:
    one, two = write_pdf(tmp_path / "1.pdf", 1), write_pdf(tmp_path / "2.pdf", 2)
    (tmp_path / "0.pdf").write_bytes(b"nothing")
    children = split(one, tmp_path / "0.pdf", two)
    assert [(child.place, child.damage is None) for child in children] == [((0, 1), True), ((1, 0), False), ((2, 1), True), ((2, 2), True)]
    assert [medium.of for child in children for medium in child.media] == [0, 2, 2]
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(SampleError, match="would lose"):
        split(one, tmp_path / "p.png")


def test_the_same_pages_have_the_same_bytes(tmp_path: Path) -> None:
    """Golden: another result under the same version is a red test. Drawn pixels belong to one pdfium, so they are held as sizes and ink."""
    path = written(
        tmp_path / "a.pdf", [Page(LINES), Page(("Ligatures, (brackets) and a back\\slash",), box=(300, 50)), Page(LINES, mode=3)]
    )
    children = split(path)
    again = split(path)
    assert [hashlib.sha256(c.media[0].data).hexdigest() for c in children] == [hashlib.sha256(c.media[0].data).hexdigest() for c in again]
    rows = [
        {
            "place": list(child.place),
            "size": list(image(child).shape),
            "ink": round(float((image(child) < 128).mean()), 2),
            "transcription": child.texts.transcription,
            "meta": dict(child.texts.meta),
            "transform": json.loads(child.media[0].transform),
        }
        for child in children
    ]
    assert json.loads(GOLDEN.read_text()) == {"version": STEP.version, "rows": rows}


@pytest.mark.parametrize("what", [What(dpi=0), What(max_side=2), What(format="tiff"), What(quality=100), What(max_pages=-1)])
def test_values_that_cannot_work_are_refused(what: What) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=r"outside|unknown"):
        STEP.check(what)


def test_the_step_answers_one_generator_for_each_sample(tmp_path: Path) -> None:
    assert STEP.open is not None
    views = [sample_view([file_ref(write_pdf(tmp_path / f"{n}.pdf", n))], key=str(n)) for n in (1, 2)]
    answers = STEP.open(What(), How())(views)
    assert [len(list(answer["children"])) for answer in answers if not isinstance(answer, SampleError)] == [1, 2]

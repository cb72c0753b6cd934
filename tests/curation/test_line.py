"""The annotators in the process they are made for: probe, OCR, embed, compose and measure fused in one child, column by column."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from curation.group import GroupRunner
from shards.chat import train_tokenizer
from shards.items import items_from_json
from shards.media import Limits
from shards.sample import Texts
from tests.curation.units import call, reference, row, unit


def test_a_picture_with_text_goes_the_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "cache"))
    image = Image.new("RGB", (420, 140), "white")
    ImageDraw.Draw(image).text((30, 40), "Platform 9", "black", ImageFont.load_default(48))
    image.save(tmp_path / "sign.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "sign.png").read_bytes()[:200])
    train_tokenizer(["a sign on a wall", "the texts in this image are"], tmp_path / "tokenizer", 400)
    program = [
        call("probe"),
        call("ocr"),
        call("embed", {"model": "timm:resnet10t", "weights": "random:0"}),
        call("compose", {"ocr": "ocr"}, reads=["ocr_lines"]),
        call("measure", {"profile": "tiny", "tokenizer": str(tmp_path / "tokenizer")}, reads=["items"]),
    ]
    rows = [
        row("sign", 0, [reference(tmp_path / "sign.png")], Texts(caption="A sign.")),
        row("torn", 1, [reference(tmp_path / "torn.png")], Texts(caption="A sign.")),
        row("prose", 2, texts=Texts(text="A wall.")),
    ]
    with GroupRunner(program, Limits()) as runner:
        result = runner.run(unit(rows))
    digests = {c.name: c.digest for c in program}
    narrow = {name: {r["uid"]: r for r in result.rows[digest].to_pylist()} for name, digest in digests.items()}
    wide = {name: {r["uid"]: r for r in result.wide[digest].to_pylist()} for name, digest in digests.items() if digest in result.wide}
    sign, torn, prose = (r["uid"] for r in rows)

    assert narrow["ocr"][sign]["text"] == "Platform 9"
    assert len(wide["embed"][sign]["embedding"]) == 512
    assert set(narrow["embed"]) <= {sign, torn}
    items = items_from_json(wide["compose"][sign]["items"])
    assert [item.task for item in items] == ["short_caption", "ocr"]
    assert "Platform 9<box>[" in items[1].messages[1].content[0].text
    measured = wide["measure"][sign]["items"]
    assert len(measured) == 2
    assert narrow["measure"][sign]["tokens"] == sum(m["text_tokens"] + m["kept_tokens"] for m in measured)
    assert narrow["measure"][prose]["patches"] == 0
    assert narrow["measure"][prose]["tokens"] > 0
    assert narrow["probe"][torn]["error"].startswith("decode")
    assert torn not in narrow["ocr"]  # what the first step refused costs no other step anything

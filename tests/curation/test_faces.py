"""faces: golden rows on a drawn face and on noise, photographs of people and of none, and files that are no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from curation.faces import STEP, FacesHow, What, faces
from curation.step import step_digest
from shards.errors import DecodeError, InfrastructureError
from tests.curation.views import media_view

pytest.importorskip("facenet_pytorch", reason="FACENET ABSENT: pip install --no-deps -r requirements-nodeps.txt")

GOLDEN = Path(__file__).parent / "golden" / f"faces_v{STEP.version}.json"
Find = Callable[[Sequence[Any]], Sequence[Any]]


def drawn(width: int = 240, height: int = 200) -> np.ndarray:
    """A face as MTCNN sees one: skin, eyes, brows, nose, mouth, softened."""
    picture = Image.new("RGB", (width, height), (90, 110, 120))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((80, 40, 160, 150), fill=(215, 170, 140))
    for x in (102, 138):
        draw.ellipse((x - 9, 82, x + 9, 92), fill=(245, 245, 245))
        draw.ellipse((x - 4, 82, x + 4, 92), fill=(50, 30, 20))
        draw.line((x - 12, 74, x + 12, 72), fill=(60, 40, 30), width=4)
    draw.polygon([(120, 92), (111, 116), (129, 116)], fill=(190, 140, 115))
    draw.ellipse((104, 124, 136, 136), fill=(170, 70, 70))
    draw.pieslice((78, 30, 162, 110), 180, 360, fill=(60, 40, 30))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)))


@pytest.fixture(scope="module")
def find() -> Find:
    assert STEP.open is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    opened = STEP.open(What(), FacesHow(device="cpu"))
    yield opened  # type: ignore[misc]
    torch.set_num_threads(threads)


def made(find: Find, folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    Image.fromarray(pixels).save(folder / "p.png")
    [row] = find([media_view(folder / "p.png")])
    assert isinstance(row, dict), row
    return row


def test_golden_rows_hold_the_version(find: Find, tmp_path: Path) -> None:
    """Other output under the same version is an error: bump STEP.version and store new rows."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    noise = np.random.default_rng(2).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for name, pixels in {"drawn": drawn(), "noise": noise}.items():
        row, known = made(find, tmp_path, pixels), golden[name]
        assert row["n"] == known["n"] == len(row["boxes"])
        assert row["largest"] == pytest.approx(known["largest"], abs=1e-3)
        for face, expected in zip(row["boxes"], known["boxes"], strict=True):
            assert face["box"] == pytest.approx(expected["box"], abs=2e-3)
            assert face["confidence"] == pytest.approx(expected["confidence"], abs=1e-3)
    assert golden["drawn"]["n"] == 1


def test_faces_are_where_people_look_at_us(find: Find, data_dir: Path) -> None:
    records = {r["id"]: r for r in map(json.loads, (data_dir / "manifest.jsonl").read_text("utf-8").splitlines())}
    portraits = [data_dir / records[f"d-caption-{number:04d}"]["files"][0] for number in (71, 103, 175)]
    alone, pair, man = find([media_view(path) for path in portraits])
    assert (alone["n"], pair["n"], man["n"]) == (1, 2, 1)
    left, top, right, bottom = alone["boxes"][0]["box"]
    assert 0.2 < (left + right) / 2 < 0.8
    assert (top + bottom) / 2 < 0.5
    assert pair["largest"] == pytest.approx(max((b[2] - b[0]) * (b[3] - b[1]) for b in (f["box"] for f in pair["boxes"])))
    charts = [data_dir / records[f"d-caption-{number:04d}"]["files"][0] for number in (73, 86)]
    assert [row["n"] for row in find([media_view(path) for path in charts])] == [0, 0]


@pytest.mark.parametrize("size", [(1, 1), (19, 200), (20, 20), (21, 500), (500, 21)])
def test_small_and_thin_pictures_have_rows(find: Find, tmp_path: Path, size: tuple[int, int]) -> None:
    assert made(find, tmp_path, np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))["n"] >= 0


def test_a_large_picture_is_shrunk_and_its_boxes_are_shares() -> None:
    seen = []

    def detect(pixels: np.ndarray) -> list[tuple[float, float, float, float, float]]:
        seen.append(pixels.shape)
        return [(-5, 10, 50, 40, 0.99), (10, 10, 20, 20, 0.5), (60, 60, 60, 70, 0.99), (0, 0, 90, 45, 0.97)]

    row = faces(detect, What(longest=100, confidence=0.9), np.zeros((400, 800, 3), np.uint8))
    assert seen == [(50, 100, 3)]
    assert row["n"] == 2
    assert [face["box"] for face in row["boxes"]] == [pytest.approx([0, 0, 0.9, 0.9]), pytest.approx([0, 0.2, 0.5, 0.8])]
    assert row["largest"] == pytest.approx(0.81)


def test_an_unreadable_picture_costs_its_own_row(find: Find, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    Image.fromarray(drawn()).save(tmp_path / "good.png")
    bad, good = find([media_view(tmp_path / "bad.png"), media_view(tmp_path / "good.png")])
    assert isinstance(bad, DecodeError)
    assert good["n"] == 1


def test_models_that_are_none_are_told(tmp_path: Path) -> None:
    assert STEP.check is not None
    assert STEP.open is not None
    STEP.check(What())
    with pytest.raises(InfrastructureError, match="not there"):
        STEP.check(What(model=str(tmp_path / "absent.onnx")))
    (tmp_path / "odd.onnx").write_bytes(b"no model")
    with pytest.raises(InfrastructureError, match="no YuNet model"):
        STEP.open(What(model=str(tmp_path / "odd.onnx")), FacesHow())
    same = [step_digest("faces", STEP, What(model=str(tmp_path / "odd.onnx")), [])]
    (tmp_path / "odd.onnx").write_bytes(b"another")
    same.append(step_digest("faces", STEP, What(model=str(tmp_path / "odd.onnx")), []))
    assert same[0] != same[1]


@pytest.mark.parametrize("what", [What(confidence=0), What(confidence=1.5), What(longest=10), What(smallest=4), What(smallest=2000)])
def test_values_that_cannot_work_are_refused(what: What) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError):
        STEP.check(what)

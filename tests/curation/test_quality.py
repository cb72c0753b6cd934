"""quality: golden rows, the made groups of the development data, and pictures that have nothing to measure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from curation.quality import STEP, block_excess, quality
from shards.image import decode_image
from shards.media import Limits
from tests.curation.views import media_view

GOLDEN = Path(__file__).parent / "golden" / f"quality_v{STEP.version}.json"
COLUMNS = ("blur", "noise", "exposure", "compression", "score")


def scene(height: int = 200, width: int = 320) -> np.ndarray:
    """Shapes with sharp edges on a gradient, and a little seeded texture."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([40 + x * 0.4, 60 + y * 0.5, 150 - x * 0.2], axis=-1)
    for _ in range(60):
        top, left, side = rng.integers(0, height), rng.integers(0, width), rng.integers(5, 40)
        pixels[top : top + side, left : left + side] = rng.integers(10, 240, 3)
    return np.clip(pixels + rng.normal(0, 1, pixels.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, encoding: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=encoding)
    return decode_image(buffer.getvalue(), Limits())


def spoiled() -> dict[str, np.ndarray]:
    clean = scene()
    noise = np.random.default_rng(6).normal(0, 25, clean.shape)
    small = Image.fromarray(clean).resize((53, 33), Image.Resampling.LANCZOS)
    return {
        "clean": clean,
        "blurred": np.asarray(Image.fromarray(clean).filter(ImageFilter.GaussianBlur(3))),
        "jpeg": encoded(clean, 5),
        "noisy": np.clip(clean + noise, 0, 255).astype(np.uint8),
        "tiny_upscaled": np.asarray(small.resize((320, 200), Image.Resampling.BICUBIC)),
        "underexposed": (clean * 0.12).astype(np.uint8),
    }


def test_golden_rows_hold_the_version() -> None:
    """Other output under the same version is an error: bump STEP.version and store new rows."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    for name, pixels in spoiled().items():
        if name != "jpeg":  # its pixels belong to the library that decodes them
            row = quality(pixels)
            assert tuple(row) == COLUMNS
            assert dict(row) == pytest.approx(golden[name], abs=1e-5), name


def test_each_fault_is_seen_by_its_own_column_and_costs_the_score() -> None:
    rows = {name: quality(pixels) for name, pixels in spoiled().items()}
    clean = rows.pop("clean")
    assert clean["score"] > 0.75
    assert max(row["score"] for row in rows.values()) < clean["score"] / 2
    faults = {"blurred": "blur", "tiny_upscaled": "blur", "jpeg": "compression", "noisy": "noise", "underexposed": "exposure"}
    for name, column in faults.items():
        assert rows[name][column] < clean[column] - 0.15, (name, column)


def test_clean_is_best_in_every_made_group(data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    groups = [record for record in records if record["kind"] == "quality"]
    assert len(groups) == 10
    assert STEP.open is not None
    step = STEP.open(STEP.what(), STEP.how())
    for group in groups:
        rows = step([media_view(data_dir / file) for file in group["files"]])
        scores = dict(zip(group["ops"], [row["score"] for row in rows], strict=True))  # type: ignore[index]
        assert max(value for op, value in scores.items() if op != "clean") < scores["clean"] - 0.2, group["id"]


def test_plain_graphics_are_not_bad_pictures() -> None:
    page = np.full((600, 400, 3), 255, np.uint8)
    for top in range(40, 300, 20):
        page[top : top + 8, 40:360:3] = 0
    chart = np.full((300, 400, 3), 255, np.uint8)
    chart[250, 40:380] = chart[40:250, 40] = 0
    for bar, height in enumerate((40, 120, 80, 190)):
        chart[250 - height : 250, 80 + 70 * bar : 120 + 70 * bar] = (30, 90, 200)
    for pixels in (page, chart):
        row = quality(pixels)
        assert row["score"] > 0.8, row


def test_blocks_are_found_wherever_the_grid_begins() -> None:
    grey = encoded(scene(), 5).mean(axis=2).astype(np.uint8)
    whole = block_excess(grey)
    assert whole > 0.4
    assert block_excess(grey[3:, 5:]) == pytest.approx(whole, abs=0.1)
    assert block_excess(scene().mean(axis=2).astype(np.uint8)) < 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (7, 300), (300, 7), (11, 12), (1, 3000)])
def test_every_size_has_a_row(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    stripes = np.repeat(np.arange(size[0], dtype=np.uint8)[:, None, None] % 2 * 200, size[1], axis=1).repeat(3, axis=2)
    for pixels in (noise, stripes, np.zeros_like(noise)):
        assert all(0 <= value <= 1 for value in quality(pixels).values())


def test_a_blank_picture_is_worth_nothing() -> None:
    assert quality(np.full((100, 100, 3), 255, np.uint8))["score"] == 0
    assert quality(np.full((100, 100, 3), 120, np.uint8))["score"] == 0

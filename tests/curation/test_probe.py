"""probe: golden rows on made media, the hash of the field's own package, and every hostile file there is."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.group import GroupRunner
from curation.probe import STEP, phash
from shards.media import Limits
from tests.curation.units import call, picture_unit

GOLDEN = Path(__file__).parent / "golden" / f"probe_v{STEP.version}.json"


def png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """A PNG made by hand and stored uncompressed, so that its bytes depend on no library."""
    height, width = pixels.shape[:2]
    depth, colour = (16 if pixels.dtype == np.uint16 else 8), (2 if pixels.ndim == 3 else 0)
    lines = b"".join(b"\0" + line.astype(pixels.dtype.newbyteorder(">")).tobytes() for line in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if orientation != 1:
        chunks.append((b"eXIf", b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0" * 4))
    chunks += [(b"IDAT", zlib.compress(lines, 0)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def fixture() -> dict[str, bytes]:
    """Name -> bytes. The clip (6 frames of 48×32, MPEG-4) lies with the golden rows."""
    noise = np.random.default_rng(7).integers(0, 256, (36, 50, 3)).astype(np.uint8)
    y, x = np.mgrid[0:64, 0:96]
    scene = np.stack([x * 2, y * 3, (x * y) % 256], axis=-1).astype(np.uint8)
    return {
        "noise.png": png(noise),
        "scene.png": png(scene),
        "turned.png": png(scene, orientation=6),
        "deep.png": png(scene[:, :, 0].astype(np.uint16) * 257),
        "plain.png": png(np.full((20, 20, 3), 90, np.uint8)),
        "torn.png": png(noise)[:2000],
        "clip.mp4": base64.b64decode(json.loads(GOLDEN.read_text())["clip.mp4"]),
    }


def rows_of(folder: Path, files: dict[str, bytes]) -> list[dict[str, Any]]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    step = call("probe")
    with GroupRunner([step], Limits()) as runner:
        rows = runner.run(picture_unit([folder / name for name in files])).rows[step.digest].to_pylist()
    return [{"name": name, **{key: value for key, value in row.items() if key != "uid"}} for name, row in zip(files, rows, strict=True)]


def test_golden_rows_hold_the_version(tmp_path: Path) -> None:
    """Other output under the same version is an error: bump STEP.version and store new rows."""
    assert rows_of(tmp_path, fixture()) == json.loads(GOLDEN.read_text())["rows"]


def test_phash_is_imagehash_on_real_pictures(data_dir: Path) -> None:
    imagehash = pytest.importorskip("imagehash", reason="IMAGEHASH ABSENT: the reference for phash is not installed")
    paths = sorted((data_dir / "caption" / "coco").glob("*.jpg")) + sorted((data_dir / "quality").glob("*.jpg"))
    assert len(paths) > 100
    for path in paths:
        with Image.open(path) as picture:
            rgb = picture.convert("RGB")
        assert phash(np.asarray(rgb)) == int(str(imagehash.phash(rgb)), 16), path.name


@pytest.mark.parametrize("grey", [0, 7, 128, 255])
def test_a_plain_surface_has_no_noise_in_its_hash(grey: int) -> None:
    assert phash(np.full((50, 70, 3), grey, np.uint8)) == (1 << 63 if grey else 0)


def test_every_hostile_file_gets_a_row(data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text().splitlines()]
    files = [data_dir / name for record in records if record["kind"] == "hostile" for name in record["files"]]
    paths = [path for path in files if path.suffix != ".jsonl"]
    step = call("probe")
    with GroupRunner([step], Limits(), memory=1_500_000_000) as runner:
        result = runner.run(picture_unit(paths))
    rows = dict(zip((path.name for path in paths), result.rows[step.digest].to_pylist(), strict=True))
    assert len(rows) == len(paths) > 100
    assert len(result.onward) == sum(row["error"] is None for row in rows.values())
    for name in (
        "truncated_50.jpg",
        "truncated_97.jpg",
        "zero_byte.jpg",
        "html_404.jpg",
        "svg_script.svg",
        "empty.mp4",
    ):
        assert rows[name]["error"].startswith("decode: "), name
    for name in ("bomb_1bit.png", "bomb_rgb.png", "decompression_bomb.gif"):
        assert rows[name]["error"].startswith("limit: "), name
    assert rows["truncated_half.mp4"]["good_seconds"] < rows["truncated_half.mp4"]["duration"] - 1  # what is there can be used
    assert (rows["exif6.jpg"]["width"], rows["exif6.jpg"]["height"]) == (240, 320)
    assert rows["cmyk.jpg"]["mode"] == "CMYK"
    assert rows["wrong_extension.png"]["format"] == "JPEG"
    assert rows["animated.gif"]["frames"] > 1
    assert all(len(row["fp"]) == 16 for row in rows.values())  # all could be read, so all have a content
    assert result.contents["sha256"].null_count == 0


def test_clips_are_probed_by_their_frames(data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text().splitlines()]
    films = [record for record in records if record["kind"] == "video" and record["files"][0].endswith(("mp4", "webm"))][:6]
    step = call("probe")
    with GroupRunner([step], Limits()) as runner:
        rows = runner.run(picture_unit([data_dir / film["files"][0] for film in films])).rows[step.digest].to_pylist()
    for film, row in zip(films, rows, strict=True):
        assert row["error"] is None
        assert row["phash"] is None
        assert (row["width"], row["height"]) == (film["width"], film["height"])
        assert row["duration"] == row["good_seconds"] == pytest.approx(film["duration"], abs=0.2)

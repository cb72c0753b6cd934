"""watermark: a small detector, trained here on pictures with and without writing across them. It proves wiring, not quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.classifiers import ClassifierHow
from curation.watermark import STEP, What
from tests.curation.views import media_view
from tests.small_models.watermark import SETTINGS, build, pictures


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("watermark"))


def test_marked_pictures_score_above_clean_ones(checkpoint: Path, tmp_path: Path) -> None:
    """Pictures the detector was not trained on."""
    assert STEP.open is not None
    assert STEP.check is not None
    what = What(weights=str(checkpoint), **SETTINGS)
    STEP.check(what)
    clean, marked = pictures(range(1000, 1012))
    places: list[Path] = []
    for number, pixels in enumerate([*clean, *marked]):
        places.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(places[-1])
    rows: list[Any] = list(STEP.open(what, ClassifierHow(device="cpu"))([media_view(place) for place in places]))
    found = np.array([row["probability"] for row in rows])
    assert (found[12:, None] > found[None, :12]).mean() >= 0.95
    assert STEP.columns(what)[0].name == "probability"


def test_without_weights_it_says_where_they_are_found() -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=r"no weights for watermarks come with fovea.*LAION-5B-WatermarkDetection.*label: '0'"):
        STEP.check(What())

"""Small models that several tests of the steps use, built once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model folder, trained on coloured shapes (tests/small_models/clip.py). About four seconds."""
    from tests.small_models.clip import build

    return build(tmp_path_factory.mktemp("small_clip"))

"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("FOVEA_RETRY_PAUSES", "0,0")  # another try comes as in a run, but at once


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real development data; a test that needs it is skipped, loudly, where it is absent."""
    path = Path(os.environ.get("FOVEA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "manifest.jsonl").is_file():
        pytest.skip(f"REAL DATA ABSENT: {path}/manifest.jsonl is not there (set FOVEA_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def qwen_tokenizer_dir() -> Path:
    """The Qwen2.5 tokenizer beside the real data."""
    path = Path(os.environ.get("FOVEA_TEST_MODELS", ROOT.parent / "shared" / "models")) / "qwen2.5-tokenizer"
    if not (path / "tokenizer.json").is_file():
        pytest.skip(f"TOKENIZER ABSENT: {path} is not there (set FOVEA_TEST_MODELS)")
    return path

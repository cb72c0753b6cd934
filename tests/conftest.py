"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.curation.hub_server import Hub, running

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("FOVEA_RETRY_PAUSES", "0,0")  # another try comes as in a run, but at once
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: other tests have the other core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: where files are dealt to cores, one that began last would be waited for."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def the_folder_stays() -> Iterator[None]:
    """Who leaves another working folder to the tests after it is told so, and not they."""
    before = os.getcwd()
    yield
    after = os.getcwd()
    os.chdir(before)
    assert after == before


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


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """One Ray for all tests of a process, connected as a run connects to it. Nobody else may end it: the next one to connect would ship
    its own packages only."""
    import ray

    from pipeline import cluster

    cluster.connect(None, ["tests.steps.counting"])
    yield
    ray.shutdown()


@pytest.fixture
def model_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The model hub that huggingface_hub asks: one in miniature, with an empty cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "fovea"))
    with running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield found


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model hub answers, and nothing is in its cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "fovea"))


@pytest.fixture(scope="session")
def small_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-text-to-text model that names coloured shapes (tests/small_models/captioner.py). About ten seconds."""
    from tests.small_models.captioner import build

    return build(tmp_path_factory.mktemp("small_captioner"))


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model folder, trained on coloured shapes (tests/small_models/clip.py). About four seconds."""
    from tests.small_models.clip import build

    return build(tmp_path_factory.mktemp("small_clip"))


@pytest.fixture(scope="session")
def small_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear head for the small CLIP's vectors (tests/small_models/aesthetic.py)."""
    from tests.small_models.aesthetic import build

    return build(tmp_path_factory.mktemp("small_head"))

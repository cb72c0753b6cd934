"""The backend `openai` against a real server, `transformers serve`, with the small captioner: the very rows of the backend transformers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from curation.caption import STEP, CaptionHow, What
from shards.errors import InfrastructureError
from tests.curation.views import media_view
from tests.small_models.clip import shapes


@pytest.fixture(scope="module")
def server(small_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="NO SERVER: transformers[serving] is not installed (it comes with the extra dev)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(small_captioner), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=out,
            stderr=out,
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def test_a_server_and_this_process_write_the_same_rows(server: str, small_captioner: Path, tmp_path: Path) -> None:
    views = []
    for number, (pixels, _) in enumerate(shapes([8])[::24]):
        Image.fromarray(pixels).resize((64 + 40 * number, 48 + 20 * number)).save(tmp_path / f"{number}.png")
        views.append(media_view(tmp_path / f"{number}.png"))
    assert STEP.open is not None
    for prompt in ("Describe this picture in one sentence.", "Describe the picture in detail."):
        what = What(model=str(small_captioner), prompt=prompt, system="Answer in English.", precision="fp32", max_new_tokens=60)
        there = STEP.open(what, CaptionHow(backend="openai", url=server, cache="off", concurrency=2))(views)
        here = STEP.open(what, CaptionHow(cache="off", device="cpu"))(views)
        assert all(isinstance(row, dict) for row in here), here
        assert list(there) == list(here)
    assert len({row["text"] for row in there if isinstance(row, dict)}) > 1


def test_a_real_server_without_the_model_ends_the_run(server: str, small_captioner: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    assert STEP.open is not None
    how = CaptionHow(backend="openai", url=server.removesuffix("/v1") + "/v9", cache="off")
    with pytest.raises(InfrastructureError, match=r"404.*check `url`"):
        STEP.open(What(model=str(small_captioner)), how)([media_view(tmp_path / "p.png")])

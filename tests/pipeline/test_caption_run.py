"""Captions from a server in real runs: a killed one pays nothing twice, a server that goes away leaves what is done."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from pipeline.recipe import StepOp, load_recipe
from tests.curation.chat_server import Action, Ask, ChatServer, grey_pictures, hang, hang_up, say, serving
from tests.pipeline.small import ask, fovea, recipe, verdicts
from tests.pipeline.test_kill import start, to_the_end
from tests.processes import alive_after, command_of

GREYS = list(range(10, 10 + 24))


def captions(folder: Path, server: ChatServer, **more: Any) -> Path:
    """A coarse caption, one that reads it, and how far the two agree."""
    how = {"backend": "openai", "url": server.url, "cache": str(folder / "replies.sqlite"), "batch": 4, "concurrency": 2, "backoff": 0.02}
    common = {"model": "some-model", "retries": 2, **how, **more}
    steps = [
        {"caption": {"as": "coarse", "prompt": "What is it?", **common}},
        {"caption": {"as": "detailed", "prompt": "More than {coarse_text}?", **common}},
        {"agreement": {"caption": "detailed_text", "ocr": "coarse_text"}},
    ]
    return recipe(folder / "r.yaml", {"pics": folder / "pics"}, steps)


def answer(ask: Ask) -> Action:
    return say(f'It says "grey {ask.grey}".' if "More" in ask.prompt else f"grey {ask.grey}")


def test_a_killed_run_pays_nothing_twice(one_ray: None, tmp_path: Path) -> None:
    grey_pictures(tmp_path / "pics", GREYS)
    cache, free = tmp_path / "replies.sqlite", threading.Event()
    with serving(lambda ask: answer(ask) if free.is_set() or len(server.answered) < 30 else hang(free)) as server:
        path = captions(tmp_path, server)
        process = start(path, tmp_path / "run", ray.get_runtime_context().gcs_address)
        _until(lambda: len(server.asks) >= 32 and _rows(cache) >= 30, process, tmp_path / "run.log")
        paid = set(server.answered)
        # Ray ends a killed driver's workers a moment later: answered before that, they would ask for more
        workers = [p for p in psutil.Process().children(recursive=True) if "curation.child" in command_of(p)]
        assert workers
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert alive_after(30, workers) == []
        free.set()
        to_the_end(path, tmp_path / "run", ray.get_runtime_context().gcs_address)
    assert {verdict for verdict, _, _ in verdicts(tmp_path / "run").values()} == {"kept"}
    times = {pair: sum((ask.grey, ask.prompt) == pair for ask in server.asks) for pair in {(a.grey, a.prompt) for a in server.asks}}
    assert len(times) == 2 * len(GREYS)
    assert 30 <= len(paid) <= 31
    assert {times[pair] for pair in paid} == {1}
    assert sum(times.values()) <= 2 * len(GREYS) + 2  # the two that were under way when it was killed
    found = ask_all(tmp_path / "run")
    assert found[0] == ("010.png", "grey 10", 'It says "grey 10".', 1, 1.0)
    assert len(found) == len(GREYS)


def test_a_server_that_is_gone_leaves_what_is_done_and_says_how_to_go_on(one_ray: None, tmp_path: Path) -> None:
    grey_pictures(tmp_path / "pics", GREYS)

    def dying(ask: Ask) -> Action:
        if len(server.answered) < 9:
            return answer(ask)
        threading.Thread(target=server.stop).start()
        return hang_up

    address = ray.get_runtime_context().gcs_address
    with serving(dying) as server:
        path = captions(tmp_path, server)
        ended = fovea("curate", path, "--run", tmp_path / "run", "--address", address, cwd=tmp_path)
    told = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode not in (0, None)
    assert "is pending: start the server again" in told, told
    assert "then run the same command again" in told
    before = {verdict for verdict, _, _ in verdicts(tmp_path / "run").values()}
    assert "errored" not in before
    assert "pending" in before
    server.behave = answer
    server.start()
    try:
        again = fovea("curate", path, "--run", tmp_path / "run", "--address", address, cwd=tmp_path)
    finally:
        server.stop()
    assert again.returncode == 0, again.stdout + again.stderr
    assert {verdict for verdict, _, _ in verdicts(tmp_path / "run").values()} == {"kept"}
    assert len(server.answered) == len(set(server.answered)) == 2 * len(GREYS)


def test_where_a_model_runs_changes_no_digest_and_a_prompt_what_reads_it(tmp_path: Path) -> None:
    grey_pictures(tmp_path / "pics", GREYS[:1])
    server = ChatServer(answer, 1)

    def digests(path: Path) -> dict[str, str]:
        return {op.name: op.digest for op in load_recipe(path).ops if isinstance(op, StepOp)}

    first = digests(captions(tmp_path, server))
    assert digests(captions(tmp_path, ChatServer(answer, 2), batch=7, concurrency=1, timeout=3.0, cache="off", served_as="x")) == first
    local = captions(tmp_path, server)
    value = yaml.safe_load(local.read_text())
    for step in value["steps"][:2]:
        for key in ("backend", "url"):
            del step["caption"][key]
        step["caption"]["device"] = "cuda:1"
    local.write_text(yaml.safe_dump(value))
    assert digests(local) == first
    value["steps"][1]["caption"]["prompt"] += "!"
    local.write_text(yaml.safe_dump(value))
    assert {name for name, digest in digests(local).items() if digest != first[name]} == {"detailed", "agreement"}
    value["steps"][0]["caption"]["prompt"] += "!"
    local.write_text(yaml.safe_dump(value))
    assert set(digests(local).items()).isdisjoint(first.items())


def ask_all(run: Path) -> list[tuple[Any, ...]]:
    """key, both captions, claims and their share."""
    return ask(run, "select key, coarse_text, detailed_text, agreement_n, agreement_share from samples order by key")


def _rows(cache: Path) -> int:
    if not cache.is_file():
        return 0
    with sqlite3.connect(cache, timeout=30) as connection:
        try:
            return int(connection.execute("select count(*) from replies").fetchone()[0])
        except sqlite3.OperationalError:  # the table is not there yet
            return 0


def _until(true: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while not true():
        assert process.poll() is None, log.read_text()
        if time.monotonic() > end:
            pytest.fail("it never came so far: " + log.read_text())
        time.sleep(0.05)

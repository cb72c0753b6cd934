"""Captions in the runner's child process, under its watch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from curation import sandbox
from curation.group import GroupRunner
from shards.media import Limits
from tests.curation.chat_server import Action, Ask, grey_pictures, say, serving
from tests.curation.units import call, picture_unit


def test_a_server_that_takes_long_is_waited_for_and_the_watch_looks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch kills after so much silence; a wait within `timeout` is none."""
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 0.0)
    monkeypatch.setattr(sandbox, "WALL_GRACE", 2.5)

    def slow(ask: Ask) -> Action:
        time.sleep(4.5)
        return say(f"grey {ask.grey}")

    with serving(slow) as server:
        how = {"backend": "openai", "url": server.url, "cache": str(tmp_path / "c.sqlite"), "timeout": 60.0}
        step = call("caption", {"model": "some-model"}, how)
        with GroupRunner([step], Limits(cpu_seconds=20)) as runner:
            result = runner.run(picture_unit(grey_pictures(tmp_path / "pics", [10, 20])))
    assert result.rows[step.digest]["text"].to_pylist() == ["grey 10", "grey 20"]
    assert result.crashes == 0
    assert len(server.asks) == 2

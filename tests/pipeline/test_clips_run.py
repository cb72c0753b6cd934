"""Clips in the engine: cut once, at the shots that a step before them found; in shards with where they came from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.explain import explain
from pipeline.ledger import open_ledger
from pipeline.recipe import load_run_recipe
from shards.media import Limits
from shards.reader import Dataset
from shards.sample import child_uid, uid_of
from shards.verify import verify
from shards.video import sample_frames
from tests.pipeline.small import ask, picture, recipe, run, verdicts
from tests.shards.clips import CLOSED, decoded, moving

pytestmark = pytest.mark.usefixtures("one_ray")

STEPS = ["tests.steps.shots", {"clips": {"at": "video_shots"}}, "probe", {"compose": {"tasks": ["video", "short_caption"]}}]


@pytest.fixture(scope="module")
def cut(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clips")
    films = folder / "films"
    films.mkdir()
    data = moving("mp4", "libx264", {"crf": "5", **CLOSED}, frames=120, muxer={"movflags": "faststart"})
    (films / "whole.mp4").write_bytes(data)
    (films / "whole.txt").write_text("a whole film")
    (films / "torn.mp4").write_bytes(data[: len(data) // 2])
    (films / "none.mp4").write_bytes(b"<html>404</html>")
    picture(films / "a.jpg", 1)
    path = recipe(folder / "r.yaml", {"films": films}, STEPS)
    return folder, run(path, folder / "run")


def test_every_clip_has_a_verdict(cut: tuple[Path, Any]) -> None:
    folder, outcome = cut
    found = verdicts(folder / "run")
    assert found["whole.mp4"] == ("split", "clips", "3 clips")
    assert [key for key in sorted(found) if key.startswith("whole.mp4#")] == [
        "whole.mp4#clip=0-1500", "whole.mp4#clip=1500-3000", "whole.mp4#clip=3000-5000",
    ]  # fmt: skip
    assert found["torn.mp4"][0] == "split"
    assert [fate[0] for key, fate in found.items() if key.startswith("torn.mp4#clip=0-")] == ["kept"]
    assert (found["none.mp4"][0], found["a.jpg"][0]) == ("errored", "kept")
    counts = outcome.counts
    assert counts["inputs"] == counts["kept"] + counts["rejected"] + counts["errored"] + counts["split"]
    lengths = dict(ask(folder / "run", "select key, good_seconds from samples where parent is not null"))
    assert lengths["whole.mp4#clip=1500-3000"] == pytest.approx(1.5, abs=0.05)
    again = run(folder / "r.yaml", folder / "run")
    assert (again.calls, again.media_opened) == ({}, 0)


def test_a_clip_in_a_shard_is_its_part_of_the_film(cut: tuple[Path, Any]) -> None:
    folder, _ = cut
    assert verify(str(folder / "run/dataset")) == []
    uid = child_uid(uid_of("films", "whole.mp4"), "clip", 1500, 3000)
    (raw,) = Dataset.open(str(folder / "run/dataset")).read([uid])
    told = json.loads(raw.json)
    film = (folder / "films/whole.mp4").read_bytes()
    assert told["media"][0]["member"] == f"{uid}.mp4"
    assert told["media"][0]["transform"] == {
        "operator": "clips", "version": 2, "parameters": {"start": 1.5, "end": 3.0, "method": "copy"},
    }  # fmt: skip
    assert told["media"][0]["original_sha256"] == hashlib.sha256(film).hexdigest()
    assert told["media"][0]["sha256"] == hashlib.sha256(raw.media[0]).hexdigest()
    assert told["texts"]["meta"]["parent_key"] == "whole.mp4"
    assert not told["texts"].get("caption")
    np.testing.assert_array_equal(decoded(raw.media[0]), decoded(film)[36:72])
    np.testing.assert_array_equal(
        sample_frames(raw.media[0], 2.0, 9, Limits()).pixels, sample_frames(film, 2.0, 9, Limits()).pixels[3:6]
    )  # at 1.5, 2 and 2.5 s of the film


def test_a_clip_knows_its_parent_and_place(cut: tuple[Path, Any]) -> None:
    folder, _ = cut
    ledger = open_ledger(str(folder / "run"))
    parent = uid_of("films", "whole.mp4")
    life = explain(ledger, load_run_recipe(ledger.store), child_uid(parent, "clip", 3000, 5000))
    assert life["life"][0]["scores"] == {"parent": parent, "parent_key": "whole.mp4"}
    assert life["listing"]["parent"] == parent
    children = explain(ledger, load_run_recipe(ledger.store), parent)["children"]
    assert [(child["key"], child["verdict"]) for child in children][2] == ("whole.mp4#clip=3000-5000", "kept")

"""`explain` on every fate a sample can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.explain import explain
from pipeline.ledger import LISTING, open_ledger
from pipeline.recipe import load_recipe, load_run_recipe
from shards.errors import LedgerError, StepBug
from shards.reader import Dataset
from shards.sample import uid_of
from tests.pipeline.small import pictures, recipe, run


def told(folder: Path, uid: str) -> dict[str, Any]:
    ledger = open_ledger(str(folder / "run"))
    return explain(ledger, load_run_recipe(ledger.store), uid)


def printed(folder: Path, uid: str) -> str:
    result = CliRunner().invoke(app, ["explain", str(folder / "run"), uid])
    assert result.exit_code == 0, result.output
    return result.output


def steps_of(found: dict[str, Any]) -> dict[str, Any]:
    return {event.get("step") or f"rule {event['rule']}": event for event in found["life"]}


def test_a_kept_sample(rich_run: Path) -> None:
    uid = uid_of("pics", "002.jpg")
    found = told(rich_run, uid)
    assert (found["verdict"], found["step"], found["reason"]) == ("kept", None, None)
    assert (found["source"], found["key"], found["texts"]) == ("pics", "002.jpg", {"caption": "picture number 2"})
    (medium,) = found["media"]
    assert medium["path"] == str(rich_run / "pics/002.jpg")
    assert len(medium["sha256"]) == 64
    life = steps_of(found)
    assert list(life) == ["probe", "rule size", "deduplicate", "rule deduplicate", "compose"]
    assert life["probe"]["scores"]["width"] == 104
    assert life["rule size"]["said"] == "passed"
    assert life["deduplicate"]["scores"]["of"] is None
    assert "copy_of" not in life["deduplicate"]
    assert life["compose"]["scores"] == {"n_items": 1, "tasks": ["short_caption"]}
    placement = found["placement"]
    dataset = Dataset.open(str(rich_run / "run/dataset"))
    rows = [row for row in dataset.index().to_pylist() if row["uid"] == uid]
    assert (rows[0]["offset"], rows[0]["bytes"], rows[0]["split"]) == (placement["offset"], placement["bytes"], placement["split"])
    with (rich_run / "run/dataset" / placement["shard"]).open("rb") as tar:
        tar.seek(placement["offset"])
        assert tar.read(100).rstrip(b"\0").decode() == f"{uid}.jpg"
    assert [(item["task"], item["n"]) for item in found["items"]] == [("short_caption", 0)]
    text = printed(rich_run, uid[:12])
    assert text.splitlines()[0] == f"kept  {uid}"
    assert f"in {placement['shard']} at offset {placement['offset']:,}" in text
    assert "rule size: passed  (aspect_ratio < 10 and width >= 100)" in text


def test_a_rejected_sample(rich_run: Path) -> None:
    found = told(rich_run, uid_of("pics", "000.jpg"))
    assert (found["verdict"], found["step"], found["reason"]) == ("rejected", "size", "size: width >= 100")
    assert list(steps_of(found)) == ["probe", "rule size"]  # nothing after it saw the sample
    assert found["placement"] is None
    assert "rule size: rejected: size: width >= 100" in printed(rich_run, uid_of("pics", "000.jpg"))


def test_a_copy_names_what_replaced_it(rich_run: Path) -> None:
    found = told(rich_run, uid_of("pics", "copy.jpg"))
    assert (found["verdict"], found["step"]) == ("rejected", "deduplicate")
    event = steps_of(found)["deduplicate"]
    assert event["copy_of"] == {"uid": uid_of("pics", "004.jpg"), "source": "pics", "key": "004.jpg"}
    assert event["scores"]["rung"] == "phash"
    assert "a copy of 004.jpg of source pics" in printed(rich_run, found["uid"])


def test_an_errored_sample_and_a_damaged_one(rich_run: Path) -> None:
    broken = told(rich_run, uid_of("pics", "broken.jpg"))
    assert (broken["verdict"], broken["step"]) == ("errored", "probe")
    assert broken["reason"].startswith("decode: ")
    assert "step probe: decode: " in printed(rich_run, broken["uid"])
    assert "None" not in printed(rich_run, broken["uid"])
    torn = told(rich_run, uid_of("pics", "torn.jpg"))
    assert (torn["verdict"], torn["step"], torn["life"]) == ("errored", "source", [])
    assert "torn.json" in torn["reason"]
    assert "torn.json" in printed(rich_run, torn["uid"])


def test_several_media_and_none(rich_run: Path) -> None:
    pair = told(rich_run, uid_of("pairs", "pair"))
    assert [m["kind"] for m in pair["media"]] == ["image", "image"]
    probed = steps_of(pair)["probe"]["scores"]
    assert (probed["width"], [m["width"] for m in probed["further media"]]) == (108, [112])
    assert pair["verdict"] == "kept"
    text = told(rich_run, uid_of("texts", "t0"))
    assert text["media"] == []
    assert steps_of(text)["probe"]["scores"] is None
    out = printed(rich_run, uid_of("texts", "t0"))
    assert "step probe: says nothing of this kind of sample" in out
    assert "None" not in out


def test_a_pending_sample(one_ray: None, tmp_path: Path) -> None:
    pictures(tmp_path / "pics", 2)
    steps = [{"tests.steps.counting": {"as": "counting"}}, {"tests.steps.buggy": {"as": "buggy"}}]
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, steps)
    run(path, tmp_path / "run", until="counting")
    with pytest.raises(StepBug):
        run(path, tmp_path / "run")
    found = told(tmp_path, uid_of("pics", "000.jpg"))
    assert (found["verdict"], found["step"], found["placement"]) == ("pending", "buggy", None)
    out = printed(tmp_path, uid_of("pics", "000.jpg"))
    assert out.startswith("pending by buggy")
    assert "step counting: size" in out
    assert "step buggy: not run yet" in out


def test_uids_that_are_unknown_short_or_of_several(rich_run: Path) -> None:
    with pytest.raises(LedgerError, match=r"no sample abcdef123456.*fovea query"):
        told(rich_run, "abcdef123456")
    with pytest.raises(LedgerError, match="no sample"):
        told(rich_run, "0" * 32)
    with pytest.raises(LedgerError, match="too short"):
        told(rich_run, "abc")
    with pytest.raises(LedgerError, match="no sample"):
        told(rich_run, "'; drop table x; --")


def test_the_beginning_of_several_uids_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path / "run"), write=True)
    listing = pa.Table.from_pylist([{"uid": f"abcdef{i}" + "0" * 25, "source": "s", "key": "k"} for i in range(3)], LISTING)
    ledger.commit("scan", {"listing": listing})
    ledger.close()
    (tmp_path / "pics").mkdir()
    loaded = load_recipe(recipe(tmp_path / "r.yaml", {"pics": tmp_path / "pics"}, ["probe"]))
    with pytest.raises(LedgerError, match=r"several samples begin with abcdef: abcdef.*give more digits"):
        explain(open_ledger(str(tmp_path / "run")), loaded, "abcdef")

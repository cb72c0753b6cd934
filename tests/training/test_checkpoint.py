"""Checkpoints: killed anywhere and started again, a stage is the one that was never killed."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shards.errors import ConfigError, InfrastructureError
from tests.training import forked, hand_train
from tests.training.hand_train import config, zero_settings
from training.checkpoint import final_dir, finished, latest_state, stage_dir
from training.metrics import read_metrics


def run(out: Path, *options: object, ranks: int = 1) -> tuple[list[int | None], str]:
    return forked.run(hand_train.main, [out, *options], ranks)


def train(out: Path, *options: object, ranks: int = 1, dies: bool = False) -> None:
    codes, said = run(out, *options, ranks=ranks)
    assert codes == [-signal.SIGKILL if dies else 0] * ranks, said[-3000:]


def losses(out: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out) if r["kind"] == "step"]


def ids(out: Path, rank: int = 0) -> list[list]:
    return [json.loads(line) for line in (out / f"ids-{rank}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody killed: nine steps, into the second pass."""
    out = tmp_path_factory.mktemp("whole")
    train(out)
    return out


def test_the_run_itself(whole: Path) -> None:
    assert [step for step, _, _ in losses(whole)] == list(range(1, 10))
    assert [step for step, _ in ids(whole)] == list(range(1, 10))
    assert sorted(p.name for p in stage_dir(whole, 1).iterdir()) == ["final"], "states of a finished stage are of no use"


@pytest.mark.parametrize(
    ("option", "step", "resumes_at"),
    [("--die-before", 7, 6), ("--die-in-save", 4, 2)],
    ids=["between checkpoints, at the second pass", "with a checkpoint half written"],
)
def test_killed_and_started_again_it_sees_the_same_items_and_losses(
    whole: Path, tmp_path: Path, option: str, step: int, resumes_at: int
) -> None:
    train(tmp_path, option, str(step), dies=True)
    found = latest_state(stage_dir(tmp_path, 1))
    assert found[1].step == resumes_at
    _refused_while_a_file_is_cut(found[0])
    seen = len(ids(tmp_path))
    train(tmp_path)
    assert losses(tmp_path) == losses(whole), "in fp32 resuming changes no digit"
    assert ids(tmp_path)[seen:] == ids(whole)[resumes_at:]
    ours, theirs = (load_file(final_dir(out, 1) / "model.safetensors") for out in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _refused_while_a_file_is_cut(checkpoint: Path) -> None:
    (path,) = (checkpoint / "state").glob("*optim_states.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(InfrastructureError, match=rf"{path.name} is of 1,000 bytes instead of .*; delete {checkpoint}"):
        latest_state(checkpoint.parent)
    path.unlink()
    with pytest.raises(InfrastructureError, match=f"{path.name} is gone"):
        latest_state(checkpoint.parent)
    path.write_bytes(whole)


def test_killed_under_zero_3_it_goes_on_to_the_last_digit_too(tmp_path: Path) -> None:
    zero = ("--steps", 4, "--zero", zero_settings(tmp_path, 3))
    train(tmp_path / "whole", *zero)
    train(tmp_path / "killed", *zero, "--die-before", 3, dies=True)
    train(tmp_path / "killed", *zero)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def disk_full(out: Path, *options: object) -> None:
    """On the last rank, while it writes the state of the optimizer for the second checkpoint."""
    codes, said = run(out, *options, "--full-in-save", 4, ranks=2)
    assert codes == [1, 1], said[-3000:]
    assert re.search(r"InfrastructureError: .*checkpoint .*step-000004 could not be written: .*rank_1_.*optim_states.pt: .*GB free", said)
    assert re.search(r"keep fewer, and start again: .*step-000002 is whole, and the stage continues from it", said)
    assert sorted(p.name for p in stage_dir(out, 1).iterdir()) == ["latest", "step-000002"], "the room is given back"


def rank_dies(out: Path, *options: object) -> None:
    codes, said = run(out, *options, "--lose", 1, 5, ranks=2)
    assert codes == [1, -signal.SIGKILL], said[-3000:]
    assert re.search(r"InfrastructureError: .*rank 1.* gone .*continues from the last checkpoint", said), said[-3000:]


def rank_hangs(out: Path, *options: object) -> None:
    codes, said = run(out, *options, "--hang", 1, 5, ranks=2)
    assert codes == [1, hand_train.GAVE_UP], said[-3000:]
    assert re.search(r"InfrastructureError: .*rank 1.* gone .*continues from the last checkpoint", said), said[-3000:]


@pytest.mark.parametrize(("zero", "accident"), [(1, disk_full), (2, rank_dies), (3, rank_hangs)], ids=["1-disk", "2-dies", "3-hangs"])
def test_two_ranks_then_one_then_two_are_the_run_that_nothing_happened_to(
    whole: Path, tmp_path: Path, zero: int, accident: Callable
) -> None:
    out, options = tmp_path / "out", ("--zero", zero_settings(tmp_path, zero))
    accident(out, *options)
    found = latest_state(stage_dir(out, 1))
    assert (found[1].step, found[1].world) == (2 if accident is disk_full else 4, 2)
    train(out, *options, "--die-before", 7, dies=True)
    found = latest_state(stage_dir(out, 1))
    assert (found[1].step, found[1].world) == (6, 1)
    train(out, *options, ranks=2)
    assert [step for step, _, _ in losses(out)] == list(range(1, 10))
    for (_, ours, norm), (_, theirs, their_norm) in zip(losses(out), losses(whole), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert norm == pytest.approx(their_norm, rel=1e-3)
    items: dict[int, set[str]] = {}
    for step, names in [*ids(out, 0), *ids(out, 1)]:
        items.setdefault(step, set()).update(names)
    assert items == {step: set(names) for step, names in ids(whole)}, "what was seen again was the same"
    assert [step for step, _ in ids(out, 0)][-3:] == [7, 8, 9] == [step for step, _ in ids(out, 1)][-3:]
    first, second = (torch.load(out / f"after-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = torch.load(whole / "after-0.pt", weights_only=True)
    assert first["after"] == second["after"] == pytest.approx(float(alone["after"]), rel=1e-4), "each rank is left with all the weights"
    assert [first["tied"], second["tied"]] == [True, True]
    ours, theirs = (load_file(final_dir(folder, 1) / "model.safetensors") for folder in (out, whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def test_the_newest_whole_checkpoint_is_found_where_the_pointer_is_behind_or_gone(tmp_path: Path) -> None:
    state = {
        "format": "fovea-checkpoint/2",
        "zero": 1,
        "frozen": "",
        "files": {},
        "stage": 1,
        "epoch": 0,
        "plan_digest": "p",
        "window": 0,
        "plan_step": 1,
        "stage_digest": "d",
        "world": 1,
    }
    assert latest_state(tmp_path) is None
    for step in (2, 4):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text(json.dumps({**state, "step": step}))
    (tmp_path / "step-000006").mkdir()
    assert latest_state(tmp_path)[1].step == 4, "a directory without state.json is no checkpoint"
    (tmp_path / "latest").write_text("step-000002")
    assert latest_state(tmp_path)[1].step == 2
    (tmp_path / "latest").write_text("step-000009")
    assert latest_state(tmp_path)[1].step == 4
    (tmp_path / "latest").write_bytes(b"\xff\x00")
    shutil.copytree(tmp_path / "step-000004", tmp_path / "step-000005-kept")
    assert latest_state(tmp_path)[1].step == 4, "a copy that somebody has laid aside is not the newest"
    for damaged in (b"{", b"\xff", b"[]"):
        (tmp_path / "step-000004" / "state.json").write_bytes(damaged)
        with pytest.raises(InfrastructureError, match="damaged"):
            latest_state(tmp_path)


def test_a_finished_stage_of_another_config_is_refused(whole: Path) -> None:
    assert finished(whole, 1, config(9).stage_digest(1)) is not None
    assert finished(whole, 2, "any") is None
    with pytest.raises(ConfigError, match="another config"):
        finished(whole, 1, config(10).stage_digest(1))

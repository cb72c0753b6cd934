"""Files on a disk that is full, killed over or garbled: what is told, what is left, what is read back."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.errors import InfrastructureError
from tests.training import forked, small_dataset
from tests.training.fixtures import Fact, index_of
from tests.training.hand_launch import CONFIG
from tests.training.plan_helpers import CONFIG as PLAN_CONFIG
from training import checkpoint, skips, wandb_board
from training.answers import write_answers
from training.checkpoint import final_dir, forget_states, latest_state, stage_dir
from training.cost import FEATURES, CostModel
from training.durable import append_line, publish, refuse_unwritable, replace_text, whole_lines
from training.fit import Fit, save_costs
from training.index_source import TableIndex
from training.launch import train
from training.measured import WARM_STEPS, PackLog, pack_file
from training.metrics import Metrics, read_metrics
from training.mixture import Mixture
from training.plan import make_plan
from training.questions import Failed
from training.rank_group import EndedElsewhere
from training.stage_plan import keep_plan

RECORD = {"kind": "step", "stage": 1, "step": 1, "loss": 2.0}


def full(path: Path) -> None:
    """Whoever writes to `path` finds the disk full: the kernel says so itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


def full_beside(path: Path) -> None:
    """Whoever replaces `path` finds the disk full."""
    full(path.with_name(f".{path.name}.{os.getpid()}.tmp"))


def write_metrics(folder: Path) -> None:
    full(folder / "metrics.jsonl")
    Metrics(folder, active=True).write(RECORD)


def forget_metrics(folder: Path) -> None:
    append_line(folder / "metrics.jsonl", json.dumps(RECORD))
    full_beside(folder / "metrics.jsonl")
    Metrics(folder, active=True).forget_after(1, 1)


def write_curves(folder: Path) -> None:
    (folder / "tensorboard").write_text("in the way")
    Metrics(folder, active=True).write(RECORD)


def begin_packs(folder: Path) -> None:
    full(pack_file(folder, 0))
    PackLog(folder, 0, 1, "digest", CostModel(), "a CPU", 1)


def note_packs(folder: Path) -> None:
    log = PackLog(folder, 0, 1, "digest", CostModel(), "a CPU", 1)
    full(pack_file(folder, 0))
    for _ in range(WARM_STEPS + 1):
        log.note(np.ones((1, len(FEATURES))), [0.5])


def write_plan(folder: Path) -> None:
    full_beside(folder / "plan.json")
    facts = [Fact(f"i{i}", text=20, t=1, side=4, shard=f"{i % 2}.tar") for i in range(20)]
    keep_plan(folder / "plan.json", make_plan(TableIndex(index_of(facts), ""), Mixture(), PLAN_CONFIG))


def write_costs(folder: Path) -> None:
    full_beside(folder / "costs.json")
    save_costs(folder / "costs.json", Fit(CostModel(), 0.1, 0.2, 40, 1.0, ()), {}, "a CPU")


def write_given_answers(folder: Path) -> None:
    full_beside(folder / "answers.jsonl")
    write_answers(folder / "answers.jsonl", [], [Failed("u", "vqa", 0, "s", "decode", "no picture")])


def write_run_id(folder: Path) -> None:
    full_beside(folder / "wandb.json")
    wandb_board._run_id(folder)


def note_skip(folder: Path) -> None:
    full(folder / "skipped-0.jsonl")
    skip(folder / "skipped-0.jsonl", "u", 1)


def forget_skips(folder: Path) -> None:
    skip(folder / "skipped-1.jsonl", "u", 1)
    full_beside(folder / "skipped-1.jsonl")
    skips.forget_skips(folder, 1, 0, 2)


WRITERS = (write_metrics, forget_metrics, write_curves, begin_packs, note_packs, write_plan, write_costs, write_given_answers)


@pytest.mark.parametrize("write", [*WRITERS, write_run_id, note_skip, forget_skips])
def test_a_full_disk_is_told_with_the_mend_wherever_a_run_writes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    reason = "(File exists|Not a directory)" if write is write_curves else "No space left on device"
    with pytest.raises(InfrastructureError, match=rf"{tmp_path}/\S+ could not be written: {reason} \(.* GB free .*Make room") as told:
        write(tmp_path)
    assert not told.value.retryable, "a restart would find the disk as full"


def test_a_text_that_could_not_be_replaced_is_still_there(tmp_path: Path) -> None:
    replace_text(tmp_path / "made" / "text", "old")
    full_beside(tmp_path / "made" / "text")
    with pytest.raises(InfrastructureError):
        replace_text(tmp_path / "made" / "text", "new")
    assert [(p.name, p.read_text()) for p in (tmp_path / "made").iterdir()] == [("text", "old")]


def test_what_could_not_be_written_later_is_refused_now(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "made" / "answers.jsonl")
    assert list((tmp_path / "made").iterdir()) == []
    for path in (tmp_path / "made", tmp_path / "file" / "answers.jsonl"):
        (tmp_path / "file").touch()
        with pytest.raises(InfrastructureError, match=rf"{path} could not be written"):
            refuse_unwritable(path)


def test_what_is_torn_or_garbled_is_left_out_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    fine = [{**RECORD, "step": n, "source": f"a\u2028b\u0085{n}"} for n in range(4)]
    for record in fine:
        append_line(path, json.dumps(record, ensure_ascii=False))
        with path.open("ab") as file:
            file.write(
                (b'{"kind": "st', b"\0\0\0\xff\n", b"[3]\n", b'{"step": 3}\n{"kind": "step", "stage": 1, "step": 4}')[record["step"]]
            )
    with caplog.at_level(logging.WARNING, "fovea"):
        assert read_metrics(tmp_path) == fine
    assert [r.getMessage() for r in caplog.records] == [f"{path}: 5 of its lines are torn or garbled and left out (the first is line 2)"]
    again = Metrics(tmp_path, active=True)
    again.forget_after(1, 1)
    again.close()
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [0, 1]


def skip(path: Path, uid: str, step: int) -> None:
    skips.note_skip(path, 1, 0, uid, "vqa", 0, "s", "decode", "no picture", step)


def test_each_rank_notes_its_own_skips_and_all_that_are_made_again_are_forgotten(tmp_path: Path) -> None:
    for rank in range(3):
        for step in range(3):
            skip(tmp_path / f"skipped-{rank}.jsonl", f"u{rank}", step)
    with (tmp_path / "skipped-1.jsonl").open("ab") as file:
        file.write(b'{"stage": 1, "epo{"stage": 1}\n\0\0')
    skips.forget_skips(tmp_path, 1, 0, 2)
    for rank in range(3):
        text = (tmp_path / f"skipped-{rank}.jsonl").read_text()
        assert [(r["uid"], r["step"]) for r in map(json.loads, text.splitlines())] == [(f"u{rank}", 0), (f"u{rank}", 1)]
    assert whole_lines(tmp_path / "skipped-7.jsonl") == []


def test_the_names_in_new_directories_are_on_disk_before_the_directory_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "a" / "b").mkdir(parents=True)
    (scratch / "a" / "b" / "weights").write_text("w")
    synced: dict[int, bool] = {}
    plain = os.fsync

    def noted(handle: int) -> None:
        synced[os.fstat(handle).st_ino] = (tmp_path / "target").exists()
        plain(handle)

    monkeypatch.setattr(os, "fsync", noted)
    publish(scratch, tmp_path / "target")
    target = tmp_path / "target"
    for path in (target, *target.rglob("*")):
        assert synced[path.stat().st_ino] is False, path
    assert synced[tmp_path.stat().st_ino] is True


class Killed(BaseException):
    """What no handler of errors sees, as with a kill."""


def saved(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:06d}"
    (path / "state").mkdir(parents=True)
    (path / "state.json").write_text("{}")
    (path / "state" / "weights").write_text("gigabytes")
    return path


def kill_in_deleting(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    plain = shutil.rmtree

    def torn(path: Path, ignore_errors: bool = False) -> None:
        if not (path / "state.json").is_file():
            return plain(path, ignore_errors=ignore_errors)
        (path / "state.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", torn)
        with pytest.raises(Killed):
            work()


def test_a_kill_while_an_old_checkpoint_is_deleted_leaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stage_dir(tmp_path, 1)
    saved(folder, 2)
    for step in (4, 6):
        scratch = folder / f".step-{step:06d}.tmp"
        checkpoint._cleared(folder, scratch)
        if step == 4:
            kill_in_deleting(monkeypatch, lambda scratch=scratch: checkpoint._finish(scratch, folder / "step-000004", {}, 1))
        else:
            assert {p.name for p in folder.glob("*step-*")} == {".step-000006.tmp", "step-000004"}, "the next saving sweeps it"
            checkpoint._finish(scratch, folder / "step-000006", {}, 1)
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-000006"]

    final_dir(tmp_path, 1).mkdir()
    saved(folder, 5)
    kill_in_deleting(monkeypatch, lambda: forget_states(tmp_path, 1))
    forget_states(tmp_path, 1)
    assert [p.name for p in folder.iterdir()] == ["final"]


# One rank writes, all hear of it.

ADAPTED = {"projector": 1e-2, "llm": {"lr": 1e-3, "lora": {"rank": 2}}}


def main(words: Sequence[str]) -> None:
    dataset, tokenizer, out = words
    stage = CONFIG.stages[1].model_dump(exclude_unset=True) | {"steps": 1, "train": ADAPTED}
    config = type(CONFIG).model_validate(CONFIG.model_dump(exclude_unset=True) | {"stages": {1: stage}})
    try:
        train(config, dataset, out, tokenizer=tokenizer)
    except (EndedElsewhere, InfrastructureError) as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_dataset.write(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", ["before.json", "adapters"])
def test_what_rank_0_alone_writes_ends_all_ranks_at_the_same_place(corpus: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    folder = stage_dir(tmp_path, 1)
    folder.mkdir(parents=True)
    if name == "before.json":
        (folder / name).mkdir()
    else:
        (folder / name).write_text("in the way")
    codes, said = forked.run(main, [*corpus, tmp_path], ranks=2)
    assert codes == [1, 1], said[-3000:]
    assert f"InfrastructureError: {folder / name}" in said
    assert "EndedElsewhere: rank 0 ended the run and says why" in said, "it meets rank 0 there; it does not lose the connection later"


def test_a_run_sweeps_what_a_kill_left_of_a_finished_stage(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    one = CONFIG.model_copy(update={"stages": {1: CONFIG.stages[1].model_copy(update={"steps": 1})}})
    train(one, str(corpus[0]), tmp_path, tokenizer=str(corpus[1]))
    folder = stage_dir(tmp_path, 1)
    (folder / ".step-000002.tmp").mkdir()
    saved(folder, 4)
    (folder / "latest").write_text("step-000004")
    assert train(one, str(corpus[0]), tmp_path, tokenizer=str(corpus[1])).stages[0].done_before
    assert latest_state(folder) is None
    assert sorted(p.name for p in folder.iterdir()) == ["before.json", "final"]

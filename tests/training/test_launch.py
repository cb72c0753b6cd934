"""The stages in order over real shards: weights handed on, kills survived, finished work left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from shards.errors import ConfigError, InfrastructureError, ProfileError, ShardError
from shards.reader import Dataset
from shards.tokenizer import load_tokenizer, train_tokenizer
from tests.training import forked, hand_launch, small_dataset
from tests.training.hand_launch import CONFIG
from training.checkpoint import final_dir, latest_state, stage_dir
from training.evaluation import score_checkpoint
from training.export import export
from training.launch import train
from training.metrics import read_metrics
from training.model import build_model, from_hf, parts
from training.preview import preview
from training.stage_chain import TrainReport

ROOT = Path(__file__).resolve().parents[2]


def launch(*arguments: object, dies: bool = False) -> None:
    codes, said = forked.run(hand_launch.main, arguments)
    assert codes == [-signal.SIGKILL if dies else 0], said[-3000:]


def ranks_of_two(corpus: SimpleNamespace, out: Path, *arguments: object) -> tuple[list[int | None], str]:
    """`train` on two ranks: their exit codes, and what both said."""
    return forked.run(hand_launch.main, [corpus.dataset, corpus.words, out, *arguments], ranks=2)


def numbers(out: Path) -> list[tuple]:
    return [(r["kind"], r["stage"], r["step"], r["loss"], r["loss_by_task"]) for r in read_metrics(out)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    dataset, words = small_dataset.write(tmp_path_factory.mktemp("corpus"))
    return SimpleNamespace(dataset=dataset, words=words)


@pytest.fixture(scope="module")
def whole(corpus: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All stages, with nobody killing."""
    out = tmp_path_factory.mktemp("whole") / "out"
    torch.set_num_threads(1)
    launch(corpus.dataset, corpus.words, out)
    report = train(CONFIG, None, out)
    return SimpleNamespace(out=out, report=report)


@pytest.fixture(scope="module")
def two(corpus: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    out = tmp_path_factory.mktemp("two") / "out"
    codes, said = ranks_of_two(corpus, out)
    assert codes == [0, 0], said[-3000:]
    return out


def test_every_stage_lowers_the_held_out_loss_and_starts_where_the_last_one_ended(whole: SimpleNamespace) -> None:
    report: TrainReport = whole.report
    assert [(s.stage, s.done_before) for s in report.stages] == [(1, True), (2, True), (4, True)]
    for stage in report.stages:
        assert stage.before is not None
        assert stage.after is not None
        assert stage.after < stage.before, stage
    assert report.stages[1].before == report.stages[0].after, "the same weights, profile and items: the same loss"
    assert set(report.stages[2].after_by_task) == {"short_caption", "document", "vqa", "video", "text"}


def test_stage_1_trains_the_encoder_and_the_projector_only(corpus: SimpleNamespace, whole: SimpleNamespace) -> None:
    start = build_model(CONFIG.model, load_tokenizer(corpus.words), CONFIG.seed)
    first, second = (from_hf(final_dir(whole.out, k)) for k in (1, 2))
    for part, members in parts(start).items():
        moved = any(not torch.equal(p, dict(first.named_parameters())[name]) for name, p in members)
        assert moved == (part != "llm"), part
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_the_preview_says_what_came(corpus: SimpleNamespace, whole: SimpleNamespace) -> None:
    found = preview(CONFIG, str(corpus.dataset), tokenizer=str(corpus.words))
    assert [(p.stage, p.steps) for p in found] == [(s.stage, s.steps) for s in whole.report.stages]
    steps = [r for r in read_metrics(whole.out) if r["kind"] == "step" and r["stage"] == 2]
    first = found[1].first_pass
    assert first.items == sum(r["samples"] for r in steps[: first.steps])
    assert first.tokens == sum(r["tokens"] for r in steps[: first.steps])
    assert found[1].samples_per_step == pytest.approx(first.items / first.steps)


def test_what_a_run_leaves_behind(corpus: SimpleNamespace, whole: SimpleNamespace) -> None:
    records = read_metrics(whole.out)
    steps = [r for r in records if r["kind"] == "step"]
    assert [(r["stage"], r["step"]) for r in steps if r["stage"] != 2] == [(k, n) for k in (1, 4) for n in range(1, 7)]
    assert set(steps[0]["loss_by_task"]) <= {"short_caption", "document"}
    assert steps[0]["rates"].keys() == {"vision_encoder", "projector"}
    assert all(0 < r["fill"] <= 1 and r["wait"] >= 0 and r["seconds"] > 0 for r in steps)
    assert any(r["keep"] < 1 for r in steps if r["stage"] == 4)
    assert all(r["keep"] == 1 for r in steps if r["stage"] != 4)
    facts = json.loads((final_dir(whole.out, 4) / "fovea.json").read_text())
    assert facts["dataset"] == Dataset.open(str(corpus.dataset)).manifest.version
    assert list((whole.out / "tensorboard" / "stage4").glob("events.*"))
    assert sorted(p.name for p in stage_dir(whole.out, 4).iterdir()) == ["before.json", "final"]


def test_finished_stages_are_left_alone_without_importing_torch(whole: SimpleNamespace) -> None:
    script = f"""
import sys
from training.launch import train
from training.stages import TrainingConfig
config = TrainingConfig.model_validate_json({CONFIG.model_dump_json()!r})
report = train(config, None, {str(whole.out)!r})
assert all(stage.done_before for stage in report.stages)
assert not {{"torch", "deepspeed", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_a_kill_in_any_stage_changes_nothing(corpus: SimpleNamespace, whole: SimpleNamespace, tmp_path: Path) -> None:
    launch(corpus.dataset, corpus.words, tmp_path, "--die-at", 1, 1, dies=True)
    assert latest_state(stage_dir(tmp_path, 1)) is None, "killed before there was a checkpoint, the stage begins anew"
    launch(corpus.dataset, corpus.words, tmp_path, "--die-at", 2, 3, dies=True)
    assert (final_dir(tmp_path, 1) / "fovea.json").is_file()
    assert (stage_dir(tmp_path, 2) / "step-000002").is_dir()
    (stage_dir(tmp_path, 2) / "before.json").write_bytes(b"\xff")  # a note that the disk has lost is made again, and nothing else
    launch(corpus.dataset, corpus.words, tmp_path)
    assert numbers(tmp_path) == numbers(whole.out)
    ours, theirs = (load_file(final_dir(out, 4) / "model.safetensors") for out in (tmp_path, whole.out))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_ranks_give_the_losses_of_one(whole: SimpleNamespace, two: Path) -> None:
    ours, theirs = numbers(two), numbers(whole.out)
    assert [n[:3] for n in ours] == [n[:3] for n in theirs]
    assert [n[3] for n in ours] == pytest.approx([n[3] for n in theirs], rel=1e-3)


def test_a_damaged_sample_leaves_its_packs_and_is_noted(corpus: SimpleNamespace, tmp_path: Path) -> None:
    damaged = tmp_path / "dataset"
    shutil.copytree(corpus.dataset, damaged)
    index = Dataset.open(str(damaged)).index(split="train").to_pylist()
    row = next(r for r in index if r["task"] == "short_caption")
    tar = damaged / f"v-{small_dataset.VERSION}" / row["shard"]
    content = bytearray(tar.read_bytes())
    content[row["media"][0]["offset"] + 200] ^= 0xFF
    tar.write_bytes(bytes(content))
    one = CONFIG.model_copy(update={"stages": {2: CONFIG.stages[2].model_copy(update={"epochs": 1})}})
    train(one, str(damaged), tmp_path / "out", tokenizer=str(corpus.words))
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped-0.jsonl").read_text().splitlines()]
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == (tmp_path / "out" / "skipped-0.jsonl").read_text()
    assert json.loads((final_dir(tmp_path / "out", 2) / "fovea.json").read_text())["skipped"] == {"damaged": 3}
    assert {s["uid"] for s in skipped} == {row["uid"]}
    assert sorted(s["task"] for s in skipped) == ["document", "short_caption", "vqa"]
    assert all("damaged" in s["reason"] for s in skipped)
    seen = sum(r["samples"] for r in read_metrics(tmp_path / "out") if r["kind"] == "step")
    assert seen == len(index) - 3


def test_the_last_stage_is_exported(whole: SimpleNamespace, tmp_path: Path) -> None:
    out = export(whole.report.weights, tmp_path / "export")
    trained, exported = from_hf(whole.report.weights), from_hf(out)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), exported.parameters(), strict=True))
    assert (out / "chat_template.jinja").is_file()
    assert load_tokenizer(out).get_vocab() == load_tokenizer(whole.report.weights).get_vocab()


def test_a_finished_stage_is_evaluated_by_itself(corpus: SimpleNamespace, whole: SimpleNamespace) -> None:
    found = score_checkpoint(whole.report.weights, str(corpus.dataset), metrics=["loss"], packs=CONFIG.held_out_packs).loss
    assert found is not None
    assert found.loss == pytest.approx(whole.report.stages[-1].after, rel=1e-6)
    with pytest.raises(ShardError, match="no split 'test'"):
        score_checkpoint(whole.report.weights, str(corpus.dataset), split="test")
    with pytest.raises(InfrastructureError, match="no finished stage"):
        score_checkpoint(corpus.words, str(corpus.dataset))


def test_what_cannot_run_is_told_so(corpus: SimpleNamespace, whole: SimpleNamespace, tmp_path: Path) -> None:
    dataset, words = str(corpus.dataset), str(corpus.words)
    with pytest.raises(ConfigError, match="no dataset"):
        train(CONFIG, None, tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer"):
        train(CONFIG, dataset, tmp_path)
    with pytest.raises(ConfigError, match="no stage 3; it has 1, 2, 4"):
        train(CONFIG, dataset, tmp_path, stages=[3])
    with pytest.raises(ConfigError, match="weights of stage 1, which is not finished"):
        train(CONFIG, dataset, tmp_path, tokenizer=words, stages=[2])
    with pytest.raises(ConfigError, match="another config"):
        train(CONFIG.model_copy(update={"seed": 1}), dataset, whole.out, tokenizer=words)
    other = tmp_path / "other"
    train_tokenizer(["quite other words"], other, 300)
    with pytest.raises(ProfileError):
        train(CONFIG, dataset, tmp_path, tokenizer=str(other))

"""Pruning through a stage: its numbers while it trains, what its end says to evaluation and export, settings that clash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shards.errors import ConfigError
from tests.training import asked, hand_train, handmade
from tests.training.test_encode import PACK
from training import evaluation, generate
from training.collate import PackBatch, collate
from training.config_text import load_training_config
from training.engine import Ranks, start_ranks
from training.evaluation import score_checkpoint
from training.export import export
from training.loader import LoadedStep
from training.loop import run_stage
from training.measured import batch_features
from training.metrics import Metrics, read_metrics
from training.plan_parts import Cursor
from training.savings import EXACT, Savings
from training.stage_plan import plan_config
from training.stages import TrainingConfig


def pruning(config: TrainingConfig, every: int) -> TrainingConfig:
    stage = config.stages[1].model_dump()
    return TrainingConfig.model_validate(
        {**config.model_dump(), "stages": {1: {**stage, "pack_patches": 512, "encoder": {"prune": True, "compare_steps": every}}}}
    )


class Fed(hand_train.HandFeed):
    """Steps of one pack with clips, collated as the loader does it under the stage's settings, and one of text alone."""

    savings = EXACT

    def run(self, epoch: int, cursor: Cursor) -> Iterator[LoadedStep]:
        packs = [collate(items, handmade.PATCH, savings=self.savings) for items in (PACK, [handmade.item("text", 1)])]
        for loaded in super().run(epoch, cursor):
            yield replace(loaded, batches=packs)


def test_a_stage_tells_how_far_pruned_features_are_from_whole_ones(tmp_path: Path) -> None:
    config = pruning(hand_train.config(5, every=50), 2)
    ranks, model = start_ranks(), handmade.model()
    feed = Fed(ranks, tmp_path / "ids.jsonl")
    feed.savings = config.stages[1].savings
    metrics = Metrics(tmp_path, active=True)
    run_stage(model, 1, config, feed, tmp_path, ranks, metrics)
    metrics.close()
    told = [r for r in read_metrics(tmp_path) if r["kind"] == "pruning"]
    assert [(r["stage"], r["step"]) for r in told] == [(1, 2), (1, 4)]
    kept = sum(m.kept for item in PACK for m in item.media if m.video)
    for record in told:
        assert record["tokens"] == kept
        assert 0.01 < record["relative_l2"] < 1
        assert 0.5 < record["cosine"] < 1
    steps = [r for r in read_metrics(tmp_path) if r["kind"] == "step"]
    batch = collate(PACK, handmade.PATCH, savings=Savings(prune=True))
    assert {(r["patches"], r["encoded"]) for r in steps} == {(batch.counts.patches, batch.counts.patches / batch.counts.all_patches)}
    assert batch_features(batch)[1] == sum(batch.rows.lengths) == batch.counts.patches
    assert not any(p.grad is not None for p in model.parameters())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished stage, and the same with `prune` in its facts."""
    made = asked.finished_stage(tmp_path_factory.mktemp("finished"), 1)
    pruned = tmp_path_factory.mktemp("pruned") / "final"
    shutil.copytree(made.final, pruned)
    facts = json.loads((pruned / "fovea.json").read_text())
    facts["block"]["encoder"] = {"prune": True}
    (pruned / "fovea.json").write_text(json.dumps(facts))
    return SimpleNamespace(plain=made.final, pruned=pruned, dataset=made.dataset)


def test_evaluation_prunes_where_training_did(finished: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[Savings] = []
    lost: list[Savings] = []
    features, loss = generate.visual_features, evaluation.evaluate

    def generated(model: Any, batch: PackBatch) -> Any:
        answered.append(batch.rows)  # type: ignore[arg-type]
        return features(model, batch)

    def evaluated(*given: Any, **named: Any) -> Any:
        lost.append(plan_config(given[4], 0, given[3].name).savings)
        return loss(*given, **named)

    monkeypatch.setattr(generate, "visual_features", generated)
    monkeypatch.setattr(evaluation, "evaluate", evaluated)
    encoded = []
    for final in (finished.plain, finished.pruned):
        answered.clear()
        score_checkpoint(final, str(finished.dataset), new_tokens=1, packs=2)
        encoded.append(sum(sum(rows.lengths) for rows in answered))  # type: ignore[attr-defined]
    assert [savings.prune for savings in lost] == [False, True]
    assert encoded[1] < encoded[0]


def test_an_export_of_a_pruned_model_says_what_transformers_lacks(
    finished: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(finished.plain, tmp_path / "plain")
    assert "prune" not in caplog.text
    export(finished.pruned, tmp_path / "pruned")
    assert "encoder.prune, which transformers' encoder does not do" in caplog.text


def test_what_cannot_be_pruned_is_refused_and_how_often_it_is_compared_is_no_part_of_a_stage(tmp_path: Path) -> None:
    base = hand_train.config(5)
    assert base.stages[1].savings == EXACT
    assert pruning(base, 2).stage_digest(1) == pruning(base, 7).stage_digest(1) != base.stage_digest(1)
    path = tmp_path / "mine.yaml"
    block = (
        "profile: tiny, compress: false, encoder: {prune: true}, train: {llm: 1.0e-3}, step: {packs: 2}, seq_tokens: 64, pack_patches: 64"
    )
    path.write_text(f"name: mine\nstages: {{1: {{{block}}}}}\n")
    with pytest.raises(ConfigError, match=r"needs `compress: true`"):
        load_training_config(path)
    path.write_text(f"name: mine\nstages: {{1: {{{block.replace('prune: true', 'prun: true')}}}}}\n")
    with pytest.raises(ConfigError, match=r"did you mean 'prune'"):
        load_training_config(path)


def test_ranks_without_a_kept_token_have_no_distance() -> None:
    from training.pruning import pruning_numbers

    start_ranks()
    engine = SimpleNamespace(module=SimpleNamespace(model=handmade.model()), device=torch.device("cpu"), ranks=Ranks(0, 1))
    batch = collate([handmade.item("text", 1)], handmade.PATCH, savings=Savings(prune=True))
    assert pruning_numbers(engine, [batch]) == {"relative_l2": None, "cosine": None, "tokens": 0.0}
    assert engine.module.model.training

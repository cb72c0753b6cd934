"""What cannot be trained is said before anything is: nothing is built, nothing is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import configs
from shards.errors import ConfigError, FoveaError, InfrastructureError, ProfileError, ShardError
from shards.reader import Dataset
from shards.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer
from tests.training import small_dataset
from tests.training.hand_launch import CONFIG
from training import preflight
from training.checkpoint import final_dir, stage_dir
from training.launch import train
from training.stages import TrainingConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("corpus")
    dataset, words = small_dataset.write(folder)
    train_tokenizer(["quite other words"], folder / "other", 300)
    return SimpleNamespace(dataset=dataset, words=words, other=folder / "other")


def changed(stage: int, **values: Any) -> TrainingConfig:
    block = CONFIG.stages[stage].model_dump() | values
    return TrainingConfig.model_validate(CONFIG.model_dump() | {"stages": {**CONFIG.model_dump()["stages"], stage: block}})


def patched(patch: int) -> TrainingConfig:
    model = CONFIG.model.model_copy(update={"tiny": CONFIG.model.tiny.model_copy(update={"patch": patch})})
    return CONFIG.model_copy(update={"model": model})


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        (changed(4, profile="videollama3_video"), ProfileError, "stage 4: the dataset has no counts under profile 'videollama3_video'"),
        (changed(4, mixture={"tasks": {"region": 1, "video": 2}}), ConfigError, "stage 4: mixture.tasks: no items for region"),
        (changed(4, mixture={"where": "nosuch > 3"}), ConfigError, r"stage 4: mixture.where: 'nosuch > 3'"),
        (changed(4, seq_tokens=2), ConfigError, "stage 4: all .* items are too long"),
        (patched(16), ConfigError, "stage 1: the model has patches of 16 pixels, profile 'tiny' measures with 14"),
    ],
    ids=["profile", "task", "where", "budget", "patch"],
)
def test_a_late_stage_that_cannot_begin_is_refused_before_the_first(
    corpus: SimpleNamespace, tmp_path: Path, config: TrainingConfig, error: type[FoveaError], told: str
) -> None:
    with pytest.raises(error, match=told):
        train(config, str(corpus.dataset), tmp_path / "out", tokenizer=str(corpus.words))
    assert not (tmp_path / "out").exists()


def test_a_stage_may_name_the_file_of_a_profile(corpus: SimpleNamespace) -> None:
    dataset, words = Dataset.open(corpus.dataset), load_tokenizer(str(corpus.words))
    file = str(Path(configs.__file__).parent / "profiles" / "tiny_video.yaml")
    plans = [
        preflight.refuse_unfit(changed(4, profile=profile), [4], dataset, words, tokenizer_digest(str(corpus.words)))[4]
        for profile in ("tiny_video", file)
    ]
    assert plans[0].digest == plans[1].digest


def test_a_dataset_and_a_tokenizer_that_do_not_belong_together_or_are_not_there(corpus: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="stage 1: the dataset was measured under 'tiny' with another tokenizer"):
        train(CONFIG, str(corpus.dataset), tmp_path / "out", tokenizer=str(corpus.other))
    with pytest.raises(ConfigError, match="no tokenizer in"):
        train(CONFIG, str(corpus.dataset), tmp_path / "out", tokenizer=str(tmp_path))
    with pytest.raises(ShardError, match="no manifest"):
        train(CONFIG, str(tmp_path), tmp_path / "out", tokenizer=str(corpus.words))
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_of_the_stage_before_is_asked_for(corpus: SimpleNamespace, tmp_path: Path) -> None:
    final = final_dir(tmp_path, 1)
    final.mkdir(parents=True)
    (final / "fovea.json").write_text(f'{{"stage_digest": "{CONFIG.stage_digest(1)}", "profile": {{"tokenizer": "0123"}}}}')
    with pytest.raises(ConfigError, match=r"trained with another tokenizer \(digest 0123"):
        train(CONFIG, str(corpus.dataset), tmp_path, tokenizer=str(corpus.words), stages=[2])


def test_no_resume_is_said_before_an_earlier_stage_is_trained(
    corpus: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = stage_dir(tmp_path, 2) / "step-000002"
    state.mkdir(parents=True)
    (state / "state.json").write_text(
        '{"format": "fovea-checkpoint/2", "stage": 2, "step": 2, "epoch": 0, "plan_digest": "p", "window": 0, "plan_step": 2, '
        '"stage_digest": "d", "world": 1, "zero": 1, "frozen": [], "files": {}}'
    )

    def never(*_: object) -> None:
        raise InfrastructureError("training began")

    monkeypatch.setattr(preflight, "refuse_unfit", never)
    with pytest.raises(ConfigError, match="has checkpoints"):
        train(CONFIG, str(corpus.dataset), tmp_path, tokenizer=str(corpus.words), resume=False)
    with pytest.raises(InfrastructureError, match="training began"):
        train(CONFIG, str(corpus.dataset), tmp_path, tokenizer=str(corpus.words), resume=True)

"""The shipped training configs: the paper's numbers are the paper's, and each names a model whose sizes are known."""

from __future__ import annotations

import re
import textwrap
from importlib import resources
from pathlib import Path

import pytest
import yaml

from shards.profile import load_profile
from training.config_text import load_training_config
from training.flops import model_flops
from training.shapes import named_shape, shape_of
from training.stages import CacheConfig, LoraConfig, StageConfig, TrainingConfig, deepspeed_json

PAPER = ["videollama3-2b", "videollama3-7b"]


@pytest.fixture(params=PAPER)
def paper(request: pytest.FixtureRequest) -> TrainingConfig:
    return load_training_config(request.param)


def test_what_each_stage_trains_and_at_which_rates(paper: TrainingConfig) -> None:
    """VideoLLaMA3 report §3.3: stage 1 leaves the language model alone, all others train everything."""
    assert paper.stages[1].rates == {"vision_encoder": 1e-5, "projector": 1e-3}
    for number in (2, 3, 4):
        assert paper.stages[number].rates == {"vision_encoder": 2e-6, "projector": 1e-5, "llm": 1e-5}
    assert not any(stage.adapters for stage in paper.stages.values())


def test_merging_compression_and_budgets(paper: TrainingConfig) -> None:
    profiles = [load_profile(paper.stages[number].profile, "0") for number in (1, 2, 3, 4)]
    assert [(p.image_merge, p.video_merge) for p in profiles] == [(1, 2), (1, 2), (1, 2), (2, 2)]
    assert [paper.stages[number].compress for number in (1, 2, 3, 4)] == [False, False, True, True]
    for profile in profiles:
        assert (profile.max_visual_tokens, profile.fps, profile.max_frames, profile.patch) == (10_240, 1.0, 180, 14)
        assert profile.threshold == pytest.approx(0.05), "grey levels: the paper's 0.1 on pixels normalised with std 0.5"


def test_what_the_stages_have_in_common(paper: TrainingConfig) -> None:
    for stage in paper.stages.values():
        assert (stage.seq_tokens, stage.step.samples, stage.epochs, stage.steps) == (16_384, 128, 1, None)
        assert (stage.warmup_ratio, stage.weight_decay, stage.schedule, stage.loss) == (0.03, 0, "cosine", "token")
        assert stage.pack_patches >= 40_960, "a full video of 180 frames"
    assert (paper.seed, paper.model.precision, paper.model.gradient_checkpointing) == (42, "bf16", True)
    assert deepspeed_json(paper.deepspeed)["zero_optimization"]["stage"] == 1


def test_shares_follow_the_papers_tables(paper: TrainingConfig) -> None:
    shares = {number: paper.stages[number].mixture.tasks or {} for number in (1, 2, 3, 4)}
    assert shares[1] == {"short_caption": 11.84, "ocr": 0.93, "document": 2.80}
    assert shares[2] == {"detailed_caption": 12.56, "ocr": 4.69, "document": 2.68, "chart": 0.04, "region": 1.00, "text": 6.25}
    assert (shares[3]["vqa"], shares[3]["video"], shares[3]["text"]) == (9.87, 2.92, 2.21)
    assert shares[4] == {"video": 3.03, "streaming": 0.036, "temporal_grounding": 0.21, "vqa": 0.88, "text": 1.56}


def test_the_7b_run_starts_from_the_encoder_that_the_2b_run_tuned() -> None:
    two, seven = (load_training_config(name) for name in PAPER)
    assert two.model.vision is not None
    assert "siglip-so400m-patch14-384" in two.model.vision
    assert two.model.llm is not None
    assert two.model.llm.endswith("Qwen2.5-1.5B-Instruct")
    assert seven.model.vision == f"runs/{two.name}/checkpoints/stage1/final"
    assert seven.model.llm is not None
    assert seven.model.llm.endswith("Qwen2.5-7B-Instruct")
    assert [s.model_dump(exclude={"step"}) for s in two.stages.values()] == [s.model_dump(exclude={"step"}) for s in seven.stages.values()]


@pytest.mark.parametrize("name", [*PAPER, "finetune", "tiny"])
def test_the_weighing_of_tokens_is_said_to_be_ours(name: str) -> None:
    line = next(line for line in shipped(name).splitlines() if line.startswith("    loss:"))
    assert "# ours: every labelled token" in line


@pytest.mark.parametrize("name", PAPER)
def test_the_cache_that_is_shown_is_one(name: str) -> None:
    (line,) = (line for line in shipped(name).splitlines() if line.startswith("# cache:"))
    assert CacheConfig.model_validate(yaml.safe_load(line.removeprefix("# "))["cache"]).bytes == 500_000_000_000


def test_the_page_on_stages_shows_every_key(tmp_path: Path) -> None:
    """And it is a config as it stands: what it says is what the code takes."""
    page = (Path(__file__).parents[2] / "docs" / "stages.md").read_text("utf-8")
    block = textwrap.dedent(page[page.index("    name: tiny\n") : page.index("\nThe parts are ")])
    (tmp_path / "shown.yaml").write_text(block, "utf-8")
    load_training_config(tmp_path / "shown.yaml")
    for key in (*TrainingConfig.model_fields, *StageConfig.model_fields):
        assert re.search(rf"\b{key}:", block), key


def shipped(name: str) -> str:
    return (resources.files("configs.training") / f"{name}.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", [*PAPER, "finetune"])
def test_costs_can_be_predicted_where_the_weights_are_not(name: str) -> None:
    config = load_training_config(name)
    assert config.model.sizes is not None
    assert model_flops(shape_of(config.model)).hardware == model_flops(named_shape(config.model.sizes)).hardware


def test_finetuning_adapts_the_language_model_and_trains_the_projector() -> None:
    config = load_training_config("finetune")
    assert list(config.stages) == [1]
    stage = config.stages[1]
    assert (config.model.preset, config.model.precision) == ("hf", "bf16")
    assert set(stage.rates) == {"projector", "llm"}, "the encoder stays as it was released"
    assert stage.adapters == {"llm": LoraConfig(rank=16, alpha=32, dropout=0.05)}
    released = load_training_config("videollama3-2b").stages[4]
    assert (stage.profile, stage.compress) == (released.profile, released.compress), "what the released model was trained with last"
    assert (stage.mixture.tasks, stage.mixture.sources) == (None, None)

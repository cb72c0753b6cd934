"""The training config: what the shipped files say, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.profile import load_profile
from training.config_text import load_training_config
from training.stages import deepspeed_json

MINIMAL = """\
name: mine
model: {preset: tiny}
stages:
  1:
    profile: tiny
    compress: false
    train: {llm: 1.0e-3}
    step: {packs: 2}
    seq_tokens: 256
    pack_patches: 256
"""


def _load(tmp_path: Path, text: str) -> object:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    return load_training_config(path)


def test_the_2b_config_says_what_the_report_says() -> None:
    config = load_training_config("videollama3-2b")
    assert config.stages[1].train == {"vision_encoder": 1e-5, "projector": 1e-3}
    for stage in (2, 3, 4):
        assert config.stages[stage].train == {"vision_encoder": 2e-6, "projector": 1e-5, "llm": 1e-5}
    assert [config.stages[k].compress for k in (1, 2, 3, 4)] == [False, False, True, True]
    merges = [load_profile(config.stages[k].profile, "0").image_merge for k in (1, 2, 3, 4)]
    assert merges == [1, 1, 1, 2]
    for stage in config.stages.values():
        assert (stage.seq_tokens, stage.warmup_ratio, stage.weight_decay, stage.epochs, stage.schedule) == (16384, 0.03, 0, 1, "cosine")
    assert (config.seed, config.model.precision, config.model.gradient_checkpointing) == (42, "bf16", True)


def test_the_tiny_config_has_four_stages_and_names_known_profiles() -> None:
    config = load_training_config("tiny")
    assert sorted(config.stages) == [1, 2, 3, 4]
    assert [load_profile(s.profile, "0").name for s in config.stages.values()] == ["tiny", "tiny", "tiny", "tiny_video"]
    assert "llm" in config.stages[1].train, "the tiny preset has no pretrained language model to freeze"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("step: {packs: 2}", "stp: {packs: 2}", ["mine.yaml:8", "stages.1.stp", "did you mean 'step'"]),
        (
            "model: {preset: tiny}",
            "model: {preset: tiny, gradient_checkpoint: true}",
            ["mine.yaml:2", "did you mean 'gradient_checkpointing'"],
        ),
        ("train: {llm: 1.0e-3}", "train: {lm: 1.0e-3}", ["mine.yaml:7", "stages.1.train.lm"]),
        ("train: {llm: 1.0e-3}", "train: {llm: -1}", ["mine.yaml:7", "greater than 0"]),
        ("train: {llm: 1.0e-3}", "train: {}", ["mine.yaml:7", "stages.1.train"]),
        ("seq_tokens: 256\n", "\n", ["stages.1.seq_tokens", "is required"]),
        ("compress: false", "compress: false\n    mixture: {tasks: {caption: 1}}", ["unknown task 'caption'", "did you mean"]),
        ("model: {preset: tiny}", "model: {preset: parts, vision: a}", ["mine.yaml:2", "preset parts needs `llm`"]),
        ("model: {preset: tiny}", "model: {path: a}", ["mine.yaml:2", "preset tiny has no `path`"]),
        ("model: {preset: tiny}", "model: {preset: hf, path: a, tiny: {hidden: 32}}", ["mine.yaml:2", "preset hf has no `tiny`"]),
        ("name: mine", "name: mine\ndevice_flops: 0", ["mine.yaml:2", "device_flops", "greater than 0"]),
        ("name: mine", "nam: mine", ["mine.yaml:1", "did you mean 'name'"]),
        ("compress: false", "compress: false\n    compress: true", ["mine.yaml:7", "compress is written twice"]),
        ("compress: false", "compress: false\n    epochs: 2\n    steps: 5", ["mine.yaml:7", "both epochs and steps"]),
        ("train: {llm: 1.0e-3}", "train: {llm: true}", ["mine.yaml:7", "stages.1.train.llm", "a number is wanted"]),
        ("train: {llm: 1.0e-3}", "train: {llm: {lr: yes}}", ["mine.yaml:7", "stages.1.train.llm.lr", "a number is wanted"]),
        ("compress: false", "compress: false\n    steps: on", ["mine.yaml:7", "stages.1.steps", "a number is wanted"]),
        ("  1:\n", "  yes:\n", ["a number is wanted"]),
        ("compress: false", "compress: false\n    betas: [0.9, 1.0]", ["mine.yaml:7", "betas", "less than 1"]),
        ("name: mine", "name: mine\nseed: -1", ["mine.yaml:2", "greater than or equal to 0"]),
        ("name: mine", "name: mine\nseed: 1_180_591_620_717_411_303_424", ["mine.yaml:2", "less than"]),
        ("{preset: tiny}", "{preset: tiny, tiny: {hidden: 63}}", ["mine.yaml:2", "hidden 63 is no multiple of heads 4"]),
        ("{preset: tiny}", "{preset: tiny, tiny: {heads: 4, kv_heads: 3}}", ["mine.yaml:2", "heads 4 is no multiple of kv_heads 3"]),
        ("seq_tokens: 256", "seq_tokens: 9_223_372_036_854_775_808", ["mine.yaml:9", "seq_tokens", "less than"]),
        ("step: {packs: 2}", "step: {packs: 1_000_000_000_000}", ["mine.yaml:8", "packs", "less than"]),
        ("step: {packs: 2}", "step: {samples: 1_000_000_000_000}", ["mine.yaml:8", "samples", "less than"]),
        ("stages:\n", "stages: &a\n  2: *a\n", ["mine.yaml", "an alias"]),
        ("name: mine", "name: " + "[" * 5_000 + "]" * 5_000, ["mine.yaml", "nested too deeply"]),
    ],
)
def test_a_wrong_config_is_told_file_line_key_and_the_mend(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    assert old in MINIMAL
    with pytest.raises(ConfigError) as error:
        _load(tmp_path, MINIMAL.replace(old, new))
    for piece in told:
        assert piece in str(error.value)


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: not UTF-8 text: .* at byte 6"):
        load_training_config(path)


@pytest.mark.parametrize("name", ["absent.yaml", "tiny.yaml", "folder.yaml", "x" * 300, "x" * 300 + ".yaml"])
def test_a_file_that_cannot_be_read_is_no_training_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="no training config") as error:
        load_training_config(name)
    assert ("ships with fovea: tiny" in str(error.value)) == (name == "tiny.yaml")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'tiny'.*videollama3-2b"):
        load_training_config("tinny")


def test_a_stage_digest_depends_on_results_only(tmp_path: Path) -> None:
    base = load_training_config("tiny")
    assert base.stage_digest(2) == base.model_copy(update={"workers": 7, "checkpoint_steps": 3, "device_flops": 1e12}).stage_digest(2)
    assert base.stage_digest(2) != base.model_copy(update={"seed": 43}).stage_digest(2)
    attn = base.model.model_copy(update={"attn": "sdpa", "gradient_checkpointing": True, "sizes": "videollama3-2b"})
    assert base.stage_digest(2) == base.model_copy(update={"model": attn}).stage_digest(2)
    stage3 = base.stages[3].model_copy(update={"clip": 0.5})
    changed = base.model_copy(update={"stages": {**base.stages, 3: stage3}})
    assert [changed.stage_digest(k) == base.stage_digest(k) for k in (1, 2, 3, 4)] == [True, True, False, False]


def test_zero_stages_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    assert deepspeed_json("zero1")["zero_optimization"]["stage"] == 1
    path = tmp_path / "zero4.json"
    path.write_text('{"zero_optimization": {"stage": 4}}')
    with pytest.raises(ConfigError, match="stage is 4"):
        deepspeed_json(str(path))
    with pytest.raises(ConfigError, match="no settings 'zero9'"):
        deepspeed_json("zero9")


@pytest.mark.parametrize("text", ["[1]", '{"zero_optimization": 3}', "\xff", "{"])
def test_settings_of_deepspeed_that_are_no_settings_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine\.json: .*JSON"):
        deepspeed_json(str(path))

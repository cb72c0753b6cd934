"""Sizes without weights: what config.json leaves out is what the libraries fill in, and no torch is needed to plan."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import Qwen2Config, SiglipVisionConfig
from transformers.models.video_llama_3 import VideoLlama3VisionConfig

from shards.errors import ConfigError
from tests.training import handmade
from tests.training.test_original import CONFIG
from training.cost import CostModel
from training.flops import model_flops
from training.model import build_tiny
from training.shapes import TextShape, VisionShape, named_shape, shape_of
from training.stages import ModelConfig


def test_defaults_are_those_of_the_config_classes() -> None:
    for kind in (SiglipVisionConfig(), VideoLlama3VisionConfig()):
        assert {name: getattr(kind, name) for name in asdict(VisionShape())} == asdict(VisionShape())
    text = {name: getattr(Qwen2Config(), name, None) for name in asdict(TextShape())}
    assert text == asdict(TextShape())


def test_the_shapes_of_the_paper() -> None:
    """FACTS: SigLIP-so400m-patch14 and Qwen2.5-1.5B or -7B. Parameters of the 2B as its cost model's defaults have them."""
    two, seven = named_shape("videollama3-2b"), named_shape("videollama3-7b")
    assert two.vision_config == seven.vision_config
    assert (two.vision_config.hidden_size, two.vision_config.num_hidden_layers, two.vision_config.patch_size) == (1152, 27, 14)
    assert (two.text_config.hidden_size, two.text_config.vocab_size, two.text_config.tie_word_embeddings) == (1536, 151_936, True)
    assert (seven.text_config.hidden_size, seven.text_config.vocab_size, seven.text_config.tie_word_embeddings) == (3584, 152_064, False)
    assert model_flops(two).hardware == CostModel()


def test_a_shape_comes_from_the_directories_else_from_its_name(tmp_path: Path) -> None:
    absent = ModelConfig(preset="parts", vision="nowhere/a", llm="nowhere/b")
    with pytest.raises(ConfigError, match=r"no config\.json in nowhere/a, nowhere/b.*videollama3-2b, videollama3-7b"):
        shape_of(absent)
    assert shape_of(absent.model_copy(update={"sizes": "videollama3-7b"})) == named_shape("videollama3-7b")
    with pytest.raises(ConfigError, match="did you mean 'videollama3-7b'"):
        shape_of(absent.model_copy(update={"sizes": "videolama3-7b"}))
    model = handmade.model()
    model.save_pretrained(tmp_path / "whole")
    whole = shape_of(ModelConfig(preset="hf", path=str(tmp_path / "whole"), sizes="videollama3-7b"))
    assert model_flops(whole).hardware == model_flops(model.config).hardware, "what lies there counts, not the name"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(CONFIG))
    theirs = shape_of(ModelConfig(preset="original", path=str(tmp_path / "theirs")))
    assert (theirs.vision_config.num_attention_heads, theirs.text_config.num_key_value_heads, theirs.text_config.vocab_size) == (2, 2, 64)
    mixed = shape_of(ModelConfig(preset="parts", vision=str(tmp_path / "whole"), llm=str(tmp_path / "theirs")))
    assert (mixed.vision_config, mixed.text_config) == (whole.vision_config, theirs.text_config)


def test_a_tiny_shape_is_that_of_the_tiny_model() -> None:
    model = build_tiny(99, handmade.SMALL, handmade.IDS, 0)
    shape = shape_of(ModelConfig(tiny=handmade.SMALL), tokens=99)
    assert model_flops(shape).hardware == model_flops(model.config).hardware
    assert shape.text_config.tie_word_embeddings


def test_shapes_need_no_torch() -> None:
    told = "import sys, training.shapes; training.shapes.named_shape('videollama3-2b'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0

"""The export: transformers alone loads it, gives the trained model's logits, writes our prompts and answers."""

from __future__ import annotations

import io
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel, VideoLlama3ForConditionalGeneration
from transformers.video_utils import VideoMetadata

from shards.chat import MediumTokens, encode_item
from shards.errors import ConfigError, InfrastructureError
from shards.items import Item, Message, Part
from shards.profile import Profile, load_profile
from shards.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer
from tests.training import handmade, small_dataset, test_original
from training.checkpoint import save_final
from training.engine import Ranks, start_ranks
from training.export import _save, export, processor
from training.launch import tokenizer_files
from training.model import build_model, build_tiny, special_ids
from training.stages import ModelConfig


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("export")
    train_tokenizer(["Which colour is it? red green blue user assistant Time 0.0s: What happens?"], folder / "words", 300)
    tokenizer = load_tokenizer(folder / "words")
    profile = load_profile("tiny_video", tokenizer_digest(folder / "words"))
    start_ranks()
    model = build_tiny(len(tokenizer), handmade.SMALL, special_ids(tokenizer), 3)
    facts = {"stage": 1, "stage_digest": "d", "profile": asdict(profile), "compress": True}
    final = save_final(model, folder, 1, facts, Ranks(0, 1), beside=tokenizer_files(folder / "words"))
    out = export(final, folder / "out")
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, profile=profile, final=final, out=out)


def _logits(model: nn.Module, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def _ask(medium: str, question: str) -> Item:
    user = Message("user", (Part(medium, media=0), Part("text", text=question)))  # type: ignore[arg-type]
    return Item("vqa" if medium == "image" else "video", 0, (user, Message("assistant", (Part("text", text=""),))))


def _prompt(item: Item, tokenizer: Any, media: MediumTokens) -> list[int]:
    """Our tokens up to where the assistant begins to speak."""
    ids = encode_item(item, tokenizer, [media]).input_ids.tolist()
    return ids[: -1 - ids[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))]


def test_the_export_has_the_trained_models_logits(exported: SimpleNamespace) -> None:
    loaded = VideoLlama3ForConditionalGeneration.from_pretrained(exported.out, local_files_only=True).eval()
    mine, theirs = exported.model.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(_logits(loaded, input_ids=ids), _logits(exported.model, input_ids=ids))


def test_a_picture_is_asked_about_and_answered_by_transformers_alone(exported: SimpleNamespace) -> None:
    script = f"""
import sys
from PIL import Image
from transformers import AutoProcessor, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel, VideoLlama3ForConditionalGeneration
processor = AutoProcessor.from_pretrained({str(exported.out)!r}, local_files_only=True)
model = VideoLlama3ForConditionalGeneration.from_pretrained({str(exported.out)!r}, local_files_only=True)
content = [{{"type": "image"}}, {{"type": "text", "text": "Which colour is it?"}}]
prompt = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
inputs = processor(text=[prompt], images=[Image.new("RGB", (84, 70), "red")], return_tensors="pt")
out = model.generate(**inputs, do_sample=False, min_new_tokens=5, max_new_tokens=5)
print("NEW", out.shape[1] - inputs["input_ids"].shape[1], repr(processor.decode(out[0, -5:])))
print("OURS", [m for m in sys.modules if m.split(".")[0] in ("training", "shards", "deepspeed")])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=exported.out, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NEW 5 " in done.stdout
    assert "OURS []" in done.stdout


def test_the_processor_writes_the_prompt_that_training_saw(exported: SimpleNamespace) -> None:
    processor = AutoProcessor.from_pretrained(exported.out, local_files_only=True)
    profile: Profile = exported.profile
    image = Image.open(io.BytesIO(small_dataset.picture("red", "circle", 1)))
    content = [{"type": "image"}, {"type": "text", "text": "Which colour is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    kept = int(inputs["image_grid_thw"].prod()) // profile.image_merge**2
    assert inputs["image_merge_sizes"].tolist() == [profile.image_merge]
    ours = _prompt(_ask("image", "Which colour is it?"), exported.tokenizer, MediumTokens("image", [kept]))
    assert inputs["input_ids"][0].tolist() == ours


def test_a_still_clip_is_compressed_as_in_training(exported: SimpleNamespace) -> None:
    processor = AutoProcessor.from_pretrained(exported.out, local_files_only=True)
    content = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    frames = np.full((4, 56, 84, 3), 90, dtype=np.uint8)
    metadata = VideoMetadata(total_num_frames=4, fps=2.0, duration=2.0, frames_indices=list(range(4)))
    inputs = processor(text=[prompt], videos=[frames], video_metadata=[metadata], return_tensors="pt")
    mask = inputs["video_compression_mask"].view(4, -1).sum(1).tolist()
    assert mask == [6, 1, 1, 1]
    ours = _prompt(_ask("video", "What happens?"), exported.tokenizer, MediumTokens("video", mask, [0.0, 0.5, 1.0, 1.5]))
    assert inputs["input_ids"][0].tolist() == ours
    assert _logits(exported.model, **inputs).shape[1] == len(ours)


@pytest.mark.parametrize("preset", ["parts", "original", "hf"])
def test_every_preset_is_exported_as_it_was_built(exported: SimpleNamespace, tmp_path: Path, preset: str) -> None:
    tokenizer, vision = exported.tokenizer, {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**vision, patch_size=14, image_size=28)).save_pretrained(tmp_path / "vision")
    small = test_original.small(tied=True)
    small.resize_token_embeddings(len(tokenizer))
    Qwen2ForCausalLM(small.config.text_config).save_pretrained(tmp_path / "llm")
    test_original.write_original(tmp_path / "original", small, True, vocab_size=len(tokenizer))
    paths = {"parts": {"vision": str(tmp_path / "vision"), "llm": str(tmp_path / "llm")}, "original": {"path": str(tmp_path / "original")}}
    built = build_model(ModelConfig(preset=preset, **paths.get(preset, {"path": str(exported.final)})), tokenizer, 0)
    facts = {"stage": 1, "stage_digest": "d", "profile": asdict(exported.profile), "compress": True}
    final = save_final(built, tmp_path / "run", 1, facts, Ranks(0, 1), beside=tokenizer_files(exported.final))
    out = export(final, tmp_path / "out")
    loaded, told = VideoLlama3ForConditionalGeneration.from_pretrained(out, local_files_only=True, output_loading_info=True)
    assert not any(told.values())
    processor = AutoProcessor.from_pretrained(out, local_files_only=True)
    inputs = processor(text=["<|image_pad|>\nred"], images=[Image.new("RGB", (84, 70), "red")], return_tensors="pt")
    assert torch.equal(_logits(loaded.eval(), **inputs), _logits(built.eval(), **inputs))
    ends = loaded.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ([ends] if isinstance(ends, int) else ends), "where training ends a turn"


def test_what_is_no_finished_stage_or_in_the_way_is_refused(exported: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no finished stage"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        export(exported.final, exported.out)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file"):
        export(exported.final, tmp_path / "file")


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """The kernel breaks off a file at `most` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_leaves_nothing_and_says_so(exported: SimpleNamespace, tmp_path: Path) -> None:
    with small_files(10_000), pytest.raises(InfrastructureError, match=r"out could not be written: .*GB free.*Make room"):
        export(exported.final, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    profile = asdict(exported.profile)
    with small_files(1_000), pytest.raises(OSError, match="large"):  # tokenizers' own kind of error is none
        _save(processor(exported.final, profile, compress=True), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match=r"out could not be written: Not a directory"):
        export(exported.final, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.safetensors", None, r"no model\.safetensors"),
        ("model.safetensors", 5_000, r"model\.safetensors: cannot be read"),
        ("config.json", None, r"no finished stage .*config\.json"),
        ("fovea.json", 3, r"fovea\.json: "),
        ("fovea.json", b"{}", r"does not say profile"),
        ("tokenizer.json", None, "no tokenizer"),
    ],
)
def test_half_a_stage_is_not_exported(exported: SimpleNamespace, tmp_path: Path, name: str, content: int | bytes | None, told: str) -> None:
    final = Path(shutil.copytree(exported.final, tmp_path / "final"))
    if content is None:
        (final / name).unlink()
    else:
        (final / name).write_bytes(content if isinstance(content, bytes) else (final / name).read_bytes()[:content])
    with pytest.raises((ConfigError, InfrastructureError), match=told):
        export(final, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_folder_may_be_named_by_a_dot(exported: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export(exported.final, ".") == tmp_path / "here"
    assert (tmp_path / "here" / "model.safetensors").is_file()

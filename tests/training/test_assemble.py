"""Models from checkpoints: every parameter has a key it comes from, and a key that is missing, left over or of another shape is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig, SiglipVisionModel

from shards.errors import ConfigError, InfrastructureError
from tests.training import handmade
from tests.training.handmade import item, packed
from training.assemble import from_hf, from_parts
from training.model import parts
from training.pack_loss import PackLoss
from training.tensors import Source, fill

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SiglipVisionConfig(**SIZES, patch_size=14, image_size=28)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """siglip (its vision half), siglip-whole, qwen (untied), qwen-tied, whole (a VideoLLaMA3)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    SiglipVisionModel(VISION).save_pretrained(folder / "siglip")
    text = SiglipTextConfig(**SIZES, vocab_size=50, bos_token_id=1, eos_token_id=2)
    SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)).save_pretrained(folder / "siglip-whole")
    for name, tied in (("qwen", False), ("qwen-tied", True)):
        language = Qwen2ForCausalLM(Qwen2Config(**SIZES, vocab_size=64, num_key_value_heads=2, tie_word_embeddings=tied))
        language.save_pretrained(folder / name, max_shard_size="30KB")
    handmade.model(7).save_pretrained(folder / "whole")
    assert (folder / "qwen" / "model.safetensors.index.json").is_file(), "several files"
    return folder


@pytest.mark.parametrize(("vision", "llm"), [("siglip", "qwen-tied"), ("siglip-whole", "qwen")])
def test_a_model_is_joined_from_siglip_and_qwen(made: Path, vision: str, llm: str) -> None:
    model = from_parts(made / vision, made / llm, handmade.IDS, 0)
    language = Qwen2ForCausalLM.from_pretrained(made / llm)
    text = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=text, use_cache=False).logits, language(input_ids=text, use_cache=False).logits)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == (llm == "qwen-tied")
    saved = SiglipVisionModel.from_pretrained(made / vision).state_dict()
    for name, value in model.model.vision_model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    loss, _ = PackLoss(model)(packed([item("image", 1), item("video", 2)]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in parts(model)["vision_encoder"])


def test_the_projector_is_new_and_depends_on_the_seed_alone(made: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (dict(parts(from_parts(made / "siglip", made / "qwen", handmade.IDS, seed))["projector"]) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.items():
        assert torch.equal(value, again[name])
        if value.ndim == 2:
            assert not torch.equal(value, other[name])
            assert value.std().item() == pytest.approx(0.02, rel=0.2)
        else:
            assert not value.any()
    half = from_parts(made / "siglip", made / "qwen", handmade.IDS, 1, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}, "whatever dtype a checkpoint was saved in"
    assert all(torch.equal(p, one[name].to(torch.bfloat16)) for name, p in parts(half)["projector"])


def test_the_encoder_of_a_whole_model_is_taken(made: Path) -> None:
    model = from_parts(made / "whole", made / "qwen", handmade.IDS, 0)
    tuned = dict(parts(handmade.model(7))["vision_encoder"])
    found = dict(parts(model)["vision_encoder"])
    assert found.keys() == tuned.keys()
    assert all(torch.equal(found[name], tuned[name]) for name in tuned)


def test_a_whole_model_comes_back_as_it_was(made: Path) -> None:
    model, made_of = from_hf(made / "whole"), handmade.model(7)
    pack = packed([item("image", 1), item("video", 2), item("text", 3)])
    assert torch.equal(PackLoss(model)(pack)[1], PackLoss(made_of.eval())(pack)[1])
    assert model.config.to_dict().keys() >= {"image_token_id", "video_token_id"}
    assert model.generation_config.eos_token_id == 62


def _changed(made: Path, tmp_path: Path, name: str, change: str) -> Path:
    """A copy of a checkpoint in one file, with one thing wrong."""
    folder = tmp_path / name
    shutil.copytree(made / name, folder)
    tensors = {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    key = next(k for k in sorted(tensors) if k.endswith("layers.1.mlp.fc1.weight" if name != "qwen" else "layers.1.mlp.up_proj.weight"))
    if change == "missing":
        del tensors[key]
    elif change == "left over":
        tensors[key.replace("layers.1", "layers.2")] = tensors[key].clone()
    elif change == "shapes":
        tensors[key] = tensors[key].T.contiguous()
    elif change == "not floating point":
        tensors[key] = tensors[key].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("change", ["missing", "left over", "shapes", "not floating point"])
@pytest.mark.parametrize("name", ["siglip", "qwen", "whole"])
def test_what_does_not_fit_is_named_and_nothing_is_random(made: Path, tmp_path: Path, name: str, change: str) -> None:
    folder = _changed(made, tmp_path, name, change)
    given = {"siglip": made / "siglip", "qwen": made / "qwen", name: folder}
    with pytest.raises(ConfigError, match=rf"{change} \(1\): .*layers\.[12]\.mlp") as error:
        _ = from_hf(folder) if name == "whole" else from_parts(given["siglip"], given["qwen"], handmade.IDS, 0)
    assert str(folder) in str(error.value)


def test_a_checkpoint_that_was_not_changed_fits(made: Path, tmp_path: Path) -> None:
    assert from_hf(_changed(made, tmp_path, "whole", "nothing")) is not None


def test_many_keys_are_counted_and_some_are_named(made: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing \(\d+\): .* and \d+ more"):
        fill(handmade.model(), [Source(made / "siglip", lambda key: "model.vision_model." + key)])


def test_a_tied_head_that_differs_from_its_embeddings_is_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(made / "whole", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert from_hf(folder).lm_head.weight.shape[0] == 64
    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head\.weight differs from model\.language_model\.embed_tokens\.weight"):
        from_hf(folder)


def test_files_that_are_not_there_or_torn_or_pickled_are_told_with_the_mend(made: Path, tmp_path: Path) -> None:
    qwen = tmp_path / "qwen"
    shutil.copytree(made / "qwen", qwen)
    gone = sorted(qwen.glob("*.safetensors"))[0]
    whole = gone.read_bytes()
    gone.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InfrastructureError, match="cannot be read"):
        from_parts(made / "siglip", qwen, handmade.IDS, 0)
    gone.unlink()
    with pytest.raises(InfrastructureError, match=gone.name):
        from_parts(made / "siglip", qwen, handmade.IDS, 0)
    for path in qwen.glob("model*"):
        path.unlink()
    with pytest.raises(InfrastructureError, match=r"no model\.safetensors"):
        from_parts(made / "siglip", qwen, handmade.IDS, 0)
    (qwen / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ConfigError, match=r"only as pickle \(pytorch_model\.bin\).*save_pretrained"):
        from_parts(made / "siglip", qwen, handmade.IDS, 0)
    (qwen / "config.json").unlink()
    with pytest.raises(InfrastructureError, match=r"no config\.json"):
        from_parts(made / "siglip", qwen, handmade.IDS, 0)


def test_other_architectures_and_a_small_vocabulary_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no room for video_token_id"):
        from_parts(made / "siglip", made / "qwen", {**handmade.IDS, "video_token_id": 64}, 0)
    with pytest.raises(ConfigError, match="type 'qwen2' has no encoder"):
        from_parts(made / "qwen", made / "qwen", handmade.IDS, 0)
    with pytest.raises(ConfigError, match="type 'siglip'; wanted is qwen2"):
        from_parts(made / "siglip-whole", made / "siglip-whole", handmade.IDS, 0)
    with pytest.raises(ConfigError, match=r"type 'qwen2'; wanted is video_llama_3$"):
        from_hf(made / "qwen")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videollama3_qwen2"}))
    with pytest.raises(ConfigError, match="set preset: original"):
        from_hf(tmp_path)

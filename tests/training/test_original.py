"""The authors' layout: a small checkpoint written with their key names and their config.json loads as transformers' model, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from shards.errors import ConfigError
from shards.tokenizer import load_tokenizer, train_tokenizer
from tests.training import handmade
from tests.training.handmade import item, packed
from training.assemble import from_hf, from_original, from_parts
from training.model import build_model, parts, special_ids
from training.pack_loss import PackLoss
from training.stages import ModelConfig

# The released 2B's config.json, with small numbers.
CONFIG = {
    "architectures": ["Videollama3Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_videollama3.Videollama3Qwen2Config"},
    "bos_token_id": 1,
    "eos_token_id": 62,
    "hidden_act": "silu",
    "hidden_size": 32,
    "image_token_index": 63,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "mm_projector_type": "mlp2x_gelu",
    "model_type": "videollama3_qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": False,
    "use_sliding_window": False,
    "use_token_compression": True,
    "vision_encoder": None,
    "vision_encoder_config": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "model_type": "videollama3_vision_encoder",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 14,
    },
    "vocab_size": 64,
}
ENCODER_LAYER = [
    f"{place}.{kind}"
    for place in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    )
    for kind in ("weight", "bias")
]
ENCODER = [
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.bias",
    *(f"encoder.layers.{n}.{name}" for n in range(2) for name in ENCODER_LAYER),
    "post_layernorm.weight",
    "post_layernorm.bias",
]


def write_original(folder: Path, model: torch.nn.Module, tied: bool, wrapped: bool = False, **changes: object) -> Path:
    """The weights of a whole model under the authors' names. `wrapped`: as their trainer writes them, the encoder one level deeper."""
    folder.mkdir(parents=True)
    theirs = {}
    vision, projector = model.model.vision_model.state_dict(), model.model.projector.state_dict()
    for name in ENCODER:
        theirs[f"model.vision_encoder.{'vision_encoder.' if wrapped else ''}{name}"] = vision[name]
    for name in ("readout.0.weight", "readout.0.bias", "readout.2.weight", "readout.2.bias"):
        theirs[f"model.mm_projector.{name}"] = projector[name]
    language = Qwen2ForCausalLM(model.config.text_config)  # its own names are the authors': they derive from it
    language.model.load_state_dict(model.model.language_model.state_dict())
    language.lm_head.load_state_dict(model.lm_head.state_dict())
    theirs |= {k: v for k, v in language.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file({name: value.clone() for name, value in theirs.items()}, folder / "model.safetensors")
    values = {**CONFIG, "tie_word_embeddings": tied, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
    return folder


def small(tied: bool) -> torch.nn.Module:
    """A whole model in transformers' layout with the numbers of CONFIG."""
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration
    from transformers.models.video_llama_3 import VideoLlama3VisionConfig

    text = {k: v for k, v in CONFIG.items() if k in Qwen2Config().to_dict() and k not in ("model_type", "architectures")}
    config = VideoLlama3Config(
        text_config=Qwen2Config(**text, rope_theta=1000000.0, tie_word_embeddings=tied),
        vision_config=VideoLlama3VisionConfig(**{k: v for k, v in CONFIG["vision_encoder_config"].items() if k != "model_type"}),
        image_token_id=60,
        video_token_id=61,
        tie_word_embeddings=tied,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(3)
    return VideoLlama3ForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("tied", "wrapped"), [(True, False), (False, True)])
def test_an_original_checkpoint_computes_what_transformers_model_does(tmp_path: Path, tied: bool, wrapped: bool) -> None:
    reference = small(tied)
    model = from_original(write_original(tmp_path / "theirs", reference, tied, wrapped), handmade.IDS)
    pack = packed([item("image", 1), item("video", 2), item("text", 3)])
    ours, theirs = (m(**pack.model_inputs(), use_cache=False).logits for m in (model, reference))
    assert torch.equal(ours, theirs)
    assert torch.equal(PackLoss(model)(pack)[1], PackLoss(reference)(pack)[1])
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == tied
    assert model.config.text_config.rope_parameters["rope_theta"] == 1_000_000.0
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(from_hf(tmp_path / "saved")(**pack.model_inputs(), use_cache=False).logits, theirs)


def test_the_encoder_of_an_original_checkpoint_is_taken_and_one_released_alone_too(tmp_path: Path) -> None:
    reference = small(tied=True)
    write_original(tmp_path / "theirs", reference, tied=True)
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file({name: value.clone() for name, value in reference.model.vision_model.state_dict().items()}, alone / "model.safetensors")
    (alone / "config.json").write_text(json.dumps(CONFIG["vision_encoder_config"]))
    Qwen2ForCausalLM(reference.config.text_config).save_pretrained(tmp_path / "qwen")
    tuned = dict(parts(reference)["vision_encoder"])
    for folder in ("theirs", "alone"):
        found = dict(parts(from_parts(tmp_path / folder, tmp_path / "qwen", handmade.IDS, 0))["vision_encoder"])
        assert found.keys() == tuned.keys()
        assert all(torch.equal(found[name], tuned[name]) for name in tuned), folder


def test_an_encoder_that_is_only_named_is_read_where_it_lies_else_refused(tmp_path: Path) -> None:
    reference = small(tied=True)
    bare = {"vision_encoder_config": "absent", "vision_encoder": "DAMO-NLP-SG/SigLIP-NaViT"}
    folder = write_original(tmp_path / "theirs", reference, True, True, **bare)
    with pytest.raises(ConfigError, match=r"names its encoder only as 'DAMO-NLP-SG/SigLIP-NaViT'.*vision_encoder_config"):
        from_original(folder, handmade.IDS)
    (folder / "DAMO-NLP-SG" / "SigLIP-NaViT").mkdir(parents=True)
    (folder / "DAMO-NLP-SG" / "SigLIP-NaViT" / "config.json").write_text(json.dumps(CONFIG["vision_encoder_config"]))
    assert from_original(folder, handmade.IDS).config.vision_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "qwen2"}, "preset original wants videollama3_qwen2"),
        ({"mm_projector_type": "linear"}, "its projector is 'linear'"),
        ({"num_hidden_layers": 3}, r"missing \(12\): model\.language_model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"left over \(12\): .*model\.layers\.1\."),
        ({"hidden_size": 16}, "shapes"),
    ],
)
def test_an_original_checkpoint_that_does_not_fit_is_told(tmp_path: Path, change: dict[str, object], told: str) -> None:
    folder = write_original(tmp_path / "theirs", small(tied=True), True, **change)
    with pytest.raises(ConfigError, match=told):
        from_original(folder, handmade.IDS)


def test_the_preset_takes_the_ids_of_the_tokenizer_and_refuses_one_that_is_too_large(tmp_path: Path) -> None:
    train_tokenizer(["red green blue"], tmp_path / "words", 300)
    tokenizer = load_tokenizer(tmp_path / "words")
    ids, reference = special_ids(tokenizer), small(tied=True)
    reference.resize_token_embeddings(len(tokenizer) + 3)
    folder = write_original(tmp_path / "theirs", reference, True, vocab_size=len(tokenizer) + 3)
    model = build_model(ModelConfig(preset="original", path=str(folder)), tokenizer, 0)
    assert (model.config.image_token_id, model.config.video_token_id) == (ids["image_token_id"], ids["video_token_id"])
    short = write_original(tmp_path / "short", small(tied=True), True)
    with pytest.raises(ConfigError, match="its vocabulary has 64 tokens, the tokenizer"):
        build_model(ModelConfig(preset="original", path=str(short)), tokenizer, 0)

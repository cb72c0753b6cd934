"""Small models of the families that people caption with, from random numbers: real processors, real generation, no meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.tokenizer import train_tokenizer

WORDS = ["Describe this picture in one sentence.", "What is it? A photo of a dog on grass.", "Question: what is this? Answer:"]
_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "bos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_vl(folder: Path) -> Path:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer(folder, {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"})
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    text = {**_TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
    model = _seeded(lambda: Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids)))
    pictures = Qwen2VLImageProcessor(size={"shortest_edge": 784 * 4, "longest_edge": 784 * 16})
    template = _TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return _saved(folder, model, Qwen2VLProcessor(pictures, tokenizer, Qwen2VLVideoProcessor(), chat_template=template))


def internvl(folder: Path) -> Path:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = _tokenizer(folder, names)
    text = {**_TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": [56, 56],
        "patch_size": [14, 14],
    }  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=image, image_seq_length=4)
    model = _seeded(lambda: InternVLForConditionalGeneration(config))
    size = {"height": 56, "width": 56}
    parts = (GotOcr2ImageProcessor(size=size, max_patches=2), tokenizer, InternVLVideoProcessor(size=size))
    template = _TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n")
    return _saved(folder, model, InternVLProcessor(*parts, image_seq_length=4, chat_template=template))


def blip2(folder: Path) -> Path:
    """As Salesforce/blip2-opt-2.7b: a decoder after a Q-former, no chat template."""

    tokenizer = _tokenizer(folder, {"image_token": "<image>"})
    text = {
        "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "init_std": 0.3,
        "num_attention_heads": 2, "word_embed_proj_dim": 32, "max_position_embeddings": 256, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"), "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return _blip2(folder, tokenizer, text)


def blip2_t5(folder: Path) -> Path:
    """As Salesforce/blip2-flan-t5-xl: an encoder and a decoder after the Q-former."""
    tokenizer = _tokenizer(folder, {"image_token": "<image>"})
    text = {
        "model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2,
        "decoder_start_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return _blip2(folder, tokenizer, text)


FAMILIES: dict[str, Callable[[Path], Path]] = {"qwen2_vl": qwen2_vl, "internvl": internvl, "blip2": blip2, "blip2_t5": blip2_t5}


def _blip2(folder: Path, tokenizer: Any, text: dict[str, Any]) -> Path:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    config = Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14},
        qformer_config={**small, "encoder_hidden_size": 32, "vocab_size": len(tokenizer)},
        text_config=text,
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.3,
    )
    model = _seeded(lambda: Blip2ForConditionalGeneration(config))
    return _saved(folder, model, Blip2Processor(BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer, num_query_tokens=3))


def _tokenizer(folder: Path, names: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(WORDS, folder, 290)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=names)
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    return tokenizer


def _seeded(make: Callable[[], Any]) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make()


def _saved(folder: Path, model: Any, processor: Any) -> Path:
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

"""The model: transformers' VideoLlama3, small or released; its parts, their freezing, and the loss on labelled rows of a pack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shards.errors import ConfigError
from training.adapters import learning, part_of
from training.assemble import from_hf, from_original, from_parts
from training.stages import PART_NAMES, ModelConfig, TinyShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> nn.Module:
    """The model that the first stage starts from, in the precision of `config`: tiny from random numbers, joined from SigLIP and Qwen2.5,
    or a whole VideoLLaMA3 in either layout.

    Raises ConfigError where a parameter would come from nowhere, and for a tokenizer that is not the model's: placeholders missing, of
    other ids, more tokens than the vocabulary has, or a token that the checkpoint's own tokenizer calls otherwise.
    """
    ids = special_ids(tokenizer)
    if config.preset == "tiny":
        return cast_weights(build_tiny(len(tokenizer), config.tiny, ids, seed), config.precision)
    folder = Path(str(config.llm if config.preset == "parts" else config.path))
    dtype = DTYPES[config.precision]
    if config.preset == "parts":
        model: Any = from_parts(Path(str(config.vision)), folder, ids, seed, dtype)
    elif config.preset == "original":
        model = from_original(folder, ids, dtype)
    else:
        model = from_hf(folder, dtype)
    _refuse_other_ids(str(folder), model.config, ids, len(tokenizer))
    _refuse_other_tokenizer(folder, tokenizer)
    _end_at(model, ids["eos_token_id"])
    return model


def cast_weights(model: nn.Module, precision: str) -> nn.Module:
    """`model` with its parameters in `precision` (fp32 or bf16). Buffers stay: rotary frequencies rounded to bfloat16 turn position 1,000
    by more than a radian, and whoever loads the finished weights would compute with the exact ones."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    return model


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids of the placeholders and of the end of a turn. Raises ConfigError where the tokenizer lacks one."""
    names = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN, "eos_token_id": "<|im_end|>"}
    known = tokenizer.get_vocab()
    missing = [token for token in names.values() if token not in known]
    if missing:
        raise ConfigError(f"the tokenizer has no {', '.join(missing)}; use Qwen2.5's, or one that has its special tokens")
    return {key: int(known[token]) for key, token in names.items()}


def build_tiny(tokenizer_len: int, shape: TinyShape, ids: Mapping[str, int], seed: int) -> nn.Module:
    """A VideoLlama3ForConditionalGeneration small enough for a CPU, from random numbers that depend on `seed` alone; float32, sdpa.

    Weights are drawn with standard deviation `shape.init_range`: with 0.06 a model of 0.3 M parameters learns to name digits, with the
    usual 0.02 it stayed at chance. Embeddings are tied: at this size an untied lm_head would be most of the model.
    """
    from transformers import Qwen2Config, VideoLlama3Config, VideoLlama3ForConditionalGeneration
    from transformers.models.video_llama_3 import VideoLlama3VisionConfig

    text = Qwen2Config(
        vocab_size=tokenizer_len,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 4,
        num_hidden_layers=shape.llm_layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        initializer_range=shape.init_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids["eos_token_id"],
        pad_token_id=None,
    )
    vision = VideoLlama3VisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_hidden * 4,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        patch_size=shape.patch,
        initializer_range=shape.init_range,
    )
    config = VideoLlama3Config(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
        tie_word_embeddings=True,
        initializer_range=shape.init_range,
    )
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlama3ForConditionalGeneration(config)
    return model.float()


def _end_at(model: Any, token: int) -> None:
    """Training teaches to end a turn with `token`: generation must stop there, also where the checkpoint (a base model) names another."""
    settings = model.generation_config
    ends = settings.eos_token_id
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if token not in known:
        settings.eos_token_id = [token, *known]


def _refuse_other_ids(path: str, config: Any, ids: Mapping[str, int], tokens: int) -> None:
    mend = "give the tokenizer the model was trained with"
    for name in ("image_token_id", "video_token_id"):
        if getattr(config, name) != ids[name]:
            raise ConfigError(f"{path}: its {name} is {getattr(config, name)}, the tokenizer's {ids[name]}; {mend}")
    if config.text_config.vocab_size < tokens:
        raise ConfigError(f"{path}: its vocabulary has {config.text_config.vocab_size} tokens, the tokenizer {tokens}; {mend}")


def _refuse_other_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer beside a checkpoint, where there is one, must call every token that both have by the same id."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    own = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    names = {number: token for token, number in own.items()}
    other = [
        (token, number)
        for token, number in tokenizer.get_vocab().items()
        if names.get(number, token) != token or own.get(token, number) != number
    ]
    if other:
        token, number = min(other, key=lambda entry: entry[1])
        raise ConfigError(
            f"{folder}: its own tokenizer differs from the one given in {len(other)} tokens (id {number} is {token!r} in the one given, "
            f"{names.get(number)!r} in its own); give the tokenizer the model was trained with"
        )


def parts(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every parameter once, with its name, under vision_encoder, projector or llm. Tied parameters appear under their first name."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in PART_NAMES}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if part is None:
            raise ConfigError(f"parameter {name} belongs to no known part of the model; parts are {', '.join(PART_NAMES)}")
        found[part].append((name, parameter))
    return found


def freeze(model: nn.Module, trained: Iterable[str]) -> None:
    """Only the named parts get gradients; of a part that has adapters, only those."""
    chosen = set(trained)
    for part, members in parts(model).items():
        learn = {id(parameter) for _, parameter in learning(members)} if part in chosen else set()
        for _, parameter in members:
            parameter.requires_grad_(id(parameter) in learn)


def parameter_groups(model: nn.Module, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: a part each (of one that has adapters, those alone), peak rate under `lr` and `peak`; vectors are not decayed.
    No group is empty."""
    groups: list[dict[str, Any]] = []
    for part, members in parts(model).items():
        if part not in rates:
            continue
        learn = learning(members)
        matrices = [p for _, p in learn if p.ndim >= 2 or weight_decay == 0]
        vectors = [p for _, p in learn if p.ndim < 2 and weight_decay != 0]
        for params, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": rates[part], "peak": rates[part], "weight_decay": decay, "part": part})
    return groups

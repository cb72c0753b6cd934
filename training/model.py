"""The model: transformers' VideoLlama3, small or released; its parts, their freezing, and the loss on labelled rows of a pack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from shards.errors import ConfigError, InfrastructureError
from training.assemble import from_parts
from training.stages import PART_NAMES, ModelConfig, TinyShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.collate import PackBatch

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
LOSS_ROWS = 1024  # labelled rows whose logits exist at once: at 151,665 tokens of vocabulary 0.6 GB in fp32
_PREFIXES = {
    "model.vision_model.": "vision_encoder",
    "model.projector.": "projector",
    "model.language_model.": "llm",
    "lm_head.": "llm",  # tied to the embeddings or not, it belongs to the language model
}


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> nn.Module:
    """The model that stage 1 starts from, float32: tiny from random numbers, joined from SigLIP and Qwen2.5, or a whole VideoLLaMA3."""
    if config.preset == "tiny":
        return build_tiny(len(tokenizer), config.tiny, special_ids(tokenizer), seed)
    if config.preset == "parts":
        return from_parts(Path(str(config.vision)), Path(str(config.llm)), special_ids(tokenizer), seed)
    model: Any = from_hf(Path(str(config.path)))
    _refuse_other_ids(str(config.path), model.config, special_ids(tokenizer), len(tokenizer))
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


def from_hf(path: Path) -> nn.Module:
    """A checkpoint in Hugging Face layout: a released VideoLLaMA3, the end of a stage, or an export. Never touches the network."""
    from transformers import VideoLlama3ForConditionalGeneration

    if not (path / "config.json").is_file():
        raise InfrastructureError(f"no model at {path}: there is no config.json; download the checkpoint and set model.path")
    return VideoLlama3ForConditionalGeneration.from_pretrained(
        path, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32, use_safetensors=True
    )


def _refuse_other_ids(path: str, config: Any, ids: Mapping[str, int], tokens: int) -> None:
    mend = "give the tokenizer the model was trained with"
    for name in ("image_token_id", "video_token_id"):
        if getattr(config, name) != ids[name]:
            raise ConfigError(f"{path}: its {name} is {getattr(config, name)}, the tokenizer's {ids[name]}; {mend}")
    if config.text_config.vocab_size < tokens:
        raise ConfigError(f"{path}: its vocabulary has {config.text_config.vocab_size} tokens, the tokenizer {tokens}; {mend}")


def parts(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every parameter once, with its name, under vision_encoder, projector or llm. Tied parameters appear under their first name."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in PART_NAMES}
    for name, parameter in model.named_parameters():
        part = next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), None)
        if part is None:
            raise ConfigError(f"parameter {name} belongs to no known part of the model; parts are {', '.join(PART_NAMES)}")
        found[part].append((name, parameter))
    return found


def freeze(model: nn.Module, trained: Iterable[str]) -> None:
    """Only the named parts get gradients."""
    chosen = set(trained)
    for part, members in parts(model).items():
        for _, parameter in members:
            parameter.requires_grad_(part in chosen)


def parameter_groups(model: nn.Module, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: a part each, peak rate under `lr` and `peak`; vectors are not decayed. No group is empty."""
    groups: list[dict[str, Any]] = []
    for part, members in parts(model).items():
        if part not in rates:
            continue
        matrices = [p for _, p in members if p.ndim >= 2 or weight_decay == 0]
        vectors = [p for _, p in members if p.ndim < 2 and weight_decay != 0]
        for params, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"params": params, "lr": rates[part], "peak": rates[part], "weight_decay": decay, "part": part})
    return groups


class PackLoss(nn.Module):
    """The model with the loss of a pack on top: what the optimizer's engine runs. `rows` bounds how many rows of logits exist at once."""

    def __init__(self, model: nn.Module, rows: int = LOSS_ROWS) -> None:
        super().__init__()
        self.model = model
        self.rows = rows

    def forward(self, batch: PackBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed cross entropy, float32 scalar with gradient; the same for each labelled token, float32 [labelled], detached)."""
        model: Any = self.model
        first = next(model.parameters())
        inputs = {name: value.to(first.device) for name, value in batch.model_inputs().items()}
        for name in inputs.keys() & {"pixel_values", "pixel_values_videos"}:
            inputs[name] = inputs[name].to(first.dtype)
        # An attention mask, even of ones, or a cache would let the items of a pack see each other.
        hidden = model.model(**inputs, use_cache=False).last_hidden_state[0, :-1]
        targets = batch.labels[0, 1:].to(hidden.device)
        labelled = targets != -100
        hidden, targets = hidden[labelled], targets[labelled]
        if len(targets) <= self.rows:
            tokens = _nll(hidden, targets, model.lm_head)
        else:
            pieces = zip(hidden.split(self.rows), targets.split(self.rows), strict=True)
            tokens = torch.cat([checkpoint(_nll, h, t, model.lm_head, use_reentrant=False) for h, t in pieces])
        return tokens.sum(), tokens.detach()


def labelled_places(batch: PackBatch) -> torch.Tensor:
    """Places in the pack of the tokens that PackLoss scores, in its order: int64 [labelled]."""
    return (batch.labels[0, 1:] != -100).nonzero()[:, 0] + 1


def _nll(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="none")

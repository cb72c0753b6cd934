"""Tokenizers: Qwen2.5's, or one of the same make trained on given texts; always from local files, never with code from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from shards.errors import ConfigError
from shards.sample import digest_of

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
STREAM_START, STREAM_END = "<|stream_start|>", "<|stream_end|>"
SPECIALS = (PAD, START, END, IMAGE, VIDEO)  # without these no item can be written; Qwen2.5 has all of them
TRAINED_SPECIALS = (*SPECIALS, STREAM_START, STREAM_END)

# How Qwen2 cuts text before byte-pair encoding (its tokenizer.json).
_QWEN_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer as its tokenizer.json says. Raises ConfigError where there is none, or a damaged one, or a special token is missing."""
    _read(directory)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the library's own errors are plain Exceptions
        raise ConfigError(f"{directory}: its tokenizer cannot be read ({_said(error)}); get its files again") from error
    known = tokenizer.get_added_vocab()
    missing = [token for token in SPECIALS if token not in known]
    if missing:
        raise ConfigError(f"{directory}: the tokenizer lacks {', '.join(missing)}; use Qwen2.5's, or train one with train_tokenizer")
    return tokenizer


def special_id(tokenizer: Any, token: str) -> int:
    """Id of a special token."""
    return int(tokenizer.convert_tokens_to_ids(token))


def text_only(tokenizer: Any) -> Tokenizer:
    """The same vocabulary without added tokens: what it encodes is text, even where it spells `<|im_end|>`."""
    value = json.loads(tokenizer.backend_tokenizer.to_str())
    value.update(added_tokens=[], truncation=None, padding=None, post_processor=None)
    return Tokenizer.from_str(json.dumps(value))


def tokenizer_digest(directory: str | Path) -> str:
    """16 hex digits over what decides token ids: vocabulary, merges, normalizer, pre-tokenizer, added tokens. Not over how the file is
    laid out, templates or settings for padding. Raises ConfigError."""
    try:
        return _digest(_read(directory))
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ConfigError(f"{directory}: its tokenizer.json is damaged ({_said(error)}); get its files again") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _digest(value: dict[str, Any]) -> str:
    model = dict(value["model"])
    vocabulary = sorted(model.pop("vocab").items(), key=lambda entry: entry[1])
    merges = [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model.pop("merges", [])]
    settings = {k: v for k, v in model.items() if v}  # absent, null, false and "" mean the same
    added = sorted([token["id"], token["content"]] for token in value.get("added_tokens") or [])
    return digest_of(vocabulary, merges, settings, value.get("normalizer"), value.get("pre_tokenizer"), added)


def train_tokenizer(texts: Iterable[str], out_dir: str | Path, vocab_size: int, min_frequency: int = 2) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with Qwen2's pre-tokenisation and TRAINED_SPECIALS, saves it in `out_dir`, and returns it as loaded.

    Equal sets of texts give equal files, whatever their order or repetition. It may end with fewer than `vocab_size` tokens. Raises
    ValueError for a `vocab_size` that does not hold all bytes and special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(TRAINED_SPECIALS):
        raise ValueError(f"vocab_size {vocab_size} is less than {len(alphabet)} bytes and {len(TRAINED_SPECIALS)} special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TRAINED_SPECIALS), min_frequency=min_frequency, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in TRAINED_SPECIALS])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False).save_pretrained(
        str(out_dir)
    )
    return load_tokenizer(out_dir)


def _read(directory: str | Path) -> dict[str, Any]:
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"no tokenizer in {directory}: {path} is not there")
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict) or "vocab" not in value["model"]:
        raise ConfigError(f"{path} is no tokenizer of the `tokenizers` library")
    return value

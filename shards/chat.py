"""Items as tokens: Qwen2.5's ChatML with a placeholder for every kept visual token, and the labels a trainer learns from.

Form (VideoLLaMA3's processor): `<|im_start|>role\\n…<|im_end|>\\n` for each message, no system prompt of its own. A medium is its
placeholders and a line break (one only, if the text after it brings its own); a video writes `Time 0.0s:` before each frame's
placeholders and `,` between frames. A streamed frame is a message of its own, `<|stream_start|>stream\\nTime 0.0s: …\\n<|stream_end|>\\n`
(with a space there). Labels are the assistant's text and its `<|im_end|>`; everything else is -100.

A tokenizer that has `<|stream_start|>` and `<|stream_end|>` gives their ids (VideoLLaMA3's, and those of `train_tokenizer`); for one
without, as Qwen2.5's, they are text, some five tokens each. Which it is follows from the tokenizer's digest, and so do counts.

Against transformers' VideoLlama3Processor on the same prompt the ids are equal, but for two things: texts that spell a special or added
token stay text here, and an answer that begins with white space does not fuse with the line break of its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Tokenizer

from shards.errors import SampleError
from shards.items import Item, Message, shown
from shards.tokenizer import (
    END,
    IMAGE,
    SPECIALS,
    START,
    STREAM_END,
    STREAM_START,
    VIDEO,
    load_tokenizer,
    special_id,
    text_only,
    tokenizer_digest,
    train_tokenizer,
)

__all__ = [
    "IGNORED",
    "SPECIALS",
    "EncodedItem",
    "MediumTokens",
    "count_item",
    "encode_item",
    "load_tokenizer",
    "render_item",
    "tokenizer_digest",
    "train_tokenizer",
]

IGNORED = -100
_TEXT_TOKENIZERS: WeakKeyDictionary[Any, tuple[Tokenizer, frozenset[str]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class MediumTokens:
    """The visual tokens of one medium of `shards.items.shown`: how many are kept of each frame (an image has one), and the frames' seconds
    (video only)."""

    kind: Literal["image", "video"]
    per_frame_kept: Sequence[int]
    times: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """input_ids, labels int64 (L); visual bool (L): the placeholders, those of images and those of videos in the order of their media.
    labels stand under their own token (the model shifts them)."""

    input_ids: np.ndarray
    labels: np.ndarray
    visual: np.ndarray


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text to encode, or one special token repeated."""

    text: str = ""
    special: str = ""
    repeat: int = 1
    labelled: bool = False


def encode_item(item: Item, tokenizer: Any, media: Sequence[MediumTokens]) -> EncodedItem:
    """`media`: one for each of `shards.items.shown`. `tokenizer` of `shards.tokenizer.load_tokenizer`.

    Texts never become special tokens, whatever they spell. A message is encoded as one string between its special tokens, as a processor
    that sees the whole prompt would; only the assistant's text begins anew after its header, as it does when it is generated.
    Raises SampleError for text that is no Unicode and for what `shown` refuses, ValueError if `media` are not those of the item.
    """
    text, specials = _text_tokenizer(tokenizer)
    ids: list[int] = []
    labelled: list[bool] = []
    visual: list[bool] = []
    for piece in _joined(_pieces(item, media), specials):
        new = [special_id(tokenizer, piece.special)] * piece.repeat if piece.special else _encode(text, piece.text, item)
        ids += new
        labelled += [piece.labelled] * len(new)
        visual += [piece.special in (IMAGE, VIDEO)] * len(new)
    input_ids = np.array(ids, dtype=np.int64)
    return EncodedItem(input_ids, np.where(labelled, input_ids, IGNORED), np.array(visual, dtype=bool))


def count_item(item: Item, tokenizer: Any, media: Sequence[MediumTokens]) -> tuple[int, int]:
    """(text tokens, labelled tokens): the tokens of `encode_item` without placeholders, and those with a label."""
    encoded = encode_item(item, tokenizer, media)
    return int((~encoded.visual).sum()), int((encoded.labels != IGNORED).sum())


def render_item(item: Item, media: Sequence[MediumTokens]) -> str:
    """The same as one string, for people and for comparison. Not for encoding: there a text could spell a special token."""
    return "".join(piece.special * piece.repeat if piece.special else piece.text for piece in _pieces(item, media))


def _pieces(item: Item, media: Sequence[MediumTokens]) -> Iterator[_Piece]:
    parts = shown(item)
    if [part.type for part in parts] != [medium.kind for medium in media]:
        raise ValueError(f"the item's media are {[p.type for p in parts]}, given were {[m.kind for m in media]}")
    waiting = iter(media)
    streams: dict[int, MediumTokens] = {}
    told: dict[int, int] = {}  # frames of a stream that messages have shown so far
    for message in item.messages:
        if message.role == "stream":
            number, until = message.content[0].media, message.content[0].until
            if number not in streams:
                streams[number] = next(waiting)
            first, told[number] = told.get(number, 0), _frames_until(streams[number], until)
            yield from _stream(streams[number], range(first, told[number]))
            continue
        yield _Piece(special=START)
        answer = message.role == "assistant"
        yield _Piece(text=f"{message.role}\n")
        yield from _content(message, waiting, answer)
        yield _Piece(special=END, labelled=answer)
        yield _Piece(text="\n")
    if any(told[number] != len(medium.times) for number, medium in streams.items()):
        raise ValueError(f"the item streams {told} frames of its videos, given were {[len(medium.times) for medium in streams.values()]}")


def _frames_until(medium: MediumTokens, until: float | None) -> int:
    """How many frames begin at `until` or before; in float32, as the index holds their times."""
    times = np.asarray(medium.times, dtype=np.float32)
    return len(times) if until is None else int(np.searchsorted(times, np.float32(until), side="right"))


def _stream(medium: MediumTokens, frames: range) -> Iterator[_Piece]:
    for index in frames:
        yield _Piece(special=STREAM_START)
        yield _Piece(text=f"stream\nTime {medium.times[index]:.1f}s: ")
        yield _Piece(special=VIDEO, repeat=medium.per_frame_kept[index])
        yield _Piece(text="\n")
        yield _Piece(special=STREAM_END)
        yield _Piece(text="\n")


def _content(message: Message, waiting: Iterator[MediumTokens], labelled: bool) -> Iterator[_Piece]:
    """Placeholders are never labelled."""
    open_line = False  # a medium's line break is still to come
    for part in message.content:
        if part.type == "text":
            if part.text:
                text = "\n" + part.text if open_line and not part.text.startswith("\n") else part.text
                yield _Piece(text=text, labelled=labelled)
                open_line = False
            continue
        if open_line:
            yield _Piece(text="\n", labelled=labelled)
        yield from _placeholders(next(waiting), labelled)
        open_line = True
    if open_line:
        yield _Piece(text="\n", labelled=labelled)


def _placeholders(medium: MediumTokens, labelled: bool) -> Iterator[_Piece]:
    if medium.kind == "image":
        yield _Piece(special=IMAGE, repeat=sum(medium.per_frame_kept))
        return
    for index, (kept, seconds) in enumerate(zip(medium.per_frame_kept, medium.times, strict=True)):
        yield _Piece(text=f"{',' if index else ''}Time {seconds:.1f}s:", labelled=labelled)
        yield _Piece(special=VIDEO, repeat=kept)


def _joined(pieces: Iterator[_Piece], specials: frozenset[str]) -> Iterator[_Piece]:
    """Neighbouring texts as one, where both or neither are labelled. Special tokens that are not of `specials` are texts."""
    held = _Piece()
    for piece in pieces:
        if piece.special and piece.special not in specials:
            piece = _Piece(text=piece.special * piece.repeat, labelled=piece.labelled)
        if not piece.special and piece.labelled == held.labelled:
            held = replace(held, text=held.text + piece.text)
            continue
        if held.text:
            yield held
        if piece.special:
            yield piece
        held = _Piece(labelled=piece.labelled) if piece.special else piece
    if held.text:
        yield held


def _encode(text: Tokenizer, string: str, item: Item) -> list[int]:
    try:
        string.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SampleError(f"a text of item {item.task}/{item.n} is no valid Unicode: {error.reason} at character {error.start}") from error
    return text.encode(string, add_special_tokens=False).ids


def _text_tokenizer(tokenizer: Any) -> tuple[Tokenizer, frozenset[str]]:
    """(the vocabulary without added tokens, those of our special tokens that it has)."""
    found = _TEXT_TOKENIZERS.get(tokenizer)
    if found is None:
        known = tokenizer.get_added_vocab()
        specials = {*SPECIALS, STREAM_START, STREAM_END} if {STREAM_START, STREAM_END} <= set(known) else SPECIALS
        found = _TEXT_TOKENIZERS[tokenizer] = (text_only(tokenizer), frozenset(specials))
    return found

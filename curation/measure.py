"""What each item of a sample costs under a measure profile: text and labelled tokens, encoder patches, visual tokens, compression masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curation.step import ALL_KINDS, Column, How, Result, Row, Step
from curation.view import SampleView, each
from curation.weights import existing_path
from shards.chat import load_tokenizer, tokenizer_digest
from shards.errors import ConfigError, ProfileError, SampleError
from shards.index import MEASURE_TYPE
from shards.items import items_from_json
from shards.measure import Medium, measure_item
from shards.profile import Profile, load_profile

_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class What:
    """profile    name of a profile in configs/profiles, or path of a YAML file.
    tokenizer  folder with the tokenizer.json that the model will have, readable on every node. Its content is digested, not its path.
    items      column with the items, as compose wrote it.
    """

    profile: str = "videollama3"
    tokenizer: str = ""
    items: str = "items"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", existing_path(self.tokenizer))
        if self.profile.endswith((".yaml", ".yml")):
            object.__setattr__(self, "profile", existing_path(self.profile))

    def tokenizer_digest(self) -> str:
        """Raises ConfigError where there is no tokenizer."""
        return tokenizer_digest(self.tokenizer)

    def loaded_profile(self) -> Profile:
        """Raises ProfileError, ConfigError."""
        return load_profile(self.profile, self.tokenizer_digest())


def measure(view: SampleView, what: What, profile: Profile, tokenizer: Any) -> Row:
    """The row of one sample. Opens its media only if it has items.

    An item with more text than profile.max_text_tokens is measured like any other: the plan of an epoch leaves out what does not fit.
    Raises DecodeError, LimitError, SourceError of the media, SampleError for items that cannot be encoded.
    """
    items = items_from_json(view.columns[what.items] or "[]")
    bounds_apart = replace(profile, max_text_tokens=_UNBOUNDED)
    with ExitStack() as stack:
        media: list[Medium] = []
        for medium in view.media if items else ():
            kind = medium.ref.kind
            if kind == "pdf":
                raise SampleError("its items speak of a PDF, which has no tokens: split it into pages first")
            data = stack.enter_context(medium.open()) if kind == "video" else medium.data()
            media.append(Medium(kind, data, medium.limits))
        if media:
            stack.enter_context(view.media[0].decoding())
        measured = [measure_item(item, media, tokenizer, bounds_apart) for item in items]
    return {
        "items": measured,
        "tokens": sum(m["text_tokens"] + m["kept_tokens"] for m in measured),
        "patches": sum(m["patches"] for m in measured),
    }


def _open(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    profile, tokenizer = what.loaded_profile(), load_tokenizer(what.tokenizer)
    return lambda views: each(views, lambda view: measure(view, what, profile, tokenizer))


def _columns(what: What) -> list[Column]:
    return [
        Column("items", pa.list_(MEASURE_TYPE), ALL_KINDS, wide=True, doc="one for each item, in the order of the items"),
        Column("tokens", pa.int32(), doc="text and kept visual tokens of all items"),
        Column("patches", pa.int32(), doc="patches that pass the encoder, of all items"),
    ]


def _check(what: What) -> None:
    if not what.tokenizer:
        raise ValueError(
            "tokenizer: is missing: token counts depend on it; give the folder of the model's tokenizer.json, or train a small one "
            "on the run's texts with `fovea tokenizer RUN --out DIR`"
        )
    try:
        what.loaded_profile()
        load_tokenizer(what.tokenizer)
    except ProfileError as error:
        raise ValueError(f"profile: {error}") from error
    except ConfigError as error:
        raise ValueError(f"tokenizer: {error}; `fovea tokenizer RUN --out DIR` trains one on the run's texts") from error


STEP = Step(
    version=4,
    level="sample",
    applies=ALL_KINDS,
    prefix="measure_",
    what=What,
    how=How,
    columns=_columns,
    reads=lambda what: ["media", what.items],
    open=_open,
    identity=lambda what: {"profile": what.loaded_profile().digest},
    check=_check,
)

"""A step of level "sample" that reads texts and, where a recipe says so, columns of steps before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curation.step import Column, How, Result, Step
from curation.view import SampleView


@dataclass(frozen=True, slots=True)
class What:
    columns: tuple[str, ...] = ()


def open_words(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Result]]:
    def answer(view: SampleView) -> Result:
        text = view.sample.texts.caption or view.sample.texts.text or ""
        return {"n": len(text.split()), "list": text.split(), "seen": repr({name: view.columns[name] for name in what.columns})}

    return lambda views: [answer(view) for view in views]


STEP = Step(
    version=1,
    columns=lambda what: (Column("n", pa.int32()), Column("list", pa.list_(pa.string())), Column("seen", pa.string())),
    reads=lambda what: ("texts", *what.columns),
    level="sample",
    applies=frozenset({"text", "image", "video"}),
    prefix="words_",
    what=What,
    open=open_words,
)

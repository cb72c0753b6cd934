"""A vector for each picture that a test can plan, 8 by 6 mean colours about grey, and a line in a file for each picture it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.step import Column, Result, Row, Step
from curation.view import MediaView, each

IMAGE = frozenset({"image"})
GREY = 127.5


@dataclass(frozen=True, slots=True)
class What:
    """by: a factor, so that there are steps with other digests. smallest: pictures less wide than that err."""

    by: float = 1.0
    smallest: int = 0


@dataclass(frozen=True, slots=True)
class How:
    batch: int = 64
    gpus: float = 0.0
    memory: int = 0
    actors: int = 0
    counter: str = ""


def _open(what: What, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    def run(views: Sequence[MediaView]) -> Sequence[Result]:
        if how.counter:
            with open(how.counter, "a") as file:
                file.writelines(f"{view.sample.source}/{view.sample.key}\n" for view in views)
        return each(views, lambda view: _seen(what, view))

    return run


def _seen(what: What, view: MediaView) -> Row:
    picture: Any = view.image()
    small = Image.fromarray(picture).resize((8, 6), Image.Resampling.BOX)
    return {"vector": ((np.asarray(small, np.float32).reshape(-1) - GREY) * what.by).tolist(), "wide": picture.shape[1]}


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="seen_",
    what=What,
    how=How,
    columns=lambda what: (Column("vector", pa.list_(pa.float32()), IMAGE, wide=True), Column("wide", pa.int32(), IMAGE)),
    reads=lambda what: ("media",),
    open=_open,
)

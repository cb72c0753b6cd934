"""A vector for each picture that a test can plan: 8 by 6 mean colours about grey. The cosine of two is that of the patterns they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.step import Column, Result, Row, Step
from curation.view import MediaView, each

IMAGE = frozenset({"image"})
GREY = 127.5


def _open(what: Any, how: Any) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    return lambda views: each(views, _thumbnail)


def _thumbnail(view: MediaView) -> Row:
    small = Image.fromarray(view.image()).resize((8, 6), Image.Resampling.BOX)
    return {"thumbnail": (np.asarray(small, np.float32).reshape(-1) - GREY).tolist()}


STEP = Step(
    version=1,
    level="medium",
    applies=IMAGE,
    prefix="",
    columns=lambda what: (Column("thumbnail", pa.list_(pa.float32()), IMAGE, wide=True),),
    reads=lambda what: ("media",),
    open=_open,
)

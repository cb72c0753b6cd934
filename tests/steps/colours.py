"""A wide column of vectors that a test can work out itself: the mean colour of each medium; black ones are zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from curation.step import Column, Result, Step
from curation.view import MediaView, each


def _open(what: Any, how: Any) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    return lambda views: each(views, lambda view: {"mean": [float(x) for x in view.image().reshape(-1, 3).mean(0)]})


STEP = Step(
    version=1,
    level="medium",
    applies=frozenset({"image"}),
    prefix="",
    columns=lambda what: (Column("mean", pa.list_(pa.float32()), frozenset({"image"}), wide=True),),
    reads=lambda what: ("media",),
    open=_open,
)

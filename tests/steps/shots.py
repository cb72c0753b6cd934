"""Shots of one and a half seconds over the good part of a video, as a detector would write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from curation.step import Column, How, NoParameters, Result, Row, Step
from curation.view import MediaView, each

_VIDEO = frozenset({"video"})


def answer(view: MediaView) -> Row:
    edges = [*np.arange(0, view.video_header().good - 0.5, 1.5).tolist(), view.video_header().good]
    return {"shots": [{"start": a, "end": b} for a, b in pairwise(edges)]}


def open_shots(what: NoParameters, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    return lambda views: each(views, answer)


STEP = Step(
    version=1,
    columns=lambda what: (Column("shots", pa.list_(pa.struct([("start", pa.float32()), ("end", pa.float32())])), _VIDEO),),
    reads=lambda what: ("media",),
    applies=_VIDEO,
    prefix="video_",
    open=open_shots,
)

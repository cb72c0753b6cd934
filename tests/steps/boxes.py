"""A detector that finds one box in every picture wider than 100 pixels."""

from __future__ import annotations

import pyarrow as pa

from curation.faces import BOX_TYPE
from curation.step import Column, Row, Step
from curation.view import MediaView, each

IMAGE = frozenset({"image"})


def _row(view: MediaView) -> Row:
    boxes = [{"box": [0.25, 0.25, 0.5, 0.5], "confidence": 0.99}] if view.image().shape[1] > 100 else []
    return {"n": len(boxes), "boxes": boxes}


STEP = Step(
    version=1,
    applies=IMAGE,
    prefix="boxes_",
    columns=lambda what: (Column("n", pa.int32(), IMAGE), Column("boxes", pa.list_(BOX_TYPE), IMAGE, wide=True)),
    reads=lambda what: ("media",),
    open=lambda what, how: lambda views: each(views, _row),
)

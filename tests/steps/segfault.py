"""Dies of a segmentation fault at samples with certain keys: inside the media room, or in the middle of a batch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from curation.step import MEDIA_KINDS, Column, How, Result, Row, Step
from curation.view import MediaView, each


@dataclass(frozen=True, slots=True)
class What:
    keys: tuple[str, ...] = ()
    decoding: bool = False
    opening: bool = False


def open_segfault(what: What, how: How) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    if what.opening:
        ctypes.string_at(0)

    def answer(view: MediaView) -> Row:
        if view.sample.key in what.keys and what.decoding:
            with view.decoding():
                ctypes.string_at(0)
        return {"length": len(view.data())}

    def run(views: Sequence[MediaView]) -> Sequence[Result]:
        results = each(views, answer)
        if any(view.sample.key in what.keys for view in views):
            ctypes.string_at(0)
        return results

    return run


STEP = Step(
    version=1,
    columns=lambda what: (Column("length", pa.int64(), MEDIA_KINDS),),
    reads=lambda what: ("media",),
    prefix="segfault_",
    what=What,
    open=open_segfault,
)

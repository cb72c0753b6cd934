"""The counting step in a child process whose reader dies at media named deadly…, as a native reader may at a damaged container."""

from __future__ import annotations

import ctypes
import sys

from curation import view
from shards.media import Limits
from shards.read import read_media
from shards.sample import MediaRef
from tests.steps import counting

STEP = counting.STEP


def read_or_die(ref: MediaRef, limits: Limits) -> bytes:
    if ref.name.startswith("deadly"):
        ctypes.string_at(0)
    return read_media(ref, limits)


if sys.modules["__main__"].__spec__ is not None and sys.modules["__main__"].__spec__.name == "curation.child":
    view.read_media = read_or_die

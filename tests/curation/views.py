"""Views of samples as the runner gives them to a step, over files on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.view import MediaView, Room, SampleView
from shards.media import Limits
from shards.sample import MediaKind, MediaRef, Sample, Texts, media_kind, stamp_of, uid_of


def file_ref(path: Path) -> MediaRef:
    kind = media_kind(path.name)
    assert kind is not None
    size = path.stat().st_size if path.exists() else 0
    return MediaRef(kind, path.name, str(path), -1, size, stamp_of(size, path.name))


def absent_ref(kind: MediaKind, number: int = 0) -> MediaRef:
    """A medium that a step must not open: there is nothing behind it."""
    return MediaRef(kind, f"{number}.{kind}", f"/nonexistent/{number}.{kind}", -1, 1, "0" * 16)


def sample_view(
    media: Sequence[MediaRef] = (),
    texts: Texts | None = None,
    columns: Mapping[str, Any] | None = None,
    key: str = "k",
    limits: Limits | None = None,
) -> SampleView:
    sample = Sample(uid_of("test", key), "test", key, "unit", 0, tuple(media), texts or Texts())
    view = SampleView(Room(limits or Limits()), 0, sample)
    view.columns = columns or {}
    return view


def media_view(path: Path, limits: Limits | None = None) -> MediaView:
    return sample_view([file_ref(path)], key=path.name, limits=limits).media[0]

"""Views: opened and decoded once for all steps, and never more pixels alive than allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation import view as module
from curation.fused import Group
from curation.view import MediaView, Room, member_of
from shards.errors import SourceError
from shards.image import decode_image
from shards.media import Limits
from shards.read import opened
from tests.curation.units import call, picture_unit, pictures

LIMITS = Limits()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the encoded pictures that were decoded."""
    sizes: list[int] = []

    def count(data: bytes, limits: Limits) -> np.ndarray:
        sizes.append(len(data))
        return decode_image(data, limits)

    monkeypatch.setattr(module, "decode_image", count)
    return sizes


def views(paths: list[Path], room: Room) -> list[MediaView]:
    return [member_of(room, i, row).view.media[0] for i, row in enumerate(picture_unit(paths).to_pylist())]


def test_pictures_are_opened_and_decoded_once_for_all_steps(tmp_path: Path, decoded: list[int]) -> None:
    before = opened()
    paths = pictures(tmp_path, 3)
    room = Room(LIMITS)
    first, second = call("probe"), call("probe", how={"batch": 2})
    chunk = Group((first, second), room).run(picture_unit(paths))
    assert chunk.costs[second.digest].calls == 3
    assert len(decoded) == 3
    assert opened() - before == 3
    assert chunk.onward is not None
    assert len(chunk.onward) == 3


def test_pixels_beyond_the_budget_are_given_up_and_decoded_again(tmp_path: Path, decoded: list[int]) -> None:
    room = Room(LIMITS, pixel_bytes=2 * 40 * 30 * 3)
    first, second, third = views(pictures(tmp_path, 3), room)
    kept = first.image()
    assert not kept.flags.writeable
    assert first.image() is kept
    second.image(), third.image()
    assert len(decoded) == 3
    np.testing.assert_array_equal(first.image(), kept)
    assert len(decoded) == 4
    room.clear()
    third.image()
    assert len(decoded) == 5


def test_a_step_sees_only_the_columns_it_declared(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 1)
    counting, words = call("tests.steps.counting"), call("tests.steps.words", {"columns": ("counting_size",)})
    with pytest.raises(Exception, match="counting_size"):
        Group((counting, words), Room(LIMITS)).run(picture_unit(paths))


def test_a_file_that_went_away_is_the_source_s_fault(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 1)
    (view,) = views(paths, Room(LIMITS))
    paths[0].unlink()
    with pytest.raises(SourceError, match=r"000\.png"):
        view.sha256()

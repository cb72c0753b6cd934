"""Which frames of a video a step looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation import view as views
from curation.caption import What
from curation.moments import MOST_FRAMES, Stretch, check_moments, frame_times, stretches
from curation.view import MediaView
from shards.errors import InfrastructureError, LimitError, SampleError
from tests.curation.stills import film, grey
from tests.curation.views import media_view


@pytest.fixture
def clip(tmp_path: Path) -> MediaView:
    """Three seconds: grey 10, 20, 30 for one each."""
    return media_view(film(tmp_path / "clip.mkv", [(grey(10), 1), (grey(20), 1), (grey(30), 1)]))


def of(view: MediaView, **moments: Any) -> list[Stretch]:
    return stretches(What(model="m", **moments), view)


def told(*bounds: tuple[float, float]) -> dict[str, Any]:
    return {"video_shots": [{"start": start, "end": end} for start, end in bounds]}


def test_frames_are_the_middles_of_equal_parts(clip: MediaView) -> None:
    [whole] = of(clip, frames=3)
    assert whole == Stretch(0.0, 3.0, (0.5, 1.5, 2.5))
    assert [int(pixels[0, 0, 0]) for pixels in clip.frames(whole.times)] == [10, 20, 30]
    assert of(clip, every=1.4) == [Stretch(0.0, 1.4, (0.7,)), Stretch(1.4, 3.0, (2.2,))]
    assert of(clip, every=60.0) == [Stretch(0.0, 3.0, (1.5,))]


def test_stretches_are_those_of_a_column_and_the_whole_clip_where_it_has_none(clip: MediaView) -> None:
    clip.columns = told((0, 1), (1, 3))
    assert of(clip, at="video_shots", frames=2) == [Stretch(0.0, 1.0, (0.25, 0.75)), Stretch(1.0, 3.0, (1.5, 2.5))]
    for none in (None, list[Any]()):
        clip.columns = {"video_shots": none}
        assert of(clip, at="video_shots") == [Stretch(0.0, 3.0, (1.5,))]


def test_what_is_no_list_of_stretches(clip: MediaView) -> None:
    clip.columns = told((0, 2), (1, 3), (1, 2))
    with pytest.raises(SampleError, match="overlap"):
        of(clip, at="video_shots")
    clip.columns = {"video_shots": [{"text": "a"}]}
    with pytest.raises(InfrastructureError, match="lists no"):
        of(clip, at="video_shots")
    clip.columns = told(*((i, i + 1) for i in range(MOST_FRAMES // 2 + 1)))
    with pytest.raises(LimitError, match="cut it into clips first"):
        of(clip, at="video_shots", frames=2)


@pytest.mark.parametrize("wrong", [{"frames": -1}, {"frames": 257}, {"every": 0.01}, {"at": "video_shots", "every": 2.0}])
def test_what_cannot_work_is_told_before_a_run(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if len(wrong) == 1 else "every"):
        check_moments(What(model="m", **wrong))


def test_frames_are_decoded_once_for_steps_that_ask_for_the_same(clip: MediaView, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = views.pick_frames

    def counted(file: Any, times: np.ndarray, limits: Any) -> Any:
        calls.append(len(times))
        return real(file, times, limits)

    monkeypatch.setattr(views, "pick_frames", counted)
    times = frame_times(of(clip, frames=3))
    first = [pixels.copy() for pixels in clip.frames(times)]
    assert all(np.array_equal(a, b) for a, b in zip(first, clip.frames(times), strict=True))
    assert calls == [3]
    list(clip.frames(times[:2]))
    assert calls == [3, 2]
    clip.drop_pixels()
    # a film of which not all fit: a part is decoded when the one before was taken, and none is kept
    monkeypatch.setattr(views, "FRAME_BYTES", 2 * 64 * 48 * 3)
    held = clip.frames(times)
    assert next(held)[0, 0, 0] == 10
    assert calls[2:] == [2]
    assert [int(pixels[0, 0, 0]) for pixels in held] == [20, 30]
    assert calls[2:] == [2, 1]
    list(clip.frames(times))
    assert calls[2:] == [2, 1, 2, 1]

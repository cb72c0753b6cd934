"""Which frames a stream has: those of the video up to its last message, spread over that part alone where they are too many."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.video import frame_times


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    duration=st.floats(0, 2_000),
    fps=st.sampled_from([0.2, 1.0, 2.0, 29.97]),
    most=st.integers(1, 300),
    until=st.floats(0, 3_000) | st.integers(0, 300).map(lambda n: n / 10),
)
def test_frames_up_to_a_second_are_those_of_the_whole_or_spread_over_that_part(
    duration: float, fps: float, most: int, until: float
) -> None:
    every = frame_times(duration, fps, 10**9)
    inside = every[every.astype(np.float32) <= np.float32(until)]
    found = frame_times(duration, fps, most, until)
    assert len(found) == min(len(inside), most)
    assert set(found) <= set(inside)
    assert found[0] == 0
    if most > 1:
        assert found[-1] == inside[-1]
    assert np.all(np.diff(found) > 0)


def test_a_stream_that_ends_after_its_video_is_the_whole_of_it() -> None:
    for until in (3.0, 1e308):
        assert frame_times(3.0, 1.0, 180, until).tolist() == frame_times(3.0, 1.0, 180).tolist() == [0, 1, 2]
    assert frame_times(1e6, 1.0, 4, 6.0).tolist() == [0, 2, 4, 6]

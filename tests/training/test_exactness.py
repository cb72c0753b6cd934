"""The verdict of benchmarks.exactness: what is too far apart, or is no number, is told."""

from __future__ import annotations

import pytest

from benchmarks.exactness import Row, furthest


def test_the_furthest_apart_of_two_lists_is_found() -> None:
    assert furthest([[1.0, 2.0], [4.0, 5.0]], [[1.0, 2.5], [4.0, 4.0]]) == 1.0
    assert furthest([1.0, 3.0], [0.5, 4.0], relative=True) == 1.0
    with pytest.raises(SystemExit, match="3"):
        furthest([1.0, 2.0, 3.0], [1.0, 2.0])


def test_a_goal_is_missed_by_what_is_above_it_and_by_what_is_no_number() -> None:
    no_number = furthest([1.0, float("nan"), 1.0], [1.0, 1.0, 1.0])
    assert [Row("", measured, 1e-5).missed for measured in (0.0, 1e-5, 2e-5, no_number)] == [False, False, True, True]
    assert not Row("", 1.0).missed
    assert str(Row("loss", 2e-5, 1e-5)).split() == ["loss", "2e-05", "≤", "1e-05", "MISSED"]

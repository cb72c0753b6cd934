"""Another try where it can help, none where it cannot; what was done before an error is kept."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from curation import view
from curation.group import GroupRunner
from curation.tries import as_infrastructure, pauses, tried
from shards.errors import DecodeError, InfrastructureError
from shards.media import Limits
from tests.curation.units import call, row, unit

PASSING = "tests.steps.passing"
WORDS = "tests.steps.words"


def failing(times: int, error: Exception) -> tuple[list[int], object]:
    calls: list[int] = []

    def work() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "done"

    return calls, work


@pytest.mark.parametrize(
    ("times", "retryable", "pauses", "calls"),
    [(0, True, [], 1), (2, True, [1.0, 4.0], 3), (3, True, [1.0, 4.0, 16.0], 4), (4, True, [1.0, 4.0, 16.0], 4), (1, False, [], 1)],
)
def test_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch, times: int, retryable: bool, pauses: list[float], calls: int) -> None:
    monkeypatch.delenv("FOVEA_RETRY_PAUSES")
    waited: list[float] = []
    made, work = failing(times, InfrastructureError("away", retryable))
    if times < calls:
        assert tried(work, waited.append) == "done"  # type: ignore[arg-type]
    else:
        with pytest.raises(InfrastructureError, match=r"away\ngiven up after 4 tries" if retryable else "away$"):
            tried(work, waited.append)  # type: ignore[arg-type]
    assert (waited, len(made)) == (pauses, calls)


@pytest.mark.parametrize(("text", "found"), [("", []), ("0, 2.5", [0.0, 2.5]), ("a", None), ("-1", None), ("nan", None)])
def test_pauses_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, found: list[float] | None) -> None:
    monkeypatch.setenv("FOVEA_RETRY_PAUSES", text)
    if found is not None:
        assert pauses() == found
        return
    with pytest.raises(InfrastructureError, match="FOVEA_RETRY_PAUSES="):
        pauses()


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (MemoryError("2 GB"), True),
        (ConnectionResetError("hung up"), True),
        (TimeoutError("60 s"), True),
        (OSError(errno.ENOSPC, "No space left"), True),
        (InfrastructureError("no weights"), False),
        (InfrastructureError("busy", retryable=True), True),
        (OSError(errno.ENOENT, "no such file"), None),
        (KeyError("typo"), None),
        (DecodeError("bad"), None),
    ],
)
def test_what_another_try_may_mend(error: Exception, retryable: bool | None) -> None:
    found = as_infrastructure(error, "step 'x'")
    assert (found.retryable if found else None) == retryable
    if found:
        assert str(found).startswith("step 'x': ")


def test_a_network_that_comes_back_ends_nothing(tmp_path: Path) -> None:
    step = call(PASSING, {"folder": str(tmp_path), "times": 2}, {"batch": 2})
    with GroupRunner([step], Limits()) as runner:
        result = runner.run(unit([row(str(i), i) for i in range(5)]))
    assert result.rows[step.digest]["error"].to_pylist() == [None] * 5
    assert result.costs[step.digest].calls == 5
    assert (tmp_path / "calls").read_text().split() == ["2", "2", "2", "2", "1"]  # the first batch came three times


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    words, step = call(WORDS, None, {"batch": 8}), call(PASSING, {"folder": str(tmp_path), "times": 99, "after": 40}, {"batch": 8})
    batch = unit([row(str(i), i) for i in range(100)])
    with GroupRunner([words, step], Limits()) as runner:
        result, failure = runner.run_kept(batch)
    assert isinstance(failure, InfrastructureError)
    assert "given up after 3 tries" in str(failure)
    assert len(result.rows[step.digest]) == 32  # the first chunk; the second fails at its second batch
    assert len(result.rows[words.digest]) == 64  # the steps before it keep their rows of that chunk too
    assert result.onward["key"].to_pylist() == [str(i) for i in range(32)]
    with GroupRunner([words, step], Limits()) as runner, pytest.raises(InfrastructureError, match="given up"):
        runner.run(batch)


def test_a_wait_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches sees another piece of work begin, however long the wait."""
    monkeypatch.setattr(view, "PULSE_SECONDS", 0.01)
    room = view.Room(Limits())
    room.pause(0.1)
    assert room.call >= 5


def test_a_unit_ends_between_chunks_when_it_is_told_to() -> None:
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(len(asked) >= 2)
        return asked[-1]

    step = call(WORDS, None, {"batch": 8})
    with GroupRunner([step], Limits()) as runner:
        result, failure = runner.run_kept(unit([row(str(i), i) for i in range(100)]), stopped)
    assert (failure, len(result.rows[step.digest]), asked) == (None, 64, [False, False, True])

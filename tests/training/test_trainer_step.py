"""The benchmark of a step: what it calls ours is all that the loop does, once for each bare step."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import trainer_step
from training import loop
from training.engine import start_ranks
from training.measured import PackLog
from training.metrics import Metrics


def test_ours_is_all_of_the_loop_and_the_bare_step_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def called(*values: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*values, **named)

        return called

    monkeypatch.setattr(trainer_step, "bare_step", counted("bare", trainer_step.bare_step))
    monkeypatch.setattr(loop, "train_step", counted("step", loop.train_step))
    monkeypatch.setattr(loop, "step_numbers", counted("numbers", loop.step_numbers))
    monkeypatch.setattr(Metrics, "write", counted("write", Metrics.write))
    monkeypatch.setattr(PackLog, "note", counted("note", PackLog.note))
    result = trainer_step.measure(start_ranks(), steps=2, packs_per_step=1, items=1)
    assert calls == ["bare", "step", "numbers", "write", "note"] * (trainer_step.WARM + 2 + 1)
    assert result["steps"] == 2
    assert result["bare_cpu_ms"] > 0


@pytest.mark.parametrize(("ratio", "milliseconds", "said"), [(1.03, 150, "reached"), (1.031, 150, "MISSED"), (1.0, 99, "no verdict")])
def test_the_verdict_is_for_steps_of_a_tenth_of_a_second(ratio: float, milliseconds: float, said: str) -> None:
    assert trainer_step.verdict(ratio, milliseconds).startswith(said)

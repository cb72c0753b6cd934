"""The rank that is gone is named by those that are left."""

from __future__ import annotations

import os
import socket

import pytest
import torch

from training import roll_call
from training.engine import Ranks


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.Store:
    met = torch.distributed.HashStore()
    monkeypatch.setattr(roll_call, "_store", lambda: met)
    monkeypatch.setattr(roll_call, "_PATIENCE", 0.5)
    return met


def test_who_does_not_answer_is_named_with_machine_and_process(store: torch.distributed.Store) -> None:
    here = f"{socket.gethostname()}, process {os.getpid()}"
    for rank in range(4):
        roll_call.sign_in(Ranks(rank, 4))
    for rank in (0, 2):
        roll_call.answer(Ranks(rank, 4))
    assert roll_call.absent(Ranks(0, 4)) == f"rank 1 ({here}), rank 3 ({here})"
    roll_call.answer(Ranks(3, 4))
    assert roll_call.absent(Ranks(0, 4)) == f"rank 1 ({here})"


def test_of_two_ranks_it_is_the_other_one(store: torch.distributed.Store) -> None:
    roll_call.sign_in(Ranks(1, 2))
    assert roll_call.absent(Ranks(0, 2)).startswith("rank 1 (")


def test_where_nobody_can_be_asked_nobody_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise torch.distributed.DistNetworkError("Connection reset by peer")

    monkeypatch.setattr(roll_call, "_store", gone)
    roll_call.answer(Ranks(1, 3))
    assert roll_call.absent(Ranks(1, 3)) == "another rank"
    assert roll_call.absent(Ranks(1, 2)) == "rank 0", "of two it can only be the other"

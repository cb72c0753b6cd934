"""One thread and torch's own `linear`: what a test of the engine changes in the process must not reach those after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """These models are so small that a second thread mostly waits, and for long where other processes want the cores too."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def torchs_own_linear() -> Iterator[None]:
    """ZeRO-3 puts a function of its own in the place of `linear` and leaves it there; checkpointing then repeats more products."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear

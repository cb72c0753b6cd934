"""One thread: these models are so small that a second one mostly waits, and for long where other processes want the cores too."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)

"""One Ray for all tests of the engine, connected as a run connects to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from pipeline import cluster


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    cluster.connect(None, ["tests.steps.counting"])
    yield
    ray.shutdown()

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.recipe import StepOp, load_recipe
from pipeline.sizes import pool_sizes
from shards.errors import InfrastructureError


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> StepOp:
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "a").mkdir()
    (folder / "r.yaml").write_text(f"name: r\nsources: [{{name: a, format: folder, path: {folder / 'a'}}}]\nsteps: [probe]\n")
    [op] = load_recipe(folder / "r.yaml").ops
    assert isinstance(op, StepOp)
    return op


def own(op: StepOp, **how: Any) -> StepOp:
    return replace(op, how=replace(op.how, **how))


def test_a_pool_has_an_actor_for_each_cpu_but_no_more_than_there_is_to_do() -> None:
    assert pool_sizes([None], cpus=8, gpus=0, tasks=100) == [8]
    assert pool_sizes([None], cpus=8, gpus=0, tasks=3) == [3]


def test_gpus_are_shared_among_the_pools_that_run_at_once(probe: StepOp) -> None:
    assert pool_sizes([None, own(probe, gpus=1.0)], cpus=64, gpus=8, tasks=100) == [64, 8]
    assert pool_sizes([own(probe, gpus=0.5), None, own(probe, gpus=1.0)], cpus=64, gpus=8, tasks=100) == [5, 64, 5]
    assert pool_sizes([own(probe, gpus=1.0, actors=2), own(probe, gpus=2.0)], cpus=64, gpus=8, tasks=100) == [2, 3]
    assert pool_sizes([own(probe, gpus=0.1)] * 3, cpus=64, gpus=1, tasks=100) == [3, 3, 3]
    assert pool_sizes([own(probe, memory=1 << 40)], cpus=4, gpus=0, tasks=100) == [4]


def test_a_gpu_that_is_not_there_is_told_and_not_waited_for(probe: StepOp) -> None:
    with pytest.raises(InfrastructureError, match=r"want 1.5 GPUs \(probe 0.5, probe 1\) and the cluster has 1"):
        pool_sizes([own(probe, gpus=0.5), own(probe, gpus=1.0)], cpus=4, gpus=1, tasks=10)
    with pytest.raises(InfrastructureError, match="probe 1 × 3"):
        pool_sizes([own(probe, gpus=1.0, actors=3)], cpus=4, gpus=2, tasks=10)

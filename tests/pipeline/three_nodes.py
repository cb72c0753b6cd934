"""Runs a recipe on three nodes of one machine and kills one of them in the middle: `python -m tests.pipeline.three_nodes RECIPE RUN`.

Prints one JSON object: counts, calls, and how many nodes were alive before and after.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipeline import work
from tests.pipeline.small import run


def main(path: Path, folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    victims = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    work.TASK_ROWS = 1  # many tasks of one small unit each
    alive: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if done > 0 and not alive:
            alive.append(nodes())
            cluster.remove_node(victims[0], allow_graceful=False)

    outcome = run(path, folder, address=cluster.address, progress=kill)
    alive.append(nodes())
    print(json.dumps({"counts": outcome.counts, "calls": outcome.calls, "alive": alive}))
    ray.shutdown()
    cluster.shutdown()


def nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

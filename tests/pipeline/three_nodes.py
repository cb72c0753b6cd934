"""Runs a recipe on three nodes of one machine and kills one of them in the middle: `python -m tests.pipeline.three_nodes RECIPE RUN`.

Prints one JSON object: counts, calls, and how many nodes were alive before and after.
"""

from __future__ import annotations

import json
import sys
import time
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
    alive.append(nodes(down_to=2))
    print(json.dumps({"counts": outcome.counts, "calls": outcome.calls, "alive": alive}))
    ray.shutdown()
    cluster.shutdown()


def nodes(*, down_to: int | None = None, seconds: float = 60.0) -> int:
    """How many nodes are alive; with `down_to`, when that many are left or after `seconds`.

    Ray hears of a machine's death by heartbeats that stay away, and the run may end sooner than it has missed enough of them.
    """
    end = time.monotonic() + seconds
    while True:
        alive = sum(node["Alive"] for node in ray.nodes())
        if down_to is None or alive <= down_to or time.monotonic() > end:
            return alive
        time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

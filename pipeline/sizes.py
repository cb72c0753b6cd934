"""How many actors each pool of a stream gets: what the recipe says, else as many as the cluster's CPUs and GPUs feed at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.recipe import StepOp
from shards.errors import InfrastructureError


def pool_sizes(alone: Sequence[StepOp | None], cpus: int, gpus: float, tasks: int) -> list[int]:
    """Actors of each pool; `alone`: its step where it has its own GPU or memory, else None. All pools of a stream run at once.

    gpus: of the cluster that are free for them. Raises InfrastructureError where one actor of each pool already wants more.
    """
    wanting = [op for op in alone if op is not None and op.how.gpus > 0]
    fixed = sum(op.how.gpus * op.how.actors for op in wanting if op.how.actors)
    each = sum(op.how.gpus for op in wanting if not op.how.actors)
    if fixed + each > gpus + 1e-9:
        wanted = ", ".join(f"{op.name} {op.how.gpus:g}" + (f" × {op.how.actors}" if op.how.actors else "") for op in wanting)
        raise InfrastructureError(
            f"steps that run at the same time want {fixed + each:g} GPUs ({wanted}) and the cluster has {gpus:g}: "
            "lower `gpus` or `actors` (a share such as 0.5 is possible), or drop `gpus` to run them on CPUs"
        )
    fed = int((gpus - fixed) / each + 1e-9) if each else 0
    sizes = []
    for op in alone:
        most = cpus if op is None or not op.how.gpus else fed
        sizes.append(op.how.actors if op is not None and op.how.actors else max(1, min(most, tasks)))
    return sizes

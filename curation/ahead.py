"""Pictures through a model while the next ones are decoded: one thread prepares, the caller's runs the model, so neither waits long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from curation.view import MediaView
from shards.errors import InfrastructureError, SampleError

if TYPE_CHECKING:
    import torch

Prepared = list["torch.Tensor | SampleError"]

# A call is run in so many parts: while the model has one, the next is prepared. Only the first part's preparation is waited for.
PARTS = 4
LEAST = 8  # pictures of a part: fewer at once slow the model down


def run_model(
    views: Sequence[MediaView],
    prepare: Callable[[np.ndarray], torch.Tensor],
    model: Callable[[torch.Tensor], np.ndarray],
) -> list[np.ndarray | SampleError]:
    """What the model says of each picture, or the error that belongs to it.

    prepare   uint8 H×W×3 -> float32 (3, h, w), the same h and w for all.
    model     float32 (n, 3, h, w) -> float32 (n, …), a row for each picture.
    Pictures are decoded in their order, one at a time. Raises InfrastructureError when the device is out of memory.
    """
    size = max(LEAST, -(-len(views) // PARTS))
    parts = [views[start : start + size] for start in range(0, len(views), size)]
    results: list[np.ndarray | SampleError] = []
    if not parts:
        return results
    with ThreadPoolExecutor(1, "fovea-prepare") as thread:
        waiting = thread.submit(_prepare, parts[0], prepare)
        for following in [*parts[1:], None]:
            prepared = waiting.result()
            if following is not None:
                waiting = thread.submit(_prepare, following, prepare)
            results += _run(prepared, model)
    return results


def _prepare(views: Sequence[MediaView], prepare: Callable[[np.ndarray], torch.Tensor]) -> Prepared:
    found: Prepared = []
    for view in views:
        try:
            found.append(prepare(view.image()))
        except SampleError as error:
            found.append(error)
    return found


def _run(prepared: Prepared, model: Callable[[torch.Tensor], np.ndarray]) -> list[np.ndarray | SampleError]:
    import torch

    pictures = [found for found in prepared if not isinstance(found, SampleError)]
    if not pictures:
        return [found for found in prepared if isinstance(found, SampleError)]
    try:
        rows = iter(model(torch.stack(pictures)))
    except torch.OutOfMemoryError as error:
        raise InfrastructureError(f"{len(pictures)} pictures at once do not fit the device: lower `how: batch`") from error
    return [found if isinstance(found, SampleError) else next(rows) for found in prepared]

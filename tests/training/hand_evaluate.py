"""`score_checkpoint` as a process of its own: `main([CHECKPOINT, DATASET, OUT])` writes OUT.jsonl and OUT.<rank>.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.evaluation import score_checkpoint

METRICS = ("loss", "exact_match", "choice")  # captions would import their library in each process


def main(words: Sequence[str]) -> None:
    import torch

    torch.set_num_threads(1)
    checkpoint, dataset, out = words
    found = score_checkpoint(checkpoint, dataset, metrics=METRICS, packs=4, new_tokens=8, batch=2, out=f"{out}.jsonl")
    Path(f"{out}.{torch.distributed.get_rank()}.json").write_text(json.dumps(asdict(found)))

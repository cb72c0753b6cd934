"""Every ZeRO stage on two ranks, one of them with text alone: what tests.training.test_engine_ranks looks at. Under forked.run: OUT"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.training import handmade
from training.collate import LoadedItem, PackBatch
from training.engine import Ranks, TrainingStopped, build_engine, rate_factor, start_ranks, train_step
from training.pack_loss import PackLoss
from training.stages import StageConfig, TrainingConfig
from training.whole import make_whole

STEPS = 2
RATES = {"vision_encoder": 2e-3, "projector": 2e-3, "llm": 2e-3}
FROZEN = {"vision_encoder": 1e-2, "projector": 1e-2}
# Weights of every size are cut and gathered, as those of a large model are; by default small ones stay whole.
CUT = {"stage3_param_persistence_threshold": 0}
ROWS = 5  # logits at once: rank 0's pack takes several pieces, rank 1's another number of them


def items() -> tuple[list[LoadedItem], list[LoadedItem]]:
    """One of every kind and a second picture; text alone, short and long."""
    mixed = [handmade.item(kind, n) for n, kind in enumerate(("image", "images", "video", "text", "image"))]
    return mixed, [handmade.item("text", 50, 3), handmade.item("text", 51, 9)]


def batches() -> list[PackBatch]:
    """A pack of each; sources that only one of them has."""
    mixed, text = items()
    return [_from(handmade.packed(mixed), "photos"), _from(handmade.packed(text), "books")]


def _from(pack: PackBatch, source: str) -> PackBatch:
    return replace(pack, items=tuple(replace(item, source=source) for item in pack.items))


def model(tied: bool = True) -> nn.Module:
    made: Any = handmade.model()
    if not tied:
        made.config.tie_word_embeddings = made.config.text_config.tie_word_embeddings = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            made.lm_head.weight = nn.Parameter(torch.randn_like(made.lm_head.weight) * 0.06)
    return made


def stage(**changes: Any) -> StageConfig:
    values = {"profile": "tiny", "compress": True, "train": RATES, "step": {"packs": 2}, "seq_tokens": 64, "pack_patches": 64, "clip": 0.5}
    return StageConfig.model_validate({**values, **changes})


def config(one: StageConfig, deepspeed: str, **of_model: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"name": "zero", "stages": {1: one.model_dump()}, "deepspeed": deepspeed, "model": of_model})


def settings(folder: Path, zero: int) -> str:
    """A file of settings for that stage that cuts every weight."""
    path = folder / f"zero{zero}.json"
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": zero, "overlap_comm": False, **CUT}}))
    return str(path)


def run(
    ranks: Ranks, one: StageConfig, deepspeed: str, start: nn.Module, broken: bool = False, steps: int = STEPS, **of_model: Any
) -> dict[str, Any]:
    """So many steps on this rank's pack; then, `broken`, one whose gradient is infinite on rank 1 alone."""
    engine = build_engine(start, one, config(one, deepspeed, **of_model), ranks)
    engine.module.labelled_loss.rows = ROWS
    mine = batches()[ranks.rank :: ranks.world]
    found: dict[str, Any] = {"steps": [asdict(train_step(engine, one, mine, step, steps)) for step in range(steps)]}
    if broken:
        if ranks.rank == 1:
            learns = next(p for p in engine.module.parameters() if p.requires_grad)
            learns.register_hook(lambda gradient: gradient * float("inf"))
        try:
            train_step(engine, one, mine, steps, steps + 1)
        except TrainingStopped as stopped:
            found["stopped"] = str(stopped)
    make_whole(engine)
    return found


def plain(kind: str = "token", tied: bool = True, steps: int = STEPS) -> tuple[list[float], list[float], nn.Module]:
    """The same steps by PyTorch alone, every item a forward pass of its own: (losses, norms before clipping, model)."""
    one, learner = stage(), model(tied)
    loss_of = PackLoss(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.0, weight_decay=0.0)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        alone = [loss_of(handmade.packed([item])) for pack in items() for item in pack]
        counts = torch.tensor([float(len(tokens)) for _, tokens in alone])
        share = {"token": counts, "sample": torch.ones_like(counts), "sqrt": counts.sqrt()}[kind]
        loss = (torch.stack([total for total, _ in alone]) / counts * share).sum() / share.sum()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(learner.parameters(), one.clip)))
        losses.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = RATES["llm"] * rate_factor(step, steps, one.warmup_ratio, one.schedule)
        optimizer.step()
    return losses, norms, learner


def main(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    out = Path(words[0])
    ranks = start_ranks()
    folder = out / str(ranks.rank)
    folder.mkdir()
    found: dict[str, Any] = {}

    def note(name: str, start: nn.Module, **how: Any) -> None:
        found[name] = run(ranks, how.pop("one", stage()), how.pop("deepspeed"), start, **how)
        torch.save({name: value.clone() for name, value in start.state_dict().items()}, folder / f"{name}.pt")

    for zero in range(4):
        cut = settings(folder, zero)
        note(f"fp32-{zero}", model(), deepspeed=cut, broken=True)
        note(f"bf16-{zero}", model(), deepspeed=cut, precision="bf16")
        note(f"frozen-{zero}", model(), deepspeed=cut, one=stage(train=FROZEN))
    note("untied-3", model(tied=False), deepspeed=settings(folder, 3), gradient_checkpointing=True)
    note("untied-frozen-3", model(tied=False), deepspeed=settings(folder, 3), one=stage(train=FROZEN))
    note("offload-2", model(), deepspeed="zero2_offload")
    note("offload-3", model(), deepspeed="zero3_offload")
    for kind in ("sample", "sqrt"):
        note(kind, model(), deepspeed="zero1", one=stage(loss=kind))
    (folder / "found.json").write_text(json.dumps(found))

"""What changes no result: packing, ZeRO's stages, and resuming on another number of ranks, each beside the run without it, in fp32.

    python -m benchmarks.exactness

Packed and separate: items of one pack through PackLoss beside each of them alone through transformers' own forward. Two packs, each with
pictures, several pictures, compressed clips and text: the tests' (7 items, 97 tokens, 2 layers of width 32) and a row of 1,024 tokens for
the model of benchmarks.trainer_padding (4 layers of width 192). A loss is the mean over labelled tokens, as a step has it, and gradients
are that mean's; every token's own loss is compared too.

Stages: two ranks, one with pictures and clips and one with text alone, so many steps of ZeRO-1, 2 and 3 with every weight cut, and beside
them plain PyTorch over the same items one by one.

Resume: two ranks lose one with SIGKILL in the sixth step, one rank goes on from the fourth step's checkpoint and is killed before the
eighth, two go on from the sixth's to the end. Beside two ranks that nothing happens to, of the same stage. Ids are compared in every step
of each of the three runs, losses in the steps that count (the last time a step was taken).
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import trainer_padding
from tests.training import forked, hand_train, hand_zero, handmade
from training.attention import PIECEWISE, use_attention
from training.collate import LoadedItem, collate
from training.engine import start_ranks
from training.metrics import read_metrics
from training.model import build_tiny
from training.pack_loss import PackLoss

HAND_KINDS = ("image", "text", "images", "video", "video", "image", "text")
ATTENTIONS = {"sdpa": "sdpa", "piecewise": PIECEWISE}
STAGES = (1, 2, 3)
STEPS = 8
PACKED_GOAL, STAGES_GOAL, RESUME_GOAL = 1e-5, 1e-6, 1e-4
Ids = dict[int, list[str]]


@dataclass(frozen=True)
class Row:
    """A largest difference (or a count of them) and what it may be at most; without a goal it is for information."""

    what: str
    measured: float
    goal: float | None = None

    @property
    def missed(self) -> bool:
        return self.goal is not None and not self.measured <= self.goal  # so that NaN misses

    def __str__(self) -> str:
        told = "" if self.goal is None else f"≤ {self.goal:<8g}{'MISSED' if self.missed else 'reached'}"
        return f"{self.what:88}{self.measured:>10.2g}  {told}".rstrip()


def furthest(ours: Any, theirs: Any, relative: bool = False) -> float:
    """The largest |ours - theirs| of two tensors or (lists of) lists, or of that over |theirs|; NaN where one of them has one."""
    a, b = (torch.as_tensor(values, dtype=torch.float64) for values in (ours, theirs))
    if a.shape != b.shape:
        raise SystemExit(f"{tuple(a.shape)} values beside {tuple(b.shape)}")
    apart = (a - b).abs()
    return float((apart / b.abs() if relative else apart).max())


def hand_pack() -> tuple[list[LoadedItem], nn.Module]:
    return [handmade.item(kind, n) for n, kind in enumerate(HAND_KINDS)], handmade.model()


def wide_pack() -> tuple[list[LoadedItem], nn.Module]:
    """The first item of each kind, and those after them that still fit into the row."""
    made = [trainer_padding.item(n) for n in range(200)]
    first = {item.name.task: item for item in reversed(made)}
    row, room = [], trainer_padding.ROW
    for item in [*first.values(), *(i for i in made if i is not first[i.name.task])]:
        if len(item.input_ids) <= room:
            row.append(item)
            room -= len(item.input_ids)
    if {item.name.task for item in row} != {"vqa", "multi_image", "video", "text"}:
        raise SystemExit("a kind of item is missing in the row")
    return row, build_tiny(trainer_padding.VOCABULARY, trainer_padding.SHAPE, trainer_padding.IDS, 0)


def packed_beside_separate() -> Iterator[Row]:
    for name, (items, model) in (("hand", hand_pack()), ("wide", wide_pack())):
        use_attention(model, "sdpa")
        alone, slopes = handmade.one_by_one(model, items)
        slopes = {key: slope / len(alone) for key, slope in slopes.items()}
        pack = collate(items, handmade.PATCH)
        print(f"{name} pack: {len(items)} items, {pack.counts.tokens} tokens, {len(alone)} labelled, {pack.counts.patches} patches")
        for called, attention in ATTENTIONS.items():
            model.zero_grad()
            use_attention(model, attention)
            loss, tokens = PackLoss(model, rows=7 if name == "hand" else 100)(pack, torch.full((len(alone),), 1 / len(alone)))
            loss.backward()
            ours = handmade.whole_gradients(model)
            largest = max(float(slope.abs().max()) for slope in slopes.values())
            apart = float(torch.tensor([furthest(ours[key], slope) for key, slope in slopes.items()]).max())
            what = f"packed against separate, {name} pack, {called}"
            yield Row(f"{what}: loss", furthest([loss.item()], [alone.double().mean().item()]), PACKED_GOAL)
            yield Row(f"{what}: loss of a token", furthest(tokens, alone), PACKED_GOAL)
            yield Row(f"{what}: gradient", apart, PACKED_GOAL)
            yield Row(f"{what}: gradient, of the largest ({largest:.2g})", apart / largest, PACKED_GOAL)


def every_stage(words: Sequence[str]) -> None:
    """A rank's losses in every stage, to OUT/<rank>.json."""
    torch.set_num_threads(1)
    out, ranks = Path(words[0]), start_ranks()
    folder = out / str(ranks.rank)
    folder.mkdir()
    losses = {}
    for zero in STAGES:
        found = hand_zero.run(ranks, hand_zero.stage(), hand_zero.settings(folder, zero), hand_zero.model(), steps=STEPS)
        losses[zero] = [step["loss"] for step in found["steps"]]
    (out / f"{ranks.rank}.json").write_text(json.dumps(losses))


def stages_beside_each_other(folder: Path) -> Iterator[Row]:
    _all_end(forked.run(every_stage, [folder], ranks=2), [0, 0])
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    print(f"ZeRO-1, losses: {' '.join(f'{loss:.6f}' for loss in first['1'])}")
    found = [losses[str(zero)] for losses in (first, second) for zero in STAGES]
    apart = furthest(found, [first["1"]] * len(found), relative=True)
    yield Row(f"ZeRO-1, 2, 3, two ranks, one of text alone: losses of {STEPS} steps, relative", apart, STAGES_GOAL)
    plain, _, _ = hand_zero.plain(steps=STEPS)
    yield Row("… and plain PyTorch, item by item, relative", furthest(found, [plain] * len(found), relative=True))


def resumed_beside_whole(zero: int, folder: Path) -> Iterator[Row]:
    folder.mkdir()
    settings = ("--zero", hand_train.zero_settings(folder, zero))
    whole, out = folder / "whole", folder / "resumed"
    expected = _leg(whole, 2, [0, 0], *settings)
    legs = [
        _leg(out, 2, [1, -signal.SIGKILL], *settings, "--lose", 1, 5),
        _leg(out, 1, [-signal.SIGKILL], *settings, "--die-before", 7),
        _leg(out, 2, [0, 0], *settings),
    ]
    taken = [sorted(leg) for leg in legs]
    if taken != [[1, 2, 3, 4, 5, 6], [5, 6, 7], [7, 8, 9]]:
        raise SystemExit(f"ZeRO-{zero}: the runs took the steps {taken}")
    other = sum(leg[step] != expected[step] for leg in legs for step in leg)
    yield Row(f"resume 2 → 1 → 2 ranks, ZeRO-{zero}: steps with other ids, of {sum(map(len, legs))} steps in three runs", other, 0)
    ours, theirs = ([(r["step"], r["loss"]) for r in read_metrics(run) if r["kind"] == "step"] for run in (out, whole))
    if [step for step, _ in ours] != [step for step, _ in theirs]:
        raise SystemExit(f"ZeRO-{zero}: the numbers are of the steps {[step for step, _ in ours]}")
    apart = furthest([loss for _, loss in ours], [loss for _, loss in theirs])
    yield Row(f"resume 2 → 1 → 2 ranks, ZeRO-{zero}: losses of {len(ours)} steps", apart, RESUME_GOAL)


def _leg(out: Path, ranks: int, codes: Sequence[int], *options: object) -> Ids:
    """One run of so many ranks that ends as said: the ids of the items that it took in each step, over its ranks."""
    notes = [out / f"ids-{rank}.jsonl" for rank in range(ranks)]
    before = [len(note.read_text().splitlines()) if note.is_file() else 0 for note in notes]
    _all_end(forked.run(hand_train.main, [out, *options], ranks), codes)
    found: Ids = {}
    for note, seen in zip(notes, before, strict=True):
        for step, uids in map(json.loads, note.read_text().splitlines()[seen:]):
            found[step] = sorted([*found.get(step, []), *uids])
    return found


def _all_end(ended: tuple[list[int | None], str], codes: Sequence[int]) -> None:
    if ended[0] != list(codes):
        raise SystemExit(f"the ranks ended with {ended[0]} instead of {list(codes)}:\n{ended[1][-3000:]}")


def main() -> None:
    torch.set_num_threads(1)
    started, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="fovea-exactness-") as folder:
        (stages := Path(folder) / "stages").mkdir()
        resumed = (row for zero in STAGES for row in resumed_beside_whole(zero, Path(folder) / f"zero{zero}"))
        for rows in (packed_beside_separate(), stages_beside_each_other(stages), resumed):
            for row in rows:
                print(row, flush=True)
                missed += row.missed
    print(f"{time.monotonic() - started:.0f} s, torch {torch.__version__}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()

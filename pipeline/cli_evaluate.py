"""The command `evaluate`: a model's loss and scores on a split of a dataset."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.console import AsJson, out, progress_bars, put_line, table

if TYPE_CHECKING:
    from training.evaluation import Evaluation

log = logging.getLogger("fovea")

_SHOWN = 20  # failed items that are named on a terminal


class Precision(StrEnum):
    stored = "stored"
    fp32 = "fp32"
    bf16 = "bf16"


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="…/checkpoints/stage<k>/final, an export, or a VideoLLaMA3 in transformers' layout.")],
    dataset: Annotated[str, typer.Argument(help="The dataset's folder or URL.")],
    split: Annotated[str, typer.Option(help="Which of its splits.")] = "val",
    metrics: Annotated[str, typer.Option(help="auto, or of loss,exact_match,anls,characters,choice,iou,caption, by commas.")] = "auto",
    items: Annotated[int | None, typer.Option(min=1, help="Ask so many items of each task, always the same; else all.")] = None,
    packs: Annotated[int, typer.Option(min=1, help="The loss is taken over about so many packs, always the same.")] = 64,
    answers: Annotated[str | None, typer.Option("--out", help="A file of all answers with their scores, JSON lines.")] = None,
    gold: Annotated[
        list[str] | None, typer.Option(help="A field of the records with more right answers: FIELD, or TASK=FIELD; may be repeated.")
    ] = None,
    new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Answers made at once, at most.")] = 8,
    precision: Annotated[Precision, typer.Option(help="Of the weights; stored: as they lie in their files.")] = Precision.stored,
    profile: Annotated[str | None, typer.Option(help="Measure profile, for a model that does not say its own.")] = None,
    compress: Annotated[bool | None, typer.Option("--compress/--no-compress", help="Likewise; else as its processor does.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Likewise; else the model's directory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Loss of a model on a split, and scores of its own answers, under the profile, compression and budgets it was trained with."""
    from training.evaluation import score_checkpoint
    from training.rank_group import EndedElsewhere

    first = os.environ.get("RANK", "0") == "0"
    if not first:
        log.setLevel(logging.WARNING)
    try:
        with progress_bars(as_json or not first) as progress:
            found = score_checkpoint(
                checkpoint,
                dataset,
                split,
                [name.strip() for name in metrics.split(",") if name.strip()],
                items=items,
                packs=packs,
                gold=_by_task(gold or []),
                new_tokens=new_tokens,
                batch=batch,
                profile=profile,
                compress=compress,
                tokenizer=tokenizer,
                precision=precision.value,
                out=answers,
                progress=progress,
            )
    except EndedElsewhere as error:
        log.debug("%s", error)
        raise typer.Exit(1) from None
    if first:
        put_line(_as_json(checkpoint, dataset, found)) if as_json else _show(found)


def _by_task(fields: list[str]) -> dict[str, str]:
    """FIELD or TASK=FIELD as task → field; "" is every task."""
    return {task if equals else "": field or task for task, equals, field in (text.partition("=") for text in fields)}


def _as_json(checkpoint: str, dataset: str, found: Evaluation) -> dict[str, Any]:
    """The loss's own numbers stand at the top."""
    told: dict[str, Any] = {"checkpoint": checkpoint, "dataset": dataset, "version": found.version, "split": found.split}
    told |= {"profile": found.profile, "compress": found.compress}
    if found.loss is not None:
        told |= {**asdict(found.loss), "loss": found.loss.loss if math.isfinite(found.loss.loss) else None}
    told["scores"] = {task: {name: asdict(score) for name, score in scores.items()} for task, scores in found.scores.items()}
    told |= {"asked": found.asked, "answers": len(found.answers), "cut": found.cut, "unasked": found.unasked}
    return told | {"failed": [asdict(lost) for lost in found.failed]}


def _show(found: Evaluation) -> None:
    if found.loss is not None:
        shown = table("", "loss, nats a labelled token")
        named = [("task", found.loss.loss_by_task), ("source", found.loss.loss_by_source)]
        for what, losses in named:
            for name, loss in sorted(losses.items()):
                shown.add_row(f"{what} {name}", f"{loss:.4f}")
        shown.add_row("all", f"{found.loss.loss:.4f}")
        out.print(shown)
        skipped = f", {found.loss.skipped:,} unreadable and left out" if found.loss.skipped else ""
        out.print(f"{found.loss.items:,} items, {found.loss.labelled:,} labelled tokens of split {found.split}{skipped}", markup=False)
    if found.scores:
        shown = table("task", "metric", "score", "answers")
        for task, scores in found.scores.items():
            for name, score in scores.items():
                shown.add_row(task, name, f"{score.value:.4f}", f"{score.n:,}")
        out.print(shown)
    if found.answers or found.failed or found.unasked:
        told = f"{len(found.answers):,} answers to {found.asked:,} items"
        told += f"; {found.cut:,} were cut (--max-new-tokens)" if found.cut else ""
        told += f"; {found.unasked:,} items ask nothing (running text)" if found.unasked else ""
        out.print(told + (f"; {len(found.failed):,} items could not be read and are in no score:" if found.failed else ""), markup=False)
    for lost in found.failed[:_SHOWN]:
        out.print(f"  {lost.uid}/{lost.task}/{lost.n}: {lost.kind}: {lost.reason}", markup=False)
    if len(found.failed) > _SHOWN:
        out.print(f"  and {len(found.failed) - _SHOWN:,} more (--out lists all)", markup=False)


def register(app: typer.Typer) -> None:
    app.command()(evaluate)

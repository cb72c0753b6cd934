"""The commands that start training: train, evaluate, export, tokenizer, quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.console import AsJson, out, progress_bars, put_line


def train(
    config: Annotated[str, typer.Argument(help="A training config, or the name of one that ships with fovea (tiny, videollama3-2b).")],
    dataset: Annotated[str | None, typer.Option(help="The dataset's folder or URL; else the config's.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer's directory; else the config's.")] = None,
    out_dir: Annotated[str, typer.Option("--out", help="Where checkpoints and metrics go.")] = "runs/train",
    stage: Annotated[list[int] | None, typer.Option(help="Only this stage (may be repeated).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from checkpoints; --no-resume refuses if there are any.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train the stages in order. Safe to repeat: finished stages are skipped, an interrupted one goes on where it stopped."""
    from training.launch import train as run

    report = run(config, dataset, out_dir, tokenizer=tokenizer, stages=stage, resume=resume)
    if as_json:
        for s in report.stages:
            put_line({"stage": s.stage, "steps": s.steps, "before": s.before, "after": s.after, "weights": str(s.weights)})
        return
    table = Table("stage", "steps", "held-out loss before", "after", "weights")
    for s in report.stages:
        losses = ["" if v is None else f"{v:.3f}" for v in (s.before, s.after)]
        table.add_row(str(s.stage), f"{s.steps:,}", *losses, str(s.weights))
    out.print(table)


def export(
    checkpoint: Annotated[str, typer.Argument(help="…/checkpoints/stage<k>/final")],
    directory: Annotated[str, typer.Argument()],
) -> None:
    """A directory that `VideoLlama3ForConditionalGeneration.from_pretrained` loads."""
    from training.export import export as run

    out.print(str(run(checkpoint, directory)), markup=False)


def tokenizer(
    run: Annotated[str, typer.Argument(help="A run whose recipe was curated at least up to compose.")],
    directory: Annotated[str, typer.Option("--out")],
    vocab_size: Annotated[int, typer.Option(min=300)] = 1024,
) -> None:
    """Train a small tokenizer from the texts of a run's items: for the tiny preset, which has no pretrained language model."""
    from pipeline.ledger import open_ledger
    from pipeline.recipe import load_run_recipe
    from pipeline.tokenizer import make_tokenizer

    ledger = open_ledger(run)
    out.print(str(make_tokenizer(ledger, load_run_recipe(ledger.store), Path(directory), vocab_size)), markup=False)


def quickstart(
    run: Annotated[str, typer.Option("--run", help="Where everything goes.")] = "runs/quickstart",
) -> None:
    """Corpus in → shards → four tiny stages → report, on this machine, offline."""
    from pipeline.quickstart import quickstart as make
    from pipeline.quickstart import where_everything_lies

    with progress_bars(False) as progress:
        finished = make(Path(run), lambda text: out.print(text, markup=False), progress)
    if finished.before:
        out.print(f"all is done: {run} was finished before; delete it to start anew")
    else:
        from pipeline.cli import show_funnel
        from pipeline.ledger import open_ledger
        from pipeline.recipe import load_run_recipe
        from pipeline.report import report

        ledger = open_ledger(run)
        show_funnel(report(ledger, load_run_recipe(ledger.store)))
    table = Table("stage", "steps", "held-out loss before", "after")
    for s in finished.facts["stages"]:
        losses = ["" if v is None else f"{v:.3f}" for v in (s["before"], s["after"])]
        table.add_row(str(s["stage"]), f"{s['steps']:,}", *losses)
    out.print(table)
    for line in where_everything_lies(Path(run)):
        out.print(line, markup=False)
    out.print(f"next: your own data. Copy {run}/quickstart.yaml, put your folders under `sources`, and", markup=False)
    out.print("  fovea plan my.yaml --run runs/my && fovea curate my.yaml --run runs/my", markup=False)


def register(app: typer.Typer) -> None:
    for command in (train, export, tokenizer, quickstart):
        app.command()(command)

"""The commands around training: train, export, tokenizer, quickstart, and doctor, which tells whether they would run here."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline import cli_costs
from pipeline.console import AsJson, err, out, progress_bars, put_line, table
from shards.errors import ConfigError


def train(
    config: Annotated[str, typer.Argument(help="A training config, or the name of one that ships with fovea (tiny, videollama3-2b).")],
    dataset: Annotated[str | None, typer.Option(help="The dataset's folder or URL; else the config's.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer's directory; else the config's.")] = None,
    out_dir: Annotated[str, typer.Option("--out", help="Where checkpoints and metrics go.")] = "runs/train",
    stage: Annotated[list[int] | None, typer.Option(help="Only this stage (may be repeated).")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on from checkpoints; --no-resume refuses unfinished stages that have some."),
    ] = True,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Train with Ray Train: auto for the cluster of this machine, its address, or local.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="With --ray: so many ranks.")] = None,
    cpus_per_rank: Annotated[int, typer.Option(min=1, help="With --ray: CPUs of a rank.")] = 1,
    gpus_per_rank: Annotated[
        int | None, typer.Option(min=0, max=1, help="With --ray: GPUs of a rank; without, 1 where the cluster has any.")
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="With --ray: how often a run that lost a rank begins again.")] = 3,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what the stages would be: no model, no GPU, nothing is written.")] = False,
    device: cli_costs.DeviceName = None,
    devices: cli_costs.Devices = 1,
    mfu: cli_costs.Mfu = 0.35,
    price: cli_costs.Price = None,
    as_json: AsJson = False,
) -> None:
    """Train the stages in order. Safe to repeat: finished stages are skipped, an interrupted one goes on where it stopped."""
    if plan:
        cli_costs.show_plan(config, dataset, tokenizer, stage, device, devices, mfu, price, as_json)
        return
    if ray is None and ranks is not None:
        raise typer.BadParameter("--ranks belongs to --ray; torchrun and deepspeed have options of their own")
    from training.rank_group import EndedElsewhere, Preempted

    first = _first_rank()
    try:
        if ray is None:
            from training.launch import train as run

            report = run(config, dataset, out_dir, tokenizer=tokenizer, stages=stage, resume=resume)
        else:
            from pipeline.cluster import connect, gpus
            from training.ray_launch import RayRanks, train_on_ray

            if ray.startswith("ray://"):
                raise ConfigError("Ray Train is started on a machine of the cluster: --ray auto there, or by `ray job submit`")
            connect(None if ray == "local" else ray)
            with_gpu = min(1, int(gpus())) if gpus_per_rank is None else gpus_per_rank
            asked = RayRanks(ranks or 1, cpus_per_rank, with_gpu, restarts)
            report = train_on_ray(config, dataset, out_dir, asked, tokenizer=tokenizer, stages=stage, resume=resume)
    except EndedElsewhere as error:
        logging.getLogger("fovea").debug("%s", error)
        raise typer.Exit(1) from None
    except Preempted as error:
        err.print(str(error), markup=False)
        raise typer.Exit(143) from None  # as a process ends that SIGTERM has ended
    if not first:
        return
    if as_json:
        for s in report.stages:
            put_line({"stage": s.stage, "steps": s.steps, "before": s.before, "after": s.after, "weights": str(s.weights)})
        return
    shown = table("stage", "steps", "held-out loss before", "after", "weights")
    for s in report.stages:
        losses = ["" if v is None else f"{v:.3f}" for v in (s.before, s.after)]
        shown.add_row(str(s.stage), f"{s.steps:,}", *losses, str(s.weights))
    out.print(shown)


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
    shown = table("stage", "steps", "held-out loss before", "after")
    for s in finished.facts["stages"]:
        losses = ["" if v is None else f"{v:.3f}" for v in (s["before"], s["after"])]
        shown.add_row(str(s["stage"]), f"{s['steps']:,}", *losses)
    out.print(shown)
    for line in where_everything_lies(Path(run)):
        out.print(line, markup=False)
    out.print(f"next: your own data. Copy {run}/quickstart.yaml, put your folders under `sources`, and", markup=False)
    out.print("  fovea plan my.yaml --run runs/my && fovea curate my.yaml --run runs/my", markup=False)
    out.print(f"  fovea train tiny --dataset runs/my/dataset --tokenizer {run}/tokenizer --out runs/my-train", markup=False)


def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe whose models are looked for, too.")] = None,
    override: Annotated[list[str] | None, typer.Option("--override", help="A YAML file laid over the recipe.")] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, devices, compiler, libraries, weights, a recipe's models: will Fovea run here? Exit code 1 if something will not."""
    from pipeline.doctor import examine, models_of

    findings = examine()
    if recipe is not None:
        findings += models_of(recipe, override or ())
    bad = [finding for finding in findings if finding.state == "bad"]
    if as_json:
        for finding in findings:
            put_line(asdict(finding))
    else:
        shown = table("", "what", "found", "what to do")
        for finding in findings:
            sign = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}[finding.state]
            shown.add_row(sign, *(escape(text) for text in (finding.what, finding.found, finding.mend)))
        out.print(shown)
        out.print(f"{len(bad)} of {len(findings)} findings are bad" if bad else "Fovea will run here", markup=False)
    if bad:
        raise typer.Exit(1)


def _first_rank() -> bool:
    """Whether this process is the one that speaks, of all that torchrun started; the others say warnings only. Asked before there is work,
    for alone RANK is set later."""
    first = os.environ.get("RANK", "0") == "0"
    if not first:
        logging.getLogger("fovea").setLevel(logging.WARNING)
    return first


def register(app: typer.Typer) -> None:
    for command in (train, export, tokenizer, quickstart, doctor):
        app.command()(command)

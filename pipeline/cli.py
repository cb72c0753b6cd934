"""The command line. Parses arguments, speaks to people or to machines (--json), turns FoveaError into a message and an exit code."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import Annotated, Any, NoReturn

import typer
from rich.logging import RichHandler
from rich.markup import escape

from pipeline import cli_costs, cli_duplicates, cli_embeddings, cli_evaluate, cli_frames, cli_training
from pipeline.console import AsJson, err, out, progress_bars, put_line, short, show_models, table
from shards.errors import FoveaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a dirty corpus to shards, from shards to a trained model.",
)
shards_app = typer.Typer(no_args_is_help=True, help="Look at a dataset.")
app.add_typer(shards_app, name="shards")
cli_training.register(app)
cli_evaluate.register(app)
cli_costs.register(app)
app.command()(cli_embeddings.embeddings)
app.command()(cli_duplicates.duplicates)
app.command()(cli_frames.frames)

Overrides = Annotated[
    list[str] | None, typer.Option("--override", help="A YAML file laid over the recipe; may be given again, later ones win.")
]
RunDir = Annotated[str, typer.Option("--run", help="The run directory: a path or an fsspec URL.")]


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> NoReturn:
    """Entry point of the command `fovea`. Exit codes: 0 done, 1 an error the message explains, 2 wrong usage, 3 samples pending, 130
    stopped by Ctrl-C, 143 by SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err, show_path=False, show_time=False)])
    logging.getLogger("fovea").setLevel(logging.INFO)
    try:
        app()
    except FoveaError as error:
        err.print(f"[red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            err.print("stopped; what was committed is kept, the same command goes on from there")
        raise
    sys.exit(0)


@app.callback()
def started(local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0) -> None:
    """The deepspeed launcher puts --local_rank=N before the command; the number is in LOCAL_RANK, too."""


@app.command()
def curate(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships with fovea.")],
    run: RunDir,
    address: Annotated[str | None, typer.Option(help="auto, ray://host:port, or nothing for this machine.")] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Try errored samples again.")] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this operator; no shards are written.")] = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: bring the run up to date with its sources, write the dataset. Safe to repeat, safe to kill."""
    from pipeline.recipe import load_recipe

    # before anything heavy: a recipe that cannot run is refused at once
    loaded = load_recipe(recipe, until, overrides=override or (), run=run)
    from pipeline.curate import curate as run_it
    from pipeline.ledger import open_ledger
    from pipeline.provision import model_states
    from pipeline.report import report as make
    from pipeline.report import write_report

    models = model_states(loaded)
    if models and not as_json:
        show_models(err, models)
    with progress_bars(as_json) as progress:
        outcome = run_it(loaded, run, address=address, retry_errors=retry_errors, progress=progress, models=models)
    ledger = open_ledger(run)
    found = make(ledger, loaded)
    write_report(ledger, found)
    if as_json:
        put_line(
            {
                "counts": outcome.counts,
                "calls": outcome.calls,
                "media_opened": outcome.media_opened,
                "crashes": outcome.crashes,
                "changes": asdict(outcome.changes),
                "dataset": asdict(outcome.dataset) if outcome.dataset else None,
                "seconds": {k: round(v, 3) for k, v in outcome.seconds.items()},
                "models": [state.to_json() for state in models],
            }
        )
    else:
        show_funnel(found)
        calls = ", ".join(f"{n} {c:,}" for n, c in outcome.calls.items() if c) or "none"
        seconds = f"{outcome.seconds['total']:.1f} s, of them Ray's start {outcome.seconds['ray']:.1f} s"
        out.print(f"step calls: {calls}; media opened: {outcome.media_opened:,}; {seconds}")
        if outcome.dataset:
            d = outcome.dataset
            out.print(f"dataset: {d.path} version {d.version}: {d.samples:,} samples, {d.written} shards written, {d.reused} reused")
        out.print(f"report: {run.rstrip('/')}/report.md")
    if outcome.pending and until is None:
        err.print(f"{outcome.pending:,} samples are pending; the same command goes on with them")
        raise typer.Exit(3)


@app.command()
def plan(recipe: Annotated[str, typer.Argument()], run: RunDir, override: Overrides = None, as_json: AsJson = False) -> None:
    """What `curate` would run, what is cached, what it would cost. Starts nothing, changes nothing."""
    from pipeline.plan import make_plan
    from pipeline.provision import model_states
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides=override or (), run=run)
    models = model_states(loaded)
    found = make_plan(loaded, run)
    steps = [
        {"step": s.name, "calls": s.calls, "exact": s.exact, "cached": s.cached, "seconds": s.seconds, "beyond": s.beyond}
        for s in found.steps
    ]
    if as_json:
        flips = [{"from": a, "to": b, "samples": n} for (a, b), n in found.flips.items()]
        told = {"changes": asdict(found.changes), "phases": found.phases, "steps": steps, "counts": found.counts, "flips": flips}
        put_line({**told, "models": [state.to_json() for state in models]})
        return
    c = found.changes
    out.print(f"{c.total:,} samples: {c.new:,} new, {c.changed:,} changed, {c.gone:,} gone since the last run")
    for i, phase in enumerate(found.phases):
        out.print(f"phase {i + 1}: {phase}", markup=False)
    shown = table("step", "calls", "cached rows", "seconds at this run's cost so far")
    for s in found.steps:
        seconds = "" if s.seconds is None else f"{s.seconds:,.1f}"
        beyond = f", and {s.beyond}" if s.beyond else ""
        shown.add_row(s.name, f"{'' if s.exact else '≤ '}{s.calls:,}{beyond}", f"{s.cached:,}", seconds)
    out.print(shown)
    if models:
        show_models(out, models)
    out.print(" + ".join(f"{n:,} {v}" for v, n in found.counts.items() if v != "inputs") + f" = {found.counts['inputs']:,}")
    for (a, b), n in found.flips.items():
        out.print(f"{n:,} samples go from {a} to {b}")


@app.command()
def explain(run: Annotated[str, typer.Argument()], uid: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """A sample's whole life: source, scores, the rule or duplicate that decided, shard and offset, items."""
    from pipeline.explain import explain as tell

    ledger, recipe = _open(run)
    found = tell(ledger, recipe, uid)
    if as_json:
        put_line(found)
        return
    out.print(f"[bold]{found['verdict']}[/]" + (f" by {found['step']}" if found["step"] else "") + f"  {found['uid']}")
    if found["reason"]:
        out.print(found["reason"], markup=False)
    out.print(f"source {found['source']}, key {found['key']}", markup=False)
    for medium in found["media"]:
        place = "" if medium["offset"] < 0 else f" at {medium['offset']}"
        out.print(f"  {medium['kind']} {medium['path']}{place}, {medium['length']:,} bytes, sha256 {medium['sha256']}", markup=False)
    for key, value in found["texts"].items():
        out.print(f"  {key}: {short(value)}", markup=False)
    for event in found["life"]:
        if "rule" in event:
            out.print(f"rule {event['rule']}: {event['said']}  ({event['if']})", markup=False)
        else:
            out.print(f"step {event['step']}: {_scores(event)}", markup=False)
    for child in found["children"]:
        why = f" by {child['step']}: {child['reason']}" if child["step"] else ""
        out.print(f"child {child['uid']}  {child['key']}  {child['verdict']}{why}", markup=False)
    if found["placement"]:
        p = found["placement"]
        out.print(f"in {p['shard']} at offset {p['offset']:,}, {p['bytes']:,} bytes, split {p['split']}")
        for medium in p.get("transformed", ()):
            out.print(f"  {medium['name']} is made of the original by {medium['transform']}", markup=False)
    for item in found["items"]:
        counts = "; ".join(f"{k}: {v['text_tokens']} text + {v['kept_tokens']} visual tokens" for k, v in item["measured"].items())
        out.print(f"  item {item['task']} {item['n']}" + (f"  {counts}" if counts else ""))


@app.command()
def query(run: Annotated[str, typer.Argument()], sql: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """SQL over the views samples, items, shards, costs."""
    import duckdb

    from pipeline.query import connect

    ledger, recipe = _open(run)
    connection = connect(ledger, recipe)
    try:
        cursor = connection.execute(sql)
    except duckdb.Error as error:
        err.print(f"the query cannot run: {error}", markup=False)
        raise typer.Exit(1) from error
    names = [d[0] for d in cursor.description or []]
    if as_json:
        while rows := cursor.fetchmany(10_000):
            for row in rows:
                put_line(dict(zip(names, row, strict=True)))
        return
    shown = table(*names)
    rows = cursor.fetchmany(1_000)
    for row in rows:
        shown.add_row(*("" if v is None else escape(short(v)) for v in row))
    out.print(shown)
    if len(rows) == 1_000:
        err.print("the first 1,000 rows; --json prints all")


@app.command()
def report(run: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """Write report.md and report.json anew and show the funnel."""
    from pipeline.report import report as make
    from pipeline.report import write_report

    ledger, recipe = _open(run)
    found = make(ledger, recipe)
    write_report(ledger, found)
    put_line(found) if as_json else show_funnel(found)


@shards_app.command("verify")
def shards_verify(dataset: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """Read every byte of a dataset against its checksums; exit code 1 if anything is damaged."""
    from shards.verify import verify

    faults = verify(dataset)
    for fault in faults:
        if as_json:
            put_line(asdict(fault))
        else:
            out.print(" ".join(str(v) for v in (fault.shard, fault.uid, fault.member, fault.what) if v), markup=False)
    if faults:
        raise typer.Exit(1)
    if not as_json:
        out.print("every byte is as the manifest says")


@shards_app.command("show")
def shards_show(
    dataset: Annotated[str, typer.Argument()], uid: Annotated[str | None, typer.Argument()] = None, as_json: AsJson = False
) -> None:
    """The shards of a dataset, or one sample of it."""
    from shards.reader import Dataset

    opened = Dataset.open(dataset)
    if uid is not None:
        (raw,) = opened.read([uid])
        record = json.loads(raw.json)
        put_line(record) if as_json else out.print_json(data=record)
        return
    manifest = opened.manifest
    if as_json:
        for shard in manifest.shards:
            put_line(asdict(shard))
        return
    out.print(f"{manifest.name}, version {manifest.version}, profiles: {', '.join(manifest.profiles) or 'none'}")
    shown = table("shard", "split", "samples", "items", "MB", "sha256")
    for shard in manifest.shards:
        shown.add_row(shard.path, shard.split, f"{shard.samples:,}", f"{shard.items:,}", f"{shard.bytes / 1e6:,.1f}", shard.sha256[:16])
    out.print(shown)


def _scores(event: dict[str, Any]) -> str:
    """What a step said of a sample, on one line."""
    scores = event["scores"]
    if scores is None:
        return "not run yet" if event["applies"] else "says nothing of this kind of sample"
    if "error" in scores:
        return str(scores["error"])
    told = ", ".join(f"{k} {'-' if v is None else short(v)}" for k, v in scores.items())
    return told + cli_duplicates.told_of_copies(event)


def _open(run: str) -> tuple[Any, Any]:
    """The ledger of a run for reading, and the recipe it was last curated with."""
    from pipeline.ledger import open_ledger
    from pipeline.recipe import load_run_recipe

    ledger = open_ledger(run)
    return ledger, load_run_recipe(ledger.store)


def show_funnel(found: dict[str, Any]) -> None:
    """The funnel with reasons as tables."""
    from pipeline.report import STAGE_HEAD, stage_row

    shown = table("source", *found["verdicts"])
    for source, verdicts in sorted(found["sources"].items()):
        shown.add_row(source, *(f"{verdicts.get(v, 0):,}" for v in found["verdicts"]))
    out.print(shown)
    stages = table(*STAGE_HEAD)
    for stage in found["funnel"]:
        stages.add_row(*("" if v is None else f"{v:,}" if isinstance(v, int) else escape(str(v)) for v in stage_row(stage)))
    out.print(stages)
    if found["reasons"]:
        reasons = table("verdict", "step", "reason", "samples")
        for r in found["reasons"]:
            reasons.add_row(r["verdict"], r["step"], escape(short(r["reason"] or "")), f"{r['samples']:,}")
        out.print(reasons)
    out.print(" + ".join(f"{found['verdicts'][v]:,} {v}" for v in found["verdicts"]) + f" = {found['inputs']:,} inputs")


if __name__ == "__main__":
    main()

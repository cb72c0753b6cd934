"""Corpus in, four tiny stages out, on a laptop, offline: what `fovea quickstart` runs. Safe to repeat."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

log = logging.getLogger("fovea")

VOCABULARY = 1024
DONE = "quickstart.json"
MADE = ("dataset/manifest.json", "export/config.json", "report.md")  # what was taken away is made again

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What was made, and whether it was there before."""

    folder: Path
    facts: dict[str, Any]
    before: bool


def quickstart(folder: Path, say: Say, progress: Callable[[str, int, int], None], training: str = "tiny") -> Finished:
    """Make everything under `folder`: corpus/, the ledger, dataset/, tokenizer/, checkpoints/, export/, report.md. Raises FoveaError.

    training   the training config: a name or a file.
    """
    done = folder / DONE
    if done.is_file() and all((folder / made).is_file() for made in MADE):
        return Finished(folder, json.loads(done.read_text()), before=True)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    recipe = _timed(seconds, "corpus", lambda: _corpus(folder, say))
    _timed(seconds, "curate", lambda: _curate(folder, recipe, say, progress))
    report = _timed(seconds, "train", lambda: _train(folder, training, say))
    _timed(seconds, "export", lambda: _export(folder, report, say))
    facts = {
        "seconds": {k: round(v, 1) for k, v in seconds.items()},
        "stages": [{"stage": s.stage, "steps": s.steps, "before": s.before, "after": s.after} for s in report.stages],
    }
    _append_report(folder, facts)
    scratch = done.with_suffix(".tmp")
    scratch.write_text(json.dumps(facts, indent=1) + "\n")
    scratch.replace(done)
    return Finished(folder, facts, before=False)


def _corpus(folder: Path, say: Say) -> Path:
    from pipeline.corpus import make_corpus

    say("1/4  a small corpus from the photographs that installed packages ship, with copies and broken files planted")
    make_corpus(folder / "corpus")
    recipe = folder / "quickstart.yaml"
    text = (resources.files("configs.curation") / "quickstart.yaml").read_text("utf-8")
    recipe.write_text(text.replace("${FOVEA_QUICKSTART:-runs/quickstart}", str(folder.resolve())))
    return recipe


def _curate(folder: Path, recipe_file: Path, say: Say, progress: Callable[[str, int, int], None]) -> None:
    from pipeline.curate import curate
    from pipeline.ledger import open_ledger
    from pipeline.recipe import load_recipe
    from pipeline.report import report, write_report
    from pipeline.tokenizer import make_tokenizer

    say("2/4  curating it on a local Ray: probe, rules, duplicates, OCR, items, token counts, shards")
    run = str(folder)
    if not (folder / "tokenizer").is_dir():
        first = load_recipe(str(recipe_file), until="compose")
        curate(first, run, progress=progress)
        make_tokenizer(open_ledger(run), first, folder / "tokenizer", VOCABULARY)
    recipe = load_recipe(str(recipe_file))
    curate(recipe, run, progress=progress)
    ledger = open_ledger(run)
    write_report(ledger, report(ledger, recipe))
    import ray

    ray.shutdown()  # the trainer needs both cores


def _train(folder: Path, config: str, say: Say) -> Any:
    from training.launch import train

    say("3/4  training four tiny stages (the first time, DeepSpeed compiles a small op: about 45 s)")
    return train(config, str(folder / "dataset"), folder, tokenizer=str(folder / "tokenizer"))


def _export(folder: Path, report: Any, say: Say) -> None:
    from training.export import export

    say("4/4  exporting to a directory that transformers loads")
    if not (folder / "export" / "config.json").is_file():
        export(report.weights, folder / "export")


def _append_report(folder: Path, facts: dict[str, Any]) -> None:
    """The training half of report.md: loss before and after each stage on held-out items, and where everything lies."""
    from pipeline.report import ADDED

    lines = [
        "",
        "## Training",
        "",
        "Held-out loss (nats a labelled token, split `val`):",
        "",
        "| stage | steps | before | after |",
        "|---|---|---|---|",
    ]
    for s in facts["stages"]:
        lines.append(f"| {s['stage']} | {s['steps']} | {_loss(s['before'])} | {_loss(s['after'])} |")
    lines += ["", f"Seconds: {', '.join(f'{k} {v}' for k, v in facts['seconds'].items())}.", ""]
    lines += ["", *where_everything_lies(folder), ""]
    report = folder / "report.md"
    ledgers, _, _ = report.read_text("utf-8").partition(ADDED)
    report.write_text(ledgers + ADDED + "\n".join(lines), "utf-8")


def where_everything_lies(folder: Path) -> list[str]:
    return [
        f"- {folder}/report.md — this funnel, costs and losses",
        f"- {folder}/log, {folder}/tables — the ledger:",
        f'  `fovea query {folder} "select verdict, step, reason, count(*) from samples group by all"`',
        f"- {folder}/dataset/manifest.json — the shards: `fovea shards show {folder}/dataset`",
        f"- {folder}/checkpoints/stage1 … stage4 — weights of each stage; metrics.jsonl, tensorboard/ — how they came about",
        f'- {folder}/export — `VideoLlama3ForConditionalGeneration.from_pretrained("{folder}/export")`',
    ]


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    at = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - at
    return result

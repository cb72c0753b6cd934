"""Proof that the line teaches video: real handwritten digits that move and change, from files over curation and shards to answers.

python -m benchmarks.motion [--out DIR] [--threads 1] [--together 2]     both seeds, compression on and off, the table and its goals
python -m benchmarks.motion --seed 1 [--tune]                            one seed; JSON lines

A seed draws clips and pictures, curates them (`fovea curate`), learns pictures (the image stage), then clips with pictures mixed in, from
the image stage's weights: once on the tokens that compression keeps, once on all (`fovea train`); and asks about originals that nothing
before has shown, and about the same clips all grey (`fovea evaluate`). What has been done in its folder is not done again.
`--tune` asks about a part of the training originals instead, which is left out of training: settings are chosen there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.digits_line import Cost, Keeper, quiet_seconds
from benchmarks.motion_run import Sizes, config_of, curate, draw, kept, scores_of

Run = Literal["on", "off"]
RUNS: tuple[Run, ...] = get_args(Run)
SEEDS = (1, 2)
SIZES = Sizes(pictures=6_000, clips={"way": 4_000, "moves": 3_000, "order": 4_000, "changes": 2_500}, asked=360)
MINUTES = 10  # of a run on clips, from the image stage's weights, on the tokens that compression keeps
GOALS = {"clip_name": 0.90, "order": 0.80, "way": 0.90, "name": 0.85}
APART = 0.03  # of compression on and off, at most
DROPPED = 0.50  # of the tokens of clips, at least
# what is reached by who always says the most frequent answer, with room for three standard deviations of 360 answers
CHANCE = {"blank_clip_name": 0.16, "blank_way": 0.32, "blank_order": 0.04, "blank_changes": 0.32}


@dataclass(frozen=True, slots=True)
class Result:
    """pictures, clips: what the training of the two stages cost; dropped: share of the clips' tokens, 0 without compression.
    quiet_seconds: of all their steps, as on a machine that does nothing else (digits_line.quiet_seconds)."""

    run: Run
    seed: int
    asked_of: str
    scores: Mapping[str, float]
    dropped: float
    pictures: Cost
    clips: Cost
    quiet_seconds: float


def one_seed(seed: int, out: Path, tuning: bool, threads: int, runs: Sequence[Run] = RUNS) -> list[Result]:
    """All of a seed in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    line = Keeper(out, threads)
    draw(out, seed, tuning, SIZES)
    corpus = curate(line)
    start = line.train("pictures", config_of("pictures", seed), corpus.train, corpus.words)
    results = []
    for run in runs:
        weights = line.train(run, config_of("clips", seed, start, compress=run == "on"), corpus.train, corpus.words)
        scores = scores_of(line.ask(run, weights, corpus.held_out))
        dropped = 1 - kept(corpus.train) if run == "on" else 0.0
        costs = line.costs()
        quiet = round(sum(quiet_seconds(out / name) for name in ("pictures", run)), 1)
        told = "tune" if tuning else "held_out"
        results.append(Result(run, seed, told, scores, round(dropped, 4), costs["train pictures"], costs[f"train {run}"], quiet))
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown: a row for each run and what is asked of it, with its goal."""
    lines = ["| seed | compression | what | | goal | |", "|---|---|---|---|---|---|"]

    def row(result: Result, what: str, value: float, goal: str = "", reached: bool | None = None) -> None:
        told = "" if reached is None else "reached" if reached else "MISSED"
        lines.append(f"| {result.seed} | {result.run} | {what} | {value:.3f} | {goal} | {told} |")

    for result in results:
        for what, value in result.scores.items():
            if what in GOALS:
                row(result, what, value, f"≥ {GOALS[what]:.2f}", value >= GOALS[what])
            elif what in CHANCE:
                row(result, what, value, f"≤ {CHANCE[what]:.2f}", value <= CHANCE[what])
            else:
                row(result, what, value)
        if result.run == "on":
            row(result, "tokens of clips dropped", result.dropped, f"≥ {DROPPED:.2f}", result.dropped >= DROPPED)
        minutes = "minutes of the run on clips"
        if result.run == "on":
            row(result, minutes, result.clips.seconds / 60, f"≤ {MINUTES}", result.clips.seconds <= 60 * MINUTES)
        else:
            row(result, minutes, result.clips.seconds / 60)
        row(result, "… of the image stage before it", result.pictures.seconds / 60)
        row(result, "… of the steps of both, if nothing else ran", result.quiet_seconds / 60)
        row(result, "… of processor, both", (result.pictures + result.clips).cpu_seconds / 60)
    for seed in dict.fromkeys(result.seed for result in results):
        of = {result.run: result for result in results if result.seed == seed}
        if len(of) == len(RUNS):
            for what in GOALS:
                apart = of["on"].scores[what] - of["off"].scores[what]
                row(of["on"], f"{what}, on less off", apart, f"within {APART}", abs(apart) <= APART)
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--run", choices=RUNS, help="one of them alone")
    arguments.add_argument("--tune", action="store_true", help="ask about a part of the training originals, which is left out of training")
    arguments.add_argument("--threads", type=int, default=1, help="of torch in a run")
    arguments.add_argument("--together", type=int, default=1, help="seeds side by side; with more than one the minutes are not a run's own")
    arguments.add_argument("--out", type=Path, default=Path("runs/motion"))
    given = arguments.parse_args()
    if given.tune and given.seed is None:
        arguments.error("--tune belongs to one seed: the table is of held-out originals")
    seeds = SEEDS if given.seed is None else (given.seed,)
    runs = RUNS if given.run is None else (given.run,)

    def do(seed: int) -> list[Result]:
        return one_seed(seed, given.out / f"{'tune-' if given.tune else ''}{seed}", given.tune, given.threads, runs)

    with ThreadPoolExecutor(given.together) as pool:
        results = [result for found in pool.map(do, seeds) for result in found]
    for result in results:
        print(json.dumps(asdict(result)))
    shown = table(results)
    print(shown)
    if given.seed is None and "MISSED" in shown:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Proof that the whole line teaches: real handwritten digits, from files over curation and shards through the stages to answers.

python -m benchmarks.digits [--out DIR] [--threads 1] [--together 2]      all runs of the table, two side by side, and the goals
python -m benchmarks.digits --run main --seed 1 [--tune]                  one run; a JSON line at the end

main      all parts from random numbers: one digit, then one, several and pairs together.
paper     the paper's order: the language model learns from texts, is then frozen, and encoder and projector learn to speak to it.
shuffled  main, with the labels of the originals dealt at random among them: a model that still answers has been told elsewhere.

Every run draws its pictures, curates them (`fovea curate`), makes a tokenizer (`fovea tokenizer`), trains (`fovea train`) and asks about
pictures of held-out originals (`fovea evaluate`). `--tune` asks about a part of the training originals instead, which is then not trained
on: settings are chosen there, and held-out originals are for reports alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from benchmarks.digits_data import KINDS, Kind, originals, scenes, shuffled, write_pictures, write_words
from benchmarks.digits_line import Line, parameters, timed
from benchmarks.digits_score import Scores, one_digit_alone, scores_of

HERE = Path(__file__).parent / "digits"
RUNS = ("main", "paper", "shuffled")
SEEDS = (1, 2)
PICTURES: dict[Kind, int] = {"name": 10_000, "read": 8_000, "larger": 12_000}
ASKED: dict[Kind, int] = {"name": 360, "read": 400, "larger": 400}  # every held-out original is named once
TALKS = 4_000
VOCABULARY = 512
MINUTES = 10

# run → score → (least, most)
GOALS: dict[str, dict[str, tuple[float, float]]] = {
    "main": {"name": (0.90, 1.0), "larger": (0.80, 1.0)},
    "paper": {"name": (0.80, 1.0)},
    "shuffled": {"name": (0.0, 0.18), "larger": (0.40, 0.60)},
}


@dataclass(frozen=True, slots=True)
class Result:
    """seconds: wall time of draw, curate, train, ask, and of all; steps: optimizer steps of each stage."""

    run: str
    seed: int
    asked_of: str
    scores: Scores
    larger_by_one_digit: float
    seconds: Mapping[str, float]
    steps: Mapping[int, int]
    parameters: int


def one_run(run: str, seed: int, out: Path, tuning: bool, threads: int) -> Result:
    """The whole line in `out`, which is made anew."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    line = Run(out, threads)
    seconds: dict[str, float] = {}
    began = time.monotonic()
    pairs = timed(seconds, "draw", lambda: draw(out, seed, tuning, wrong=run == "shuffled"))
    timed(seconds, "curate", line.curate)
    weights = timed(seconds, "train", lambda: line.train(run, seed))
    scores = timed(seconds, "ask", lambda: line.ask(weights))
    seconds["all"] = time.monotonic() - began
    config = yaml.safe_load((out / "training.yaml").read_text("utf-8"))
    return Result(
        run,
        seed,
        "tune" if tuning else "held_out",
        scores,
        round(one_digit_alone(pairs), 3),
        {what: round(spent, 1) for what, spent in seconds.items()},
        {number: block["steps"] for number, block in config["stages"].items()},
        parameters(weights),
    )


def draw(out: Path, seed: int, tuning: bool, wrong: bool) -> list[tuple[int, int]]:
    """Files under out/train and out/held_out. Returns the pairs that are asked about. `wrong` deals the training labels at random."""
    learned = originals("train", tuning)
    learned = shuffled(learned, seed) if wrong else learned
    asked = originals("tune" if tuning else "held_out")
    pairs: list[tuple[int, int]] = []
    for kind in KINDS:
        write_pictures(out / "train", kind, scenes(learned, kind, PICTURES[kind], seed), learned, more=True)
        questions = scenes(asked, kind, ASKED[kind], seed + 1_000_000)
        write_pictures(out / "held_out", kind, questions, asked)
        pairs += [(q.labels[0], q.labels[1]) for q in questions if kind == "larger"]
    write_words(out / "train", TALKS, seed)
    return pairs


class Run(Line):
    """The commands of a run in its folder."""

    def curate(self) -> None:
        train, held_out, words = self.out / "curated", self.out / "curated_held_out", self.out / "tokenizer"
        self.fovea("curate", HERE / "train.yaml", "--run", train, "--until", "compose")
        self.fovea("tokenizer", train, "--out", words, "--vocab-size", VOCABULARY)
        self.fovea("curate", HERE / "train.yaml", "--run", train)
        self.fovea("curate", HERE / "held_out.yaml", "--run", held_out)

    def train(self, run: str, seed: int) -> Path:
        """Weights of the last stage."""
        config = yaml.safe_load((HERE / f"{'paper' if run == 'paper' else 'main'}.yaml").read_text("utf-8"))
        config["seed"] = seed
        written = self.out / "training.yaml"
        written.write_text(yaml.safe_dump(config), "utf-8")
        data, words = self.out / "curated" / "dataset", self.out / "tokenizer"
        self.fovea("train", written, "--dataset", data, "--tokenizer", words, "--out", self.out / "train_out")
        return self.out / "train_out" / "checkpoints" / f"stage{max(config['stages'])}" / "final"

    def ask(self, weights: Path) -> Scores:
        data, answers = self.out / "curated_held_out" / "dataset", self.out / "answers.jsonl"
        options = ("--split", "train", "--metrics", "exact_match", "--max-new-tokens", 5, "--batch", 64, "--out", answers)
        self.fovea("evaluate", weights, data, *options)
        return scores_of(answers)


def table(results: Sequence[Result]) -> str:
    """Markdown: a row for each run and score, with its goal."""
    lines = ["| run | seed | score | | goal | |", "|---|---|---|---|---|---|"]
    for result in results:
        values = {k: v for k, v in asdict(result.scores).items() if k != "pictures"}
        for name, value in values.items():
            least, most = GOALS[result.run].get(name, (None, None))
            if least is None or most is None:
                lines.append(f"| {result.run} | {result.seed} | {name} | {value:.3f} | | |")
                continue
            goal = f"≥ {least:.2f}" if most == 1 else f"≤ {most:.2f}" if least == 0 else f"{least:.2f} to {most:.2f}"
            lines.append(
                f"| {result.run} | {result.seed} | {name} | {value:.3f} | {goal} | {'reached' if least <= value <= most else 'MISSED'} |"
            )
        minutes = result.seconds["train"] / 60
        told = "reached" if minutes <= MINUTES else "MISSED"
        lines.append(f"| {result.run} | {result.seed} | minutes of training | {minutes:.1f} | ≤ {MINUTES} | {told} |")
        lines.append(f"| {result.run} | {result.seed} | minutes of the whole line | {result.seconds['all'] / 60:.1f} | | |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run", choices=RUNS)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--tune", action="store_true", help="ask about a part of the training originals, which is left out of training")
    arguments.add_argument("--threads", type=int, default=1, help="of torch in a run")
    arguments.add_argument("--together", type=int, default=2, help="runs side by side")
    arguments.add_argument("--out", type=Path, default=Path("runs/digits"))
    given = arguments.parse_args()
    wanted = [(given.run, given.seed)] if given.run else [(run, seed) for run in RUNS for seed in SEEDS]
    if given.run is None and given.tune:
        arguments.error("--tune belongs to one run: the table is of held-out originals")

    def do(which: tuple[str, int]) -> Result:
        run, seed = which
        result = one_run(run, seed, given.out / f"{run}-{seed}", given.tune, given.threads)
        print(json.dumps(asdict(result)), flush=True)
        return result

    with ThreadPoolExecutor(given.together) as pool:
        results = list(pool.map(do, wanted))
    if given.run is None:
        shown = table(results)
        print(shown)
        if "MISSED" in shown:
            raise SystemExit(1)


if __name__ == "__main__":
    main()

"""The VideoLLaMA3 report's claims in miniature, on digits in motion: as it comes out, no goal to be reached (docs/experiments.md).

python -m benchmarks.experiments [--seeds 1 2 3] [--together 2]      everything that is not done yet, seed by seed, then the table
python -m benchmarks.experiments --arm scratch --seed 1              one arm, and what it needs that is not done yet
python -m benchmarks.experiments --table                             the table of what is done

after_images   clips, from the weights of an image stage: the arm that all others are held against. Captions are right, compression is on.
scratch        the same clips and steps, from random numbers.
scratch_time   likewise, for as long as image stage and after_images take together.
full           after_images without compression, at equal steps.
full_time      likewise, for as long as after_images takes.
dirty          a third of the captions wrong, copies planted; as many records and steps as after_images.
curated        the dirty corpus, curated; as many steps.

An arm's result is a line of <out>/results.jsonl. A command that has ended is not run again, one that was killed is begun anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from benchmarks.digits_line import Keeper, lines_of
from benchmarks.experiments_dirt import SOURCES, hear, keys_of, plant
from benchmarks.experiments_table import table
from benchmarks.motion_run import HERE, Corpus, Sizes, config_of, curate, draw, scores_of

Arm = Literal["after_images", "scratch", "scratch_time", "full", "full_time", "dirty", "curated"]
ARMS: tuple[Arm, ...] = get_args(Arm)
SEEDS = (1, 2, 3)
ASKED = ("clip_name", "order")
SHAPE = {"llm_layers": 2, "kv_heads": 2}  # of the tiny preset: without the way a digit moves, two layers of the LLM are enough
SIZES = Sizes(4_000, {"shown": 2_500, "order": 3_500}, 240, ASKED, blank=False)


class Seed:
    """The arms of one seed in its folder: they share corpus and image stage."""

    def __init__(self, seed: int, out: Path, threads: int, times: float, sizes: Sizes) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.seed, self.line = seed, Keeper(out, threads)
        self.times = times
        draw(out, seed, False, sizes)
        self.corpus: Corpus = curate(self.line, "clean", "asked")

    def arm(self, name: Arm) -> dict[str, Any]:
        """What is to be told of an arm, once it is trained and asked."""
        by_name: dict[Arm, Callable[[], Path]] = {
            "after_images": lambda: self._trained("after_images", 1, self._pictures()),
            "scratch": lambda: self._trained("scratch", 1, None),
            "scratch_time": lambda: self._trained("scratch_time", self._times_for_all(), None),
            "full": lambda: self._trained("full", 1, self._pictures(), compress=False),
            "full_time": lambda: self._trained("full_time", self._times_of("full"), self._pictures(), compress=False),
            "dirty": self._dirty,
            "curated": self._curated,
        }
        weights = by_name[name]()
        scores = scores_of(self.line.ask(name, weights, self.corpus.held_out))
        cost = self.line.costs()[f"train {name}"]
        stages = yaml.safe_load((self.line.out / f"{name}.yaml").read_text("utf-8"))["stages"]
        steps = {"steps": sum(stage["steps"] for stage in stages.values())}
        found = self.line.out / "found.json"
        more = {"found": json.loads(found.read_text("utf-8"))} if name == "curated" else {}
        return {
            "arm": name,
            "seed": self.seed,
            **steps,
            **asdict(cost),
            "scores": scores,
            **more,
        }

    def _image_stage(self) -> dict[str, Any]:
        config = config_of("pictures", self.seed, times=self.times)
        config["model"]["tiny"].update(SHAPE)
        return config

    def _pictures(self) -> Path:
        return self.line.train("pictures", self._image_stage(), self.corpus.train, self.corpus.words)

    def _trained(self, name: Arm, times: float, start: Path | None, data: Path | None = None, compress: bool = True) -> Path:
        config = config_of("clips_alone", self.seed, start, self.times * times, compress=compress)
        if start is None:
            config["model"] = self._image_stage()["model"]
        return self.line.train(name, config, data or self.corpus.train, self.corpus.words)

    def _takes(self, name: str) -> float:
        """Processor seconds of a training, its loader among them: wall time on a shared machine says what else ran on it."""
        return self.line.costs()[f"train {name}"].cpu_seconds

    def _times_for_all(self) -> float:
        """As many times the steps of clips as take, from random numbers, the time of image stage and clips together."""
        self.arm("after_images")
        return (self._takes("pictures") + self._takes("after_images")) / self._takes("after_images")

    def _times_of(self, slower: Arm) -> float:
        """The part of a slower arm's steps that takes the time of after_images."""
        self.arm("after_images")
        self.arm(slower)
        return self._takes("after_images") / self._takes(slower)

    def _dirty(self) -> Path:
        for source in SOURCES:
            plant(self.line.out / "train", source, self.seed)
        run = self.line.out / "curated_dirty"
        self.line.once("curate dirty", "curate", HERE / "dirty.yaml", "--run", run)
        return self._trained("dirty", 1, self._pictures(), run / "dataset")

    def _curated(self) -> Path:
        """The rule's model is the dirty arm itself: nothing clean has been seen but the pictures of the image stage."""
        data = self.line.out / "curated_dirty" / "dataset"
        answers = list(lines_of(self.line.ask("heard", self._dirty(), data)))
        keys = keys_of(data)
        found: dict[str, Any] = {source: asdict(hear(self.line.out / "train", source, answers, keys)) for source in SOURCES}
        run = self.line.out / "curated_again"
        self.line.once("curate again", "curate", HERE / "curated.yaml", "--run", run)
        found["records"] = len(keys_of(run / "dataset"))
        (self.line.out / "found.json").write_text(json.dumps(found), "utf-8")
        return self._trained("curated", 1, self._pictures(), run / "dataset")


def done(out: Path) -> list[dict[str, Any]]:
    """The results that are there."""
    results = out / "results.jsonl"
    return list(lines_of(results)) if results.is_file() else []


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--arm", choices=ARMS, help="this one alone")
    arguments.add_argument("--seed", type=int, help="this one alone")
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments.add_argument("--table", action="store_true")
    arguments.add_argument("--times", type=float, default=1.0, help="part of all steps, to try the harness")
    arguments.add_argument("--share", type=float, default=1.0, help="part of all pictures and clips, to try the harness")
    arguments.add_argument("--threads", type=int, default=1, help="of torch in a run")
    arguments.add_argument("--together", type=int, default=1, help="seeds side by side")
    arguments.add_argument("--out", type=Path, default=Path("runs/experiments"))
    given = arguments.parse_args()
    if given.table:
        print(table(done(given.out)))
        return
    seeds: Sequence[int] = given.seeds if given.seed is None else (given.seed,)
    arms = ARMS if given.arm is None else (given.arm,)
    few = {source: max(4, round(count * given.share)) for source, count in SIZES.clips.items()}
    sizes = Sizes(round(SIZES.pictures * given.share), few, max(10, round(SIZES.asked * given.share)), ASKED, blank=False)

    def do(seed: int) -> None:
        known = {(one["arm"], one["seed"]) for one in done(given.out)}
        waiting = [arm for arm in arms if (arm, seed) not in known]
        if not waiting:
            return
        of_seed = Seed(seed, given.out / str(seed), given.threads, given.times, sizes)
        for arm in waiting:
            result = json.dumps(of_seed.arm(arm))
            with (given.out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(result + "\n")
            print(result, flush=True)

    with ThreadPoolExecutor(given.together) as pool:
        list(pool.map(do, seeds))
    print(table(done(given.out)))


if __name__ == "__main__":
    main()

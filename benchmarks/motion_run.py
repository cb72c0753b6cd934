"""What the runs on digits in motion are made of: a corpus drawn and curated, an image stage, video stages from its weights, questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.digits_data import originals, scenes, write_pictures
from benchmarks.digits_line import Keeper, lines_of
from benchmarks.digits_score import right_by_source
from benchmarks.motion_data import CLIP_KINDS, ClipKind, clips, write_clips, write_spelling

HERE = Path(__file__).parent / "motion"
VOCABULARY = 512
# source → kind of clip and the question that is asked about it
QUESTIONS: dict[str, tuple[ClipKind, str]] = {
    "clip_name": ("moves", "name"),
    "way": ("moves", "way"),
    "order": ("order", "order"),
    "changes": ("changes", "changes"),
}
# likewise of what is learned from; "": all that a clip answers
LEARNED: dict[str, tuple[ClipKind, str]] = {
    "way": ("moves", "way"),
    "shown": ("moves", "name"),
    **{kind: (kind, "") for kind in CLIP_KINDS},
}
OTHER_SEED = 1_000_000  # of what is asked about
WAY_SEED = 500_000  # of the clips that teach the way alone


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many pictures and clips of which sources are learned from, and how many are asked about for each of `sources` of clips; with
    `blank`, in grey too."""

    pictures: int
    clips: dict[str, int]
    asked: int
    sources: tuple[str, ...] = tuple(QUESTIONS)
    blank: bool = True


def draw(out: Path, seed: int, tuning: bool, sizes: Sizes) -> None:
    """Files under out/train and out/held_out; out/drawn.txt when all are there."""
    done = out / "drawn.txt"
    if done.is_file():
        return
    learned, asked = originals("train", tuning), originals("tune" if tuning else "held_out")
    write_pictures(out / "train", "name", scenes(learned, "name", sizes.pictures, seed), learned)
    for source, count in sizes.clips.items():
        kind, question = LEARNED[source]
        drawn = clips(learned, kind, count, seed + (WAY_SEED if source == "way" else 0))
        write_clips(out / "train", source, drawn, learned, question)
    write_spelling(out / "train")
    write_pictures(out / "held_out", "name", scenes(asked, "name", sizes.asked, seed + OTHER_SEED), asked)
    for source in sizes.sources:
        kind, question = QUESTIONS[source]
        questions = clips(asked, kind, sizes.asked, seed + OTHER_SEED)
        write_clips(out / "held_out", source, questions, asked, question)
        if sizes.blank:
            write_clips(out / "held_out", f"blank_{source}", questions, asked, question, blank=True)
    done.write_text(f"seed {seed}, {'tuning' if tuning else 'held-out'} originals, {sizes}\n", "utf-8")


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a run learns from, is asked about, and spells with."""

    train: Path
    held_out: Path
    words: Path


def curate(line: Keeper, learned: str = "train", asked: str = "held_out") -> Corpus:
    """The datasets and the tokenizer of what `draw` drew. learned, asked: the recipes of what is learned from and asked about."""
    train, held_out, words = line.out / "curated", line.out / "curated_held_out", line.out / "tokenizer"
    line.once("curate texts", "curate", HERE / f"{learned}.yaml", "--run", train, "--until", "compose")
    line.once("tokenizer", "tokenizer", train, "--out", words, "--vocab-size", VOCABULARY)
    line.once("curate", "curate", HERE / f"{learned}.yaml", "--run", train)
    line.once("curate held_out", "curate", HERE / f"{asked}.yaml", "--run", held_out)
    return Corpus(train / "dataset", held_out / "dataset", words)


def config_of(name: str, seed: int, start: Path | None = None, times: float = 1.0, **changes: Any) -> dict[str, Any]:
    """benchmarks/motion/<name>.yaml with the run's seed. start: weights to begin with instead of random numbers; times: what the steps of
    its stages are multiplied by; changes: of every stage."""
    config: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text("utf-8"))
    config["seed"] = seed
    if start is not None:
        config["model"] = {"preset": "hf", "path": str(start)}
    for stage in config["stages"].values():
        stage.update(changes, steps=max(1, round(stage["steps"] * times)))
    return config


def scores_of(answers: Path) -> dict[str, float]:
    """source → share of right answers."""
    return {source: round(share, 4) for source, share in right_by_source(lines_of(answers)).items()}


def kept(data: Path, sources: tuple[str, ...] = tuple(LEARNED)) -> float:
    """Share of the visual tokens of clips that compression keeps in a dataset, by its index."""
    visual = left = 0
    for index in sorted(data.glob("v-*/*.parquet")):
        for row in pq.read_table(index, columns=["source", "motion"]).to_pylist():
            if row["source"] in sources and row["motion"] is not None:
                visual += row["motion"]["visual_tokens"]
                left += row["motion"]["kept_tokens"]
    return left / visual

"""A split's questions answered over all ranks, scored, and written down one by one, so that every number can be traced to its items."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import torch

from shards.errors import ConfigError
from training.captions import caption_scores
from training.durable import replace_text
from training.generate import Bounds, generate
from training.intervals import RECALLS, intervals_of, iou
from training.questions import Asker, Chosen, Failed, Question
from training.rank_group import agreed
from training.scores import anls, characters, choice, chosen, exact_match, metrics_of
from training.stages import close_to

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from training.engine import Ranks

TEXT_METRICS = {"exact_match": exact_match, "anls": anls, "characters": characters}
METRICS = ("auto", "loss", *TEXT_METRICS, "choice", "iou", "caption")
_RECALLS = {f"recall_{bound:g}": bound for bound in RECALLS}
_AHEAD = 2  # chunks of items that are read and decoded while one is answered

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its question's name, gold answers and scores. `cut`: it ended at the bound of new tokens, not by itself."""

    uid: str
    task: str
    n: int
    turn: int
    source: str
    question: str
    gold: tuple[str, ...]
    answer: str
    cut: bool
    options: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of a task: its value over `n` answers (the mean of theirs; BLEU and CIDEr-D are the corpus')."""

    value: float
    n: int


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked of all ranks together: answers and failures in order of task and name; items without a question. Rank 0 has it."""

    answers: tuple[Answer, ...]
    failed: tuple[Failed, ...]
    unasked: int


@dataclass(frozen=True, slots=True)
class _Asked:
    """Of a turn: this rank's part as Asker.ask returns it; items of all ranks."""

    questions: list[Question]
    failed: list[Failed]
    unasked: int
    items: int


def wanted_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Raises ConfigError for a metric that is not known, and for `auto` beside others that it contains."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}{close_to(name, METRICS)}; metrics are {', '.join(METRICS)}")
    if not names or ("auto" in names and set(names) - {"auto", "loss"}):
        raise ConfigError("metrics: auto (the loss, and for each question what fits it), or some of " + ", ".join(METRICS[1:]))
    return tuple(dict.fromkeys(names))


def answer_all(
    model: nn.Module, asker: Asker, chosen: Chosen, bounds: Bounds, ranks: Ranks, progress: Progress | None = None
) -> Answers | None:
    """Answers of the questions in the chosen items, on rank 0; None on the others. Every rank must call it; what is asked in one batch does
    not depend on their number, so that neither do the answers.

    Ranks take chunks in turn and meet after each: neighbouring ones are alike, none waits long, and an error of one is raised at once, on
    the others as training.rank_group.EndedElsewhere. A rank holds the index of a shard at a time, and the answers that are its own.
    """
    chunks = (chunk for table in asker.tables(chosen) for chunk in _chunks(table, asker.profile.name, bounds))
    turns = iter(lambda: tuple(islice(chunks, ranks.world)), ())
    answers: list[Answer] = []
    failed: list[Failed] = []
    unasked = done = 0

    def ask(turn: tuple[pa.Table, ...]) -> _Asked:
        mine = asker.ask(turn[ranks.rank]) if ranks.rank < len(turn) else ([], [], 0)
        return _Asked(*mine, items=sum(map(len, turn)))

    def answer(asked: _Asked | None) -> _Asked | None:
        if asked is not None:
            found = generate(model, [q.prompt for q in asked.questions], asker.tokenizer, bounds, savings=asker.savings)
            for question, made in zip(asked.questions, found, strict=True):
                answers.append(_answer(question, asker.tokenizer.decode(made.ids, skip_special_tokens=True), made.cut))
            failed.extend(asked.failed)
        return asked

    with _ahead(ask, turns) as coming:
        while (asked := agreed(ranks, lambda: answer(next(coming, None)))) is not None:
            unasked, done = unasked + asked.unasked, done + asked.items
            if progress is not None:
                progress("items asked", done, chosen.total)
    everywhere: list[Any] | None = [None] * ranks.world if ranks.rank == 0 else None
    torch.distributed.gather_object((answers, failed, unasked), everywhere, dst=0)
    if everywhere is None:
        return None
    return Answers(
        tuple(sorted((a for part in everywhere for a in part[0]), key=lambda a: (a.task, a.source, a.uid, a.n, a.turn))),
        tuple(sorted((f for part in everywhere for f in part[1]), key=lambda f: (f.task, f.source, f.uid, f.n))),
        sum(part[2] for part in everywhere),
    )


def score_answers(answers: Sequence[Answer], metrics: Sequence[str]) -> tuple[list[Answer], dict[str, dict[str, Score]]]:
    """(the answers with their scores, task → metric → score). `metrics` of `wanted_metrics`.

    A metric that is named is taken of every answer, choice of those with options, iou of those with an interval in a gold answer; `auto`
    chooses by training.scores.metrics_of. Beside choice stands `named`, the share of answers that name an option at all, beside iou the
    share of answers that reach 0.3, 0.5 and 0.7 (`recall_0.5`).
    """
    scored: list[Answer] = []
    captions: dict[str, list[int]] = defaultdict(list)
    for number, answer in enumerate(answers):
        chosen_metrics = metrics_of(answer.task, answer.gold, answer.options) if "auto" in metrics else metrics
        scores = {name: TEXT_METRICS[name](answer.answer, answer.gold) for name in chosen_metrics if name in TEXT_METRICS}
        if "choice" in chosen_metrics and answer.options:
            scores["choice"] = choice(answer.answer, answer.gold, answer.options)
            scores["named"] = float(chosen(answer.answer, answer.options) is not None)
        if "iou" in chosen_metrics and any(map(intervals_of, answer.gold)):
            scores["iou"] = iou(answer.answer, answer.gold)
            scores |= {name: float(scores["iou"] >= bound) for name, bound in _RECALLS.items()}
        if "caption" in chosen_metrics:
            captions[answer.task].append(number)
        scored.append(replace(answer, scores=scores))
    by_task: dict[str, dict[str, Score]] = defaultdict(dict)
    for task, numbers in captions.items():
        found = caption_scores([answers[i].answer for i in numbers], [answers[i].gold for i in numbers])
        by_task[task] = {name: Score(value, len(numbers)) for name, value in found.corpus.items()}
        for place, number in enumerate(numbers):
            scored[number] = replace(
                scored[number], scores={**scored[number].scores, **{name: values[place] for name, values in found.each.items()}}
            )
    for task in dict.fromkeys(answer.task for answer in answers):
        for name in (*TEXT_METRICS, "choice", "named", "iou", *_RECALLS):
            values = [a.scores[name] for a in scored if a.task == task and name in a.scores]
            if values:
                by_task[task][name] = Score(math.fsum(values) / len(values), len(values))
    return scored, {task: by_task[task] for task in sorted(by_task)}


def write_answers(path: Path, answers: Sequence[Answer], failed: Sequence[Failed]) -> None:
    """One JSON object a line, answers then failures ({"error": kind, "reason": …}); the file appears whole.

    Raises InfrastructureError where the disk does not take it."""
    records = [asdict(answer) for answer in answers]
    for lost in failed:
        told = asdict(lost)
        records.append({"error": told.pop("kind"), **told})
    replace_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _answer(question: Question, text: str, cut: bool) -> Answer:
    name = question.name
    asked = (name.uid, name.task, name.n, question.turn, question.source, question.asked, question.golds)
    return Answer(*asked, answer=text.strip(), cut=cut, options=dict(question.options))


def _chunks(rows: pa.Table, profile: str, bounds: Bounds) -> Iterator[pa.Table]:
    """Neighbouring items, whose pixels are in memory together: a few batches of small ones, one full video."""
    start = total = 0
    for row, patches in enumerate(pc.struct_field(rows[profile], "patches").to_pylist()):
        if row > start and (row - start == 4 * bounds.prompts or total + patches > bounds.patches):
            yield rows.slice(start, row - start)
            start, total = row, 0
        total += patches
    if start < len(rows):
        yield rows.slice(start)


@contextmanager
def _ahead(work: Callable[[Any], Any], chunks: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """The work of each chunk in order, the next ones done in threads meanwhile (decoders let go of the interpreter lock)."""
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="fovea-ask")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)

        def ready() -> Iterator[Any]:
            coming = [pool.submit(work, chunk) for chunk in islice(chunks, _AHEAD)]
            while coming:
                done = coming.pop(0).result()
                coming += [pool.submit(work, chunk) for chunk in islice(chunks, 1)]
                yield done

        yield ready()

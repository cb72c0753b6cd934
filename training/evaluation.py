"""An evaluation: the loss of a split, its questions answered and scored by task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from shards.errors import ConfigError
from shards.items import TASKS
from shards.media import Limits
from shards.places import PlacesReader
from training.answers import Answer, Answers, Progress, Score, answer_all, score_answers, wanted_metrics, write_answers
from training.durable import refuse_unwritable
from training.evaluate import HeldOut, evaluate
from training.generate import Bounds
from training.questions import INDEXES, Asker, Failed
from training.rank_group import agreed, from_first
from training.stages import close_to
from training.subject import Precision, Subject, load_subject

log = logging.getLogger("fovea")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation came to. The numbers are the same on every rank; answers and failed are rank 0's, and empty on the others.

    version  of the dataset.   loss  None where it was not asked for.   scores  task → metric → value and over how many answers.
    asked    items with a question that were read (an item may hold several questions: answers).   unasked  items without one: running text.
    failed   items that could not be read or decoded: in no score.   cut  answers that ended at the bound of new tokens.
    """

    version: str
    split: str
    profile: str
    compress: bool
    loss: HeldOut | None
    scores: dict[str, dict[str, Score]]
    answers: tuple[Answer, ...]
    asked: int
    unasked: int
    failed: tuple[Failed, ...]
    cut: int


def score_checkpoint(
    checkpoint: str | Path,
    dataset: str,
    split: str = "val",
    metrics: Sequence[str] = ("auto",),
    *,
    items: int | None = None,
    packs: int = 64,
    gold: Mapping[str, str] | None = None,
    new_tokens: int = 256,
    batch: int = 8,
    profile: str | None = None,
    compress: bool | None = None,
    tokenizer: str | Path | None = None,
    precision: Precision = "stored",
    out: str | Path | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores a model on a split of a dataset; under torchrun on all ranks, which must call it alike.

    checkpoint, profile, compress, tokenizer, precision  as training.subject.load_subject has them.
    metrics     of training.answers.METRICS.   items  at most so many of each task are asked, always the same; None: all.
    packs       about so many packs the loss is taken over, always the same.   gold  as training.questions.Asker has it.
    new_tokens  of an answer, at most.   batch  prompts that are answered at once, at most.   out  file of answers (JSON lines), or None.
    Greedy, and the same on every run and every number of ranks. Raises InfrastructureError, ConfigError, ProfileError and ShardError; of
    several ranks one raises it, the others training.rank_group.EndedElsewhere.
    """
    from shards.reader import Dataset
    from training.engine import start_ranks

    wanted, opened = wanted_metrics(metrics), Dataset.open(dataset)
    for task in gold or {}:
        if task and task not in TASKS:
            raise ConfigError(f"gold answers of an unknown task {task!r}{close_to(task, TASKS)}; tasks are {', '.join(TASKS)}")
    opened.manifest.of_split(split)  # said before anything is loaded
    ranks = start_ranks()
    if out is not None:
        agreed(ranks, lambda: refuse_unwritable(Path(out)) if ranks.rank == 0 else None)

    def load() -> Subject:
        return load_subject(checkpoint, profile=profile, compress=compress, tokenizer=tokenizer, precision=precision)

    subject = agreed(ranks, load)
    bounds = Bounds(batch, subject.stage.seq_tokens, subject.stage.pack_patches, new_tokens)
    loss = None
    if {"auto", "loss"} & set(wanted):
        loss = evaluate(subject.model, opened, subject.tokenizer, subject.profile, subject.stage, split, packs, ranks)
    found = None
    if set(wanted) - {"loss"}:
        with closing(PlacesReader(opened, INDEXES)) as reader:
            how = subject.stage
            asker = Asker(reader, subject.profile, subject.tokenizer, how.compress, gold or {}, limits or Limits(), how.savings)
            chosen = agreed(ranks, lambda: asker.choose(split, items))
            found = answer_all(subject.model, asker, chosen, bounds, ranks, progress if ranks.rank == 0 else None)
    found = found or Answers((), (), 0)
    for task, name in (gold or {}).items():
        if ranks.rank == 0 and found.answers and not any(len(a.gold) > 1 for a in found.answers if task in ("", a.task)):
            log.warning("no record of the items that were asked has a field %r with other gold answers than theirs", name)
    answers, scores = agreed(ranks, lambda: score_answers(found.answers, wanted))
    if out is not None and ranks.rank == 0:
        write_answers(Path(out), answers, found.failed)
    whole = Evaluation(
        version=opened.manifest.version,
        split=split,
        profile=subject.profile.name,
        compress=subject.stage.compress,
        loss=loss,
        scores=scores,
        answers=tuple(answers),
        asked=len({(a.uid, a.task, a.n) for a in answers}),
        unasked=found.unasked,
        failed=found.failed,
        cut=sum(a.cut for a in answers),
    )
    told = from_first(ranks, lambda: replace(whole, answers=(), failed=()))
    return replace(told, answers=whole.answers, failed=whole.failed)

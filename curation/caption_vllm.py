"""`caption` cut in two, for an engine that has actors of its own: what is asked of it, and what becomes of its replies. Between the two
pipeline/llm_pool.py carries them over the cluster.

STEP is the first half, a step like any other for the runner: it opens media, builds requests, looks replies up. Its rows are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import pyarrow as pa

from curation.answers import checked, error_of, stored_rows, work_values
from curation.caption import STEP as CAPTION
from curation.caption import CaptionHow, What, model_of
from curation.caption_cache import open_cache
from curation.caption_questions import Question, ask, row_of, waves
from curation.caption_reply import Reply, check_reply
from curation.caption_request import Request, png, seed_of
from curation.moments import Stretch, of_videos
from curation.program import StepCall, bind
from curation.rows import with_columns, work_fields
from curation.step import MEDIA_KINDS, Column, Result, Step
from curation.view import MediaView, Room, member_of
from shards.errors import InfrastructureError, SampleError
from shards.media import Limits

PREFIX = "_ask_"  # of the columns below in a work table; no step of a recipe can have it
_REPLY = pa.struct([("text", pa.string()), ("finish", pa.string()), ("tokens", pa.int32())])
_SPAN = pa.struct([("start", pa.float64()), ("end", pa.float64())])
_QUESTION = pa.struct([("prompt", pa.string()), ("seed", pa.int64()), ("pictures", pa.list_(pa.binary()))])
BATCH = 16  # media of one call: no model looks at them here, so only the memory of their pictures counts


def asking(call: StepCall) -> StepCall:
    """The first half of a caption step: same inputs, same errors, under the same digest."""
    how = {**call.how, "batch": 1 if call.what["frames"] or call.what["at"] or call.what["every"] else min(call.how["batch"], BATCH)}
    return replace(call, op="caption_vllm", how=how, prefix=PREFIX)


@dataclass(frozen=True, slots=True)
class Folded:
    """rows: stored rows of the samples that asked. onward: the work table with the caption's columns, samples that erred left out.
    errors: how many did."""

    rows: pa.Table
    onward: pa.Table
    errors: int


def fold(call: StepCall, work: pa.Table, replies: Mapping[str, Reply | SampleError], limits: Limits) -> Folded:
    """The second half: what the engine said becomes the step's rows.

    call     of the caption step itself. work: what the first half sent onward (`key` and `reply` among its columns).
    replies  by key, of every question that the first half asked.
    """
    bound = bind(call)
    room = Room(limits)
    lines = work.to_pylist()
    members = [member_of(room, i, line) for i, line in enumerate(lines) if line[f"{PREFIX}key"] is not None]
    slots = [(member, number) for member in members for number, key in enumerate(lines[member.row][f"{PREFIX}key"]) if key is not None]
    results: list[Result] = []
    for member, number in slots:
        line = lines[member.row]
        keys = line[f"{PREFIX}key"][number]
        known = line[f"{PREFIX}reply"][number]
        spans = line[f"{PREFIX}span"][number] or [None] * len(keys)
        stretches = [None if span is None else Stretch(span["start"], span["end"], ()) for span in spans]
        questions = [Question(key, "", "", stretch) for key, stretch in zip(keys, stretches, strict=True)]
        came = [replies[key] if reply is None else Reply(**reply) for key, reply in zip(keys, known, strict=True)]
        judged = [check_reply(bound.what, one) if isinstance(one, Reply) else one for one in came]
        results.append(row_of(bound.what, questions, judged))
    answers: dict[int, list[Result | None]] = {member.row: [None] * len(member.view.media) for member in members}
    checked_results = checked(bound, [member.view.media[number] for member, number in slots], results)
    for (member, number), result in zip(slots, checked_results, strict=True):
        answers[member.row][number] = result
    errors = {member.row: failed for member in members if (failed := error_of(answers[member.row])) is not None}
    good = [member for member in members if member.row not in errors]
    fields = work_fields(bound.step, bound.what, call.prefix)
    values = [work_values(bound, column.name, field.type, good, answers) for column, field in zip(bound.columns, fields, strict=True)]
    own = work.drop_columns([name for name in work.schema.names if name.startswith(PREFIX)])
    onward = with_columns(own, fields, [member.row for member in good], values)
    alive = pa.array([i not in errors for i in range(len(work))], pa.bool_())
    return Folded(stored_rows(bound, False, members, answers, errors), onward.filter(alive), len(errors))


def _open(what: What, how: CaptionHow) -> Callable[[Sequence[MediaView]], Sequence[Result]]:
    cache, model = open_cache(how.cache), model_of(what)

    def ask_all(views: Sequence[MediaView]) -> list[Result]:
        asked = ask(what, model, cache, views)
        new = {key: _question(request) for wave in waves(what, asked, views) for key, request in wave.items()}
        results: list[Result] = []
        for place in range(len(views)):
            if place in asked.errors:
                results.append(asked.errors[place])
                continue
            listed = asked.questions[place]
            known = [asdict(asked.known[q.key]) if q.key in asked.known else None for q in listed]
            spans = [{"start": q.stretch.start, "end": q.stretch.end} for q in listed if q.stretch is not None]
            keys = [q.key for q in listed]
            results.append({"key": keys, "reply": known, "span": spans, "question": [new.get(key) for key in keys]})
        return results

    return ask_all


def _question(request: Request) -> dict[str, Any]:
    return {"prompt": request.prompt, "seed": seed_of(request), "pictures": [png(one) for one in request.pictures]}


def _columns(what: What) -> list[Column]:
    kinds = frozenset({"video" if of_videos(what) else "image"})
    return [
        Column("key", pa.list_(pa.string()), kinds, wide=True, doc="of each question: one, or one for each stretch of a video"),
        Column("reply", pa.list_(_REPLY), kinds, wide=True, doc="of the cache, unjudged; NULL where it must be asked for"),
        Column("span", pa.list_(_SPAN), kinds, wide=True, doc="seconds of each stretch; empty for a picture"),
        Column("question", pa.list_(_QUESTION), kinds, wide=True, doc="NULL where the cache knows. PNGs of what the model is to see"),
    ]


def open_backend(what: What, how: CaptionHow) -> NoReturn:
    """Raises InfrastructureError: the engine is no function of one process."""
    raise InfrastructureError("backend vllm runs in pools of its own, which only `fovea curate` starts; elsewhere take another backend")


STEP = Step(
    version=1,
    level="medium",
    applies=MEDIA_KINDS,
    prefix=PREFIX,
    what=What,
    how=CaptionHow,
    columns=_columns,
    reads=CAPTION.reads,
    open=_open,
)

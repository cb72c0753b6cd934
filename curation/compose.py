"""Turns what is known of a sample into the items a trainer eats: conversations with media, by task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from curation.compose_captions import caption_columns, caption_of_picture, caption_of_sample, said
from curation.compose_charts import Chart, record_chart
from curation.compose_check import COMPOSED, check
from curation.compose_ocr import Line, box_text, boxed, ocr_answer, recognised_lines
from curation.compose_prompts import PROMPTS, question
from curation.compose_regions import Form, Region, Unit, chosen, line_regions, record_regions
from curation.compose_video import Speaks, of_shots, shots_of
from curation.conversations import from_llava, from_stream
from curation.step import ALL_KINDS, Column, How, Row, SampleView, Step
from curation.view import each
from shards.errors import SampleError
from shards.items import Item, Message, Part, items_to_json
from shards.sample import digest_of
from shards.sources.texts import look_up

__all__ = ["COMPOSED", "PROMPTS", "STEP", "What", "compose"]


@dataclass(frozen=True, slots=True)
class What:
    """tasks               tasks to make items of; a sample gives those that it has the texts for.
    prompts             task -> questions to choose from, instead of PROMPTS; which one a sample gets is a hash of its uid.
    captions            task -> columns its caption comes from, the first that is not NULL or empty; "caption",
                        "transcription" and "text" are the sample's own.
    conversations       source -> task that its conversations teach, where that is not told by their media: {charts: chart, moments:
                        temporal_grounding}. One that teaches streaming has a time in each turn.
    max_caption_chars   a longer caption is the sample's error: it is runaway output, or no caption.
    ocr                 prefix of the OCR step whose columns are read, without the underscore ("ocr"); "" = transcriptions alone are used.
    min_ocr_confidence  recognised lines below it are left out (0..1).
    document_lines      a picture with so many recognised lines is a document (its text in reading order), with fewer a scene with texts.
    kind                column with what a picture is ("kind_label"); "" = none. Where it has a value, that decides and not the number of
                        lines.
    document_kinds      its values that mean a document. chart_kinds: those that mean a chart.
    chart               field of the record that marks a chart or says what is in it (curation/compose_charts.py); "" = none.
    regions             field of the record that lists regions (curation/compose_regions.py); "" = none.
    boxes, box_form     unit and form of those boxes. Pixels need the columns width and height that probe writes.
    ocr_regions         true: recognised lines are regions too ("what is written in …?", "where does it say …?"). Ours, not the report's.
    max_regions         so many regions of a picture become items, chosen by a hash of its uid.
    box_scale           boxes are written as integers 0..box_scale-1 of the picture's width and height: left, top, right, bottom.
    shots               column with the captions of a video's shots, as `caption` with `at` or `every` writes it: "caption_each"; "" = none.
                        With it `video` tells the shots too, and `temporal_grounding` and `streaming` may be among the tasks.
    min_shot            seconds: of shorter shots nothing is said, for none of their frames may be shown.
    max_moments         so many shots of a video are asked for by their caption.
    speaks              when a shot is told in a stream: at its end, or at its start, when a second of it was seen.
    """

    tasks: tuple[str, ...] = COMPOSED
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)
    max_caption_chars: int = 16_384
    ocr: str = ""
    min_ocr_confidence: float = 0.5
    document_lines: int = 12
    kind: str = ""
    document_kinds: tuple[str, ...] = ("page", "receipt", "document")
    chart_kinds: tuple[str, ...] = ("chart",)
    chart: str = ""
    regions: str = ""
    boxes: Unit = "shares"
    box_form: Form = "corners"
    ocr_regions: bool = False
    max_regions: int = 8
    box_scale: int = 1000
    shots: str = ""
    min_shot: float = 1.0
    max_moments: int = 4
    speaks: Speaks = "end"


_OF_SHOTS = ("shots", "min_shot", "max_moments", "speaks")
Made = tuple[str, tuple[Message, ...]]  # task, messages


def compose(what: What, view: SampleView) -> list[Item]:
    """The items of one sample, in the order of `what.tasks`; `n` counts within a task. No texts, no items.

    Raises SampleError for a conversation that does not fit its media, a caption without end, and an annotation that cannot be read.
    """
    made = list(_of_sample(what, view))
    items: list[Item] = []
    for task in dict.fromkeys(what.tasks):
        messages = [m for name, m in made if name == task]
        items += [Item(task, n, m) for n, m in enumerate(messages)]
    return items


def _of_sample(what: What, view: SampleView) -> Iterator[Made]:
    sample, texts = view.sample, view.sample.texts
    kinds = [medium.kind for medium in sample.media]
    if not all(kind in ("image", "video") for kind in kinds):
        return  # a file that a splitter has still to take apart
    spoken = "text" if not kinds else "video" if "video" in kinds else "vqa" if len(kinds) == 1 else "multi_image"
    chart = _chart(what, view) if spoken == "vqa" else None
    if chart is not None:
        spoken = "chart"
    talk = what.conversations.get(sample.source, spoken)
    if texts.conversations and talk in what.tasks:
        messages = _streamed(view) if talk == "streaming" else from_llava(texts.conversations, kinds)
        if messages:
            yield talk, messages
    if not kinds and said(texts.text):
        yield "text", (Message("assistant", (Part("text", text=said(texts.text)),)),)
    if spoken in ("video", "multi_image") and spoken in what.tasks:
        caption = caption_of_sample(what.captions, spoken, texts, view.columns, what.max_caption_chars)
        if caption:
            parts = tuple(Part("video" if kind == "video" else "image", media=number) for number, kind in enumerate(kinds))
            yield spoken, _asked(parts, question(what.prompts, spoken, sample.uid), caption)
    for number, kind in enumerate(kinds):
        if kind == "image":
            yield from _of_picture(what, view, number, chart)
        elif what.shots:
            listed = view.columns.get(what.shots)
            shots = shots_of(what.shots, listed[number] if listed else None, what.max_caption_chars)
            settings = (what.min_shot, what.max_moments, what.speaks)
            yield from of_shots(shots, what.tasks, what.prompts, sample.uid, number, *settings)


def _streamed(view: SampleView) -> tuple[Message, ...]:
    texts = view.sample.texts
    start = texts.meta.get("start_time")
    if isinstance(start, (int, float)) and start > 0:  # as VideoLLaMA3's records say it; the times of its turns count from the file's start
        raise SampleError(
            f"its record streams a part of the video, from start_time = {start} s on: cut that part out first, give times from its start, "
            "and leave start_time out"
        )
    return from_stream(texts.conversations, [medium.kind for medium in view.sample.media])


def _of_picture(what: What, view: SampleView, number: int, chart: Chart | None) -> Iterator[Made]:
    """The items about one picture. What is known of the sample as a whole is known of a picture only where it is the only medium."""
    uid, texts, columns = view.sample.uid, view.sample.texts, view.columns
    alone = len(view.sample.media) == 1
    place = () if alone else (number,)
    part = (Part("image", media=number),)

    def asked(task: str, key: str, answer: str) -> Made:
        return task, _asked(part, question(what.prompts, key, uid, *place), answer)

    def caption(task: str) -> str:
        return caption_of_picture(what.captions, task, texts, columns, number, alone, what.max_caption_chars) if task in what.tasks else ""

    transcription = said(texts.transcription) if alone else ""
    if chart is not None:
        yield from _of_chart(chart, part, caption("chart"), transcription, asked)
    elif short := caption("short_caption"):
        yield asked("short_caption", "short_caption", short)
    if detailed := caption("detailed_caption"):
        yield asked("detailed_caption", "detailed_caption", detailed)
    lines = recognised_lines(columns, what.ocr, number, what.min_ocr_confidence)
    dense = _is_document(what, view, number, lines)
    if chart is None and transcription:
        yield asked("document", "document", transcription)
    elif chart is None and dense and lines:
        yield asked("document", "document", "\n".join(line.text for line in lines))
    if lines and not dense and (listed := boxed(lines, what.box_scale)):
        yield asked("ocr", "ocr", ocr_answer(caption("ocr"), listed))
    elif transcription and not lines and "document" not in what.tasks:
        listed = [line.strip() for line in transcription.splitlines() if line.strip()]
        yield asked("ocr", "ocr", ocr_answer(caption("ocr"), listed))
    for n, region in enumerate(_regions(what, view, number, lines)):
        yield from _of_region(what, uid, part, region, (number, n))


def _of_chart(
    chart: Chart, part: tuple[Part, ...], caption: str, transcription: str, asked: Callable[[str, str, str], Made]
) -> Iterator[Made]:
    for said_of_it in dict.fromkeys(text for text in (transcription, chart.text) if text):
        yield asked("chart", "chart_text", said_of_it)
    if caption:
        yield asked("chart", "chart", caption)
    for asks, answer in chart.questions:
        yield "chart", _asked(part, asks, answer)


def _of_region(what: What, uid: str, part: tuple[Part, ...], region: Region, place: tuple[int, int]) -> Iterator[Made]:
    kind = "_ocr" if region.read else ""
    one = region.boxes[int(digest_of(uid, "box", *place), 16) % len(region.boxes)]
    asks = question(what.prompts, f"region{kind}", uid, *place, box=box_text(one, what.box_scale))
    yield "region", _asked(part, asks, region.text)
    asks = question(what.prompts, f"grounding{kind}", uid, *place, text=region.text)
    yield "grounding", _asked(part, asks, ", ".join(box_text(box, what.box_scale) for box in region.boxes))


def _regions(what: What, view: SampleView, number: int, lines: Sequence[Line]) -> list[Region]:
    if not _wants_regions(what):
        return []
    columns, alone = view.columns, len(view.sample.media) == 1
    sides = [columns.get(name) or () for name in ("width", "height")] if what.boxes == "pixels" else []
    size = (sides[0][number], sides[1][number]) if sides and all(number < len(side) for side in sides) else None
    value = look_up(view.sample.texts.meta, what.regions) if what.regions else None
    found = record_regions(value, what.regions, number, alone, what.boxes, what.box_form, size)
    found += line_regions(lines) if what.ocr_regions else []
    return chosen(found, what.max_regions, view.sample.uid, number)


def _chart(what: What, view: SampleView) -> Chart | None:
    """What is known of the sample's only picture as a chart; None where it is none, or no charts are asked for."""
    if "chart" not in what.tasks:
        return None
    given = record_chart(look_up(view.sample.texts.meta, what.chart), what.chart) if what.chart else None
    labelled = _label(what, view, 0) in what.chart_kinds
    return given or (Chart() if labelled else None)


def _is_document(what: What, view: SampleView, number: int, lines: Sequence[Line]) -> bool:
    label = _label(what, view, number)
    return len(lines) >= what.document_lines if label is None else label in what.document_kinds


def _label(what: What, view: SampleView, number: int) -> str | None:
    value = view.columns.get(what.kind) if what.kind else None
    if isinstance(value, (list, tuple)):
        return value[number] if number < len(value) else None
    return value


def _asked(media: tuple[Part, ...], text: str, answer: str) -> tuple[Message, ...]:
    return Message("user", (*media, Part("text", text=text))), Message("assistant", (Part("text", text=answer),))


def _wants_regions(what: What) -> bool:
    return ("region" in what.tasks or "grounding" in what.tasks) and bool(what.regions or what.ocr_regions)


def _unicode(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: no column, file or tokenizer takes one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _open(what: What, how: How) -> Callable[[Sequence[SampleView]], Sequence[Any]]:
    def answer(view: SampleView) -> Row:
        items = compose(what, view)
        return {"items": _unicode(items_to_json(items)), "n_items": len(items), "tasks": list(dict.fromkeys(item.task for item in items))}

    return lambda views: each(views, answer)


def _columns(what: What) -> list[Column]:
    return [
        Column("items", pa.string(), wide=True, doc="the sample's items: a JSON array (shards.items)"),
        Column("n_items", pa.int32(), doc="how many"),
        Column("tasks", pa.list_(pa.string()), doc="the tasks they teach, each once"),
    ]


def _reads(what: What) -> list[str]:
    read = ["media", "texts", *caption_columns(what.captions, what.tasks)]
    read += [f"{what.ocr}_lines"] if what.ocr else []
    read += [what.kind] if what.kind else []
    read += [what.shots] if what.shots else []
    read += ["width", "height"] if what.regions and what.boxes == "pixels" and _wants_regions(what) else []
    return list(dict.fromkeys(read))


def _identity(what: What) -> dict[str, Any]:
    """As it was before there were shots, where there are none."""
    return {name: value for name, value in asdict(what).items() if what.shots or name not in _OF_SHOTS}


STEP = Step(
    version=2,
    level="sample",
    applies=ALL_KINDS,
    prefix="",
    what=What,
    how=How,
    columns=_columns,
    reads=_reads,
    open=_open,
    identity=_identity,
    check=check,
)

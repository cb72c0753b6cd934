"""Turns what is known of a sample into the items a trainer eats: conversations with media, by task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curation.conversations import from_llava
from curation.step import ALL_KINDS, Column, How, Row, SampleView, Step
from curation.view import each
from shards.items import Item, Message, Part, items_to_json
from shards.sample import digest_of

PROMPTS: dict[str, tuple[str, ...]] = {
    "short_caption": (
        "Describe this image in one sentence.",
        "What does this image show? Answer briefly.",
        "Write a short caption for this image.",
    ),
    "ocr": (
        "Describe this image and list the texts in it with their boxes.",
        "What does this image show, and where does it say what?",
    ),
    "document": (
        "Write down the text of this image in reading order.",
        "What does this page say? Give its text in reading order.",
    ),
    "multi_image": (
        "Describe these images.",
        "What do these images show?",
    ),
    "video": (
        "Describe this video in one sentence.",
        "What happens in this video? Answer briefly.",
    ),
}
CONVERSATIONS = ("vqa", "multi_image", "video", "text")  # tasks that a ready conversation may have, by its media
COMPOSED = ("short_caption", "ocr", "document", "vqa", "multi_image", "text", "video")


@dataclass(frozen=True, slots=True)
class What:
    """tasks               tasks to make items of; a sample gives those that it has the texts for.
    prompts             task -> questions to choose from, instead of PROMPTS; which one a sample gets is a hash of its uid.
    ocr                 prefix of the OCR step whose columns are read, without the underscore ("ocr"); "" = transcriptions alone are used.
    min_ocr_confidence  recognised lines below it are left out (0..1).
    document_lines      a picture with so many recognised lines is a document (its text in reading order), with fewer a scene with texts.
    box_scale           boxes are integers 0..box_scale-1 of the picture's width and height: left, top, right, bottom.
    """

    tasks: tuple[str, ...] = COMPOSED
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ocr: str = ""
    min_ocr_confidence: float = 0.5
    document_lines: int = 12
    box_scale: int = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """A recognised line of text and its box: left, top, right, bottom as shares (0..1) of the picture."""

    text: str
    box: tuple[float, float, float, float]


def compose(what: What, view: SampleView) -> list[Item]:
    """The items of one sample, in the order of `what.tasks`; `n` counts within a task. No texts, no items.

    Raises SampleError for a conversation that does not fit its media (see `curation.conversations.from_llava`).
    """
    made = list(_items(what, view))
    items: list[Item] = []
    for task in dict.fromkeys(what.tasks):
        messages = [m for name, m in made if name == task]
        items += [Item(task, n, m) for n, m in enumerate(messages)]
    return items


def _items(what: What, view: SampleView) -> Iterator[tuple[str, tuple[Message, ...]]]:
    sample, texts = view.sample, view.sample.texts
    kinds = [medium.kind for medium in sample.media]
    media = tuple(Part(kind, media=number) for number, kind in enumerate(kinds))
    spoken = "text" if not kinds else "video" if "video" in kinds else "vqa" if len(kinds) == 1 else "multi_image"
    described = "short_caption" if spoken == "vqa" else spoken

    def asked(task: str, answer: str) -> tuple[str, tuple[Message, ...]]:
        question = Part("text", text=_prompt(what, sample.uid, task))
        return task, (Message("user", (*media, question)), Message("assistant", (Part("text", text=answer),)))

    if texts.conversations and spoken in what.tasks:
        messages = from_llava(texts.conversations, kinds)
        if messages:
            yield spoken, messages
    if not kinds:
        if _said(texts.text):
            yield "text", (Message("assistant", (Part("text", text=_said(texts.text)),)),)
        return
    caption, transcription = _said(texts.caption), _said(texts.transcription)
    if caption:
        yield asked(described, caption)
    if spoken != "vqa":
        return
    lines = recognised_lines(what, view.columns)
    dense = len(lines) >= what.document_lines
    if transcription:
        yield asked("document", transcription)
    elif dense:
        yield asked("document", "\n".join(line.text for line in lines))
    if lines and not dense:
        yield asked("ocr", ocr_answer(caption, [_boxed(line, what.box_scale) for line in lines]))
    elif transcription and not lines and "document" not in what.tasks:
        yield asked("ocr", ocr_answer(caption, [line.strip() for line in transcription.splitlines() if line.strip()]))


def ocr_answer(caption: str, texts: Sequence[str]) -> str:
    """`{caption}. The texts in this image are {text1}<box>[{bbox}]</box>, …` (VideoLLaMA3 report, stage 2), without what is missing."""
    listed = f"The texts in this image are {', '.join(texts)}"
    if not caption:
        return listed
    return f"{caption} {listed}" if caption[-1] in ".!?。！？" else f"{caption}. {listed}"


def recognised_lines(what: What, columns: Mapping[str, Any]) -> list[Line]:
    """The lines an OCR step read in the sample's first medium, in its reading order; none where it has no row."""
    found = columns.get(f"{what.ocr}_lines") if what.ocr else None
    lines = []
    for line in (found[0] or []) if found else []:
        if line["confidence"] >= what.min_ocr_confidence and line["text"].strip():
            xs, ys = line["polygon"][0::2], line["polygon"][1::2]
            lines.append(Line(line["text"].strip(), (min(xs), min(ys), max(xs), max(ys))))
    return lines


def _boxed(line: Line, scale: int) -> str:
    return f"{line.text}<box>[{', '.join(str(min(max(int(edge * scale), 0), scale - 1)) for edge in line.box)}]</box>"


def _said(text: str | None) -> str:
    return text.strip() if text else ""


def _unicode(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: no column, file or tokenizer takes one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _prompt(what: What, uid: str, task: str) -> str:
    prompts = what.prompts.get(task) or PROMPTS[task]
    return prompts[int(digest_of(uid, task), 16) % len(prompts)]


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
    return ["media", "texts", *([f"{what.ocr}_lines"] if what.ocr else [])]


def _check(what: What) -> None:
    unknown = [task for task in what.tasks if task not in COMPOSED]
    if unknown or not what.tasks:
        raise ValueError(f"tasks: {unknown or 'none'}; compose makes {', '.join(COMPOSED)}")
    for task, prompts in what.prompts.items():
        if task not in PROMPTS:
            raise ValueError(f"prompts: {task!r} takes none; prompts are for {', '.join(PROMPTS)}")
        if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ValueError(f"prompts: {task}: give at least one question, none of them empty")
    if not 0 <= what.min_ocr_confidence <= 1:
        raise ValueError(f"min_ocr_confidence: {what.min_ocr_confidence} is outside 0..1")
    if what.document_lines < 1 or what.box_scale < 2:
        raise ValueError("document_lines is at least 1 and box_scale at least 2")


STEP = Step(
    version=1,
    level="sample",
    applies=ALL_KINDS,
    prefix="",
    what=What,
    how=How,
    columns=_columns,
    reads=_reads,
    open=_open,
    check=_check,
)

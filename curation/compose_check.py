"""Which tasks compose makes, and parameters of it that cannot work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curation.compose_captions import check_captions
from curation.compose_prompts import check_prompts
from curation.compose_video import SHOT_TASKS
from shards.items import TASKS

if TYPE_CHECKING:
    from curation.compose import What

COMPOSED = tuple(task for task in TASKS if task not in SHOT_TASKS)


def check(what: What) -> None:
    """Raises ValueError, whose message begins with the parameter."""
    named = set(what.conversations.values())
    made = (*COMPOSED, *SHOT_TASKS) if what.shots else COMPOSED
    unknown = [task for task in what.tasks if task not in made and task not in named]
    if unknown or not what.tasks:
        more = f"; {', '.join(SHOT_TASKS)} want `shots`, the column with the captions of shots" if set(unknown) & set(SHOT_TASKS) else ""
        raise ValueError(f"tasks: {unknown or 'none'}; compose makes {', '.join(made)}, and what `conversations` says{more}")
    if wrong := sorted(named - set(TASKS)):
        raise ValueError(f"conversations: {', '.join(wrong)}; a conversation may teach {', '.join(TASKS)}")
    if left := sorted(named - set(what.tasks)):
        raise ValueError(f"conversations: {', '.join(left)} is not among `tasks`, so nothing would come of them")
    check_prompts(what.prompts)
    check_captions(what.captions)
    if not 0 <= what.min_ocr_confidence <= 1:
        raise ValueError(f"min_ocr_confidence: {what.min_ocr_confidence} is outside 0..1")
    if what.document_lines < 1 or what.box_scale < 2:
        raise ValueError("document_lines is at least 1 and box_scale at least 2")
    if min(what.max_caption_chars, what.max_regions, what.max_moments) < 1:
        raise ValueError("max_caption_chars, max_regions and max_moments are at least 1")
    if not 0.1 <= what.min_shot <= 3600:
        raise ValueError(f"min_shot: {what.min_shot:g} seconds; it is 0.1 to 3600")
    if what.ocr_regions and not what.ocr:
        raise ValueError("ocr_regions: they are recognised lines, so `ocr` must name the prefix of an OCR step")

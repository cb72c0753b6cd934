"""The questions that compose asks: for each task several, of which a hash of the sample's uid chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shards.sample import digest_of

# `region_ocr` and `grounding_ocr`, `chart_text`, `video_shots`: the same tasks asked of recognised lines, of a chart's transcription, of a
# video's shots. `streaming_end` and `streaming_start`: the question by when the answers come.
PROMPTS: dict[str, tuple[str, ...]] = {
    "short_caption": (
        "Describe this image in one sentence.",
        "What does this image show? Answer briefly.",
        "Write a short caption for this image.",
    ),
    "detailed_caption": (
        "Describe this image in detail.",
        "What does this image show? Leave nothing out.",
        "Write a detailed description of this image.",
    ),
    "ocr": (
        "Describe this image and list the texts in it with their boxes.",
        "What does this image show, and where does it say what?",
    ),
    "document": (
        "Write down the text of this image in reading order.",
        "What does this page say? Give its text in reading order.",
    ),
    "chart": (
        "Describe this chart.",
        "What does this chart show?",
    ),
    "chart_text": (
        "Write down what this chart says.",
        "Give the content of this chart as text.",
    ),
    "region": (
        "What is at {box}?",
        "Describe what is inside {box}.",
    ),
    "region_ocr": (
        "What is written inside {box}?",
        "Read the text at {box}.",
    ),
    "grounding": (
        "Where is {text}? Answer with its box.",
        "Give the box of {text}.",
    ),
    "grounding_ocr": (
        'Where does it say "{text}"? Answer with the box.',
        'Give the box of the text "{text}".',
    ),
    "multi_image": (
        "Describe these images.",
        "What do these images show?",
    ),
    "video": (
        "Describe this video in one sentence.",
        "What happens in this video? Answer briefly.",
    ),
    "video_shots": (
        "Describe each shot of this video, with its time.",
        "List the shots of this video with the seconds at which they begin and end, and say what each shows.",
    ),
    "temporal_grounding": (
        'When does the video show this: "{text}"? Answer with the seconds from start to end.',
        'Give the start and end, in seconds, of: "{text}".',
    ),
    "streaming_end": (
        "Watch the video as it runs. When a shot has ended, describe it.",
        "As the video runs, say after each shot what it showed.",
    ),
    "streaming_start": (
        "Watch the video as it runs. When a new shot has begun, describe it.",
        "As the video runs, say what each new shot shows.",
    ),
}
PLACES = {"region": "{box}", "region_ocr": "{box}", "grounding": "{text}", "grounding_ocr": "{text}", "temporal_grounding": "{text}"}


def question(prompts: Mapping[str, Sequence[str]], key: str, uid: str, *place: int, **filled: str) -> str:
    """One of the questions for `key`, chosen by (uid, key, place), with `{name}` replaced by what `filled` has under that name."""
    listed = prompts.get(key) or PROMPTS[key]
    text = listed[int(digest_of(uid, key, *place), 16) % len(listed)]
    for name, value in filled.items():  # each prompt has one place, so what a value says is never taken for another place
        text = text.replace(f"{{{name}}}", value)
    return text


def check_prompts(prompts: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for a key that takes no questions, for none or an empty one, and for one that lacks its place."""
    for key, listed in prompts.items():
        if key not in PROMPTS:
            raise ValueError(f"prompts: {key!r} takes none; prompts are for {', '.join(PROMPTS)}")
        if not listed or not all(isinstance(p, str) and p.strip() for p in listed):
            raise ValueError(f"prompts: {key}: give at least one question, none of them empty")
        if key in PLACES and (lacking := [p for p in listed if PLACES[key] not in p]):
            raise ValueError(f"prompts: {key}: {lacking[0]!r} lacks {PLACES[key]}")

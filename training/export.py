"""A directory that transformers loads by itself: weights, tokenizer and processor set to what the model was trained on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, InfrastructureError
from training.durable import publish, writing
from training.tensors import read_json, whole_files

log = logging.getLogger("fovea")

_PROCESSOR_THRESHOLD = 0.05  # grey levels; fixed in transformers' video processor (0.1 on pixels normalised with std 0.5)
_SETTINGS = ("config.json", "generation_config.json", "model.safetensors.index.json")

# The prompt of shards.chat in transformers' terms. The processor puts kept tokens, and a frame's time before them, where the placeholders
# stand. A medium is followed by one line break, unless the text after it brings its own.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- else -%}"
    "{{- '<|image_pad|>' if part['type'] == 'image' else '<|video_pad|>' -}}"
    "{%- if loop.last or loop.nextitem['type'] != 'text' or not loop.nextitem['text'].startswith('\n') -%}{{- '\n' -}}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def export(checkpoint: str | Path, out: str | Path) -> Path:
    """Writes `out` from the weights of a finished stage (`…/checkpoints/stage<k>/final`), whole or not at all. Returns `out`.

    `VideoLlama3ForConditionalGeneration.from_pretrained(out)` and `AutoProcessor.from_pretrained(out)` then load it, without this project.
    The processor's budget is that of a single picture or clip, and its resizing is transformers' own: docs/stages.md has the differences.
    Raises ConfigError where `out` is in the way; InfrastructureError where `checkpoint` is no finished stage or has torn files, and where
    the disk does not take `out`.
    """
    source, target = Path(checkpoint), Path(out).resolve()
    facts = _facts(source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is {'not empty' if target.is_dir() else 'a file'}; give a new directory")
    files = [*whole_files(source), *(source / name for name in _SETTINGS if (source / name).is_file())]
    made = processor(source, facts["profile"], facts["compress"])
    if ((facts.get("block") or {}).get("encoder") or {}).get("prune"):
        log.warning(
            "%s was trained with encoder.prune, which transformers' encoder does not do: it sees whole frames, and features differ from "
            "those in training (by how much, the records `pruning` in metrics.jsonl say); `fovea evaluate` prunes as in training",
            source,
        )
    scratch = target.with_name(f".{target.name}.tmp")
    with writing(target):
        shutil.rmtree(scratch, ignore_errors=True)  # of an export that was killed
        try:
            scratch.mkdir(parents=True)
            for path in files:
                shutil.copyfile(path, scratch / path.name)
            _save(made, scratch)
            (scratch / "fovea.json").write_text(json.dumps(facts, indent=1), "utf-8")
            if target.exists():
                target.rmdir()
            publish(scratch, target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return target


def _facts(source: Path) -> dict[str, Any]:
    for name in ("fovea.json", "config.json"):
        if not (source / name).is_file():
            raise InfrastructureError(f"{source}: no finished stage (there is no {name}); give …/checkpoints/stage<k>/final")
    facts = read_json(source / "fovea.json")
    if not isinstance(facts.get("profile"), dict) or "compress" not in facts:
        raise InfrastructureError(f"{source / 'fovea.json'} does not say profile and compress; give …/checkpoints/stage<k>/final as it was")
    return facts


def _save(made: Any, folder: Path) -> None:
    try:
        made.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # tokenizers tells a full disk by a plain Exception, without its number
        raise OSError(str(error)) from error


def processor(tokenizer_dir: Path, profile: Mapping[str, Any], compress: bool) -> Any:
    """transformers' VideoLlama3Processor with the budgets, merge sizes, frame rate and compression of a measure profile."""
    from transformers import VideoLlama3ImageProcessor, VideoLlama3Processor, VideoLlama3VideoProcessor

    from shards.tokenizer import load_tokenizer

    if compress and profile["threshold"] != _PROCESSOR_THRESHOLD:
        log.warning(
            "trained at a compression threshold of %s grey levels, but transformers' processor always uses %s: its masks differ",
            profile["threshold"],
            _PROCESSOR_THRESHOLD,
        )

    def pixels(tokens: int, merge: int) -> int:
        return int(tokens * (profile["patch"] * merge) ** 2)

    def size(merge: int) -> dict[str, int]:
        return {"shortest_edge": pixels(profile["min_visual_tokens"], merge), "longest_edge": pixels(profile["max_visual_tokens"], merge)}

    image = VideoLlama3ImageProcessor(size=size(profile["image_merge"]), patch_size=profile["patch"], merge_size=profile["image_merge"])
    video = VideoLlama3VideoProcessor(
        size=size(profile["video_merge"]),
        patch_size=profile["patch"],
        merge_size=profile["video_merge"],
        fps=profile["fps"],
        max_frames=profile["max_frames"],
        min_frames=1,
        do_sample_frames=True,
        use_token_compression=compress,
    )
    return VideoLlama3Processor(image, load_tokenizer(tokenizer_dir), video, chat_template=CHAT_TEMPLATE)

"""What stands behind `pretrained:<tag>` of timm and open_clip: most tags name a repository of the model hub."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from curation.models import Model

_TAG = re.compile(r"(timm|open_clip):(\S+) pretrained:(\S*)")


def tag_model(model: str, tag: str, revision: str = "") -> Model:
    """A step's model ("timm:resnet18", "open_clip:ViT-L-14") and tag, as `Step.models` lists it. Imports no library."""
    return Model(f"{model} pretrained:{tag}", "library", revision, field="revision" if model.startswith("timm:") else "")


@lru_cache(maxsize=64)
def resolved(model: Model) -> Model:
    """A tag's model as the hub's that it is, where it is one; anything else as it is. Imports timm or open_clip, which takes seconds.

    Commits of timm's models can be pinned (`field`); open_clip downloads the newest of a tag's repository, so its cannot.
    """
    match = _TAG.fullmatch(model.id) if model.kind == "library" else None
    if match is None:
        return model
    library, architecture, tag = match.groups()
    if library == "timm":
        import timm

        name = f"{architecture}.{tag}" if tag else architecture
        config = timm.get_pretrained_cfg(name) if timm.is_model(architecture) else None
        repo = getattr(config, "hf_hub_id", None)
        return replace(model, id=repo, kind="hub", wants=("model.safetensors", "config.json"), needs=()) if repo else model
    import open_clip

    place = (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "")
    repo, _, file = place.rpartition("/")
    wants = (file or "open_clip_model.safetensors",)
    return replace(model, id=repo, kind="hub", wants=wants, needs=()) if repo else model

"""Packs made by hand for the model and the engine: a small vocabulary, one picture or clip or nothing for each item."""

from __future__ import annotations

import numpy as np
from torch import nn

from training.collate import ItemName, LoadedItem, LoadedMedium, PackBatch, collate
from training.model import build_tiny
from training.stages import TinyShape

VOCABULARY = 64
PATCH = 14
IDS = {"image_token_id": 60, "video_token_id": 61, "eos_token_id": 62}
TASK = {"image": "short_caption", "images": "multi_image", "video": "video", "text": "text"}
SMALL = TinyShape(hidden=32, llm_layers=2, heads=4, kv_heads=2, vision_hidden=32, vision_layers=2, vision_heads=2)


def model(seed: int = 0, shape: TinyShape = SMALL) -> nn.Module:
    return build_tiny(VOCABULARY, shape, IDS, seed)


def item(kind: str, seed: int, length: int = 6) -> LoadedItem:
    """One item: a picture of 2×2 patches unmerged, three pictures of two sizes, a clip of two frames of 4×4 merged 2×2 with 3 of 8 tokens
    dropped, or text alone."""
    random = np.random.default_rng(seed)
    answer = random.integers(1, 50, length).tolist()
    media: tuple[LoadedMedium, ...] = ()
    if kind == "image":
        media = (LoadedMedium(False, 1, 2, 2, 1, random.standard_normal((4, 3 * PATCH**2), dtype=np.float32)),)
    elif kind == "images":
        sides = ((2, 2), (2, 2), (4, 2))
        media = tuple(LoadedMedium(False, 1, h, w, 1, random.standard_normal((h * w, 3 * PATCH**2), dtype=np.float32)) for h, w in sides)
    elif kind == "video":
        keep = np.array([True] * 5 + [False] * 3)
        media = (LoadedMedium(True, 2, 4, 4, 2, random.standard_normal((32, 3 * PATCH**2), dtype=np.float32), keep),)
    visual = [IDS["video_token_id" if m.video else "image_token_id"] for m in media for _ in range(m.kept)]
    prompt = [1, *visual, 2]
    ids = np.array([*prompt, *answer, IDS["eos_token_id"]])
    labels = np.array([-100] * len(prompt) + ids[len(prompt) :].tolist())
    return LoadedItem(ItemName(f"{kind}-{seed}", TASK[kind], 0), ids, labels, media)


def packed(items: list[LoadedItem]) -> PackBatch:
    return collate(items, PATCH)


def packs(count: int, seed: int = 0) -> list[PackBatch]:
    """Packs of pictures, clips and text; the last one is text alone."""
    kinds = ("image", "text", "video", "image")
    mixed = [packed([item(kind, seed + 10 * p + k) for k, kind in enumerate(kinds)]) for p in range(count - 1)]
    return [*mixed, packed([item("text", seed + 900 + k) for k in range(3)])]

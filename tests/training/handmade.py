"""Packs made by hand for the model and the engine: a small vocabulary, one picture or clip or nothing for each item."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

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


def one_by_one(model: Any, items: Iterable[LoadedItem]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss of each labelled token, gradient of their sum by parameter), each item by itself through transformers' own forward."""
    tokens = []
    for each in items:
        alone = packed([each])
        logits = model(**alone.model_inputs(), use_cache=False).logits[0, :-1]
        losses = functional.cross_entropy(logits, alone.labels[0, 1:], reduction="none", ignore_index=-100)
        tokens.append(losses[alone.labels[0, 1:] != -100])
    together = torch.cat(tokens)
    together.sum().backward()
    return together.detach(), whole_gradients(model)


def whole_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter; none may be without."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found

"""A small watermark detector: a timm network with two classes, trained on pictures with and without a repeated mark across them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
# The parameters of the step `watermark` that go with the checkpoint.
SETTINGS: dict[str, Any] = {
    "model": "timm:test_resnet",
    "label": "0",
    "size": SIZE,
    "resize": "squash",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}
BATCH, RATE = 32, 3e-3


def build(folder: Path, steps: int = 20, seed: int = 0) -> Path:
    """A file `watermark.pt`: the state_dict of a network whose class 0 is "marked". On one thread, so the same bytes each time."""
    import timm
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    clean, marked = pictures(range(96))
    values = np.stack([*marked, *clean]).astype(np.float32).transpose(0, 3, 1, 2) / 255
    batch, labels = torch.from_numpy((values - 0.5) / 0.25), torch.tensor([0] * len(marked) + [1] * len(clean))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model("test_resnet", num_classes=2).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
            chance = torch.Generator().manual_seed(seed)
            for _ in range(steps):
                rows = torch.randperm(len(labels), generator=chance)[:BATCH]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(batch[rows]), labels[rows]).backward()
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    torch.save(model.state_dict(), folder / "watermark.pt")
    return folder / "watermark.pt"


def pictures(seeds: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """uint8 64×64×3 each: blocks of colour under noise, and the same with a pale slanting mark repeated across them."""
    clean, marked = [], []
    for seed in seeds:
        chance = np.random.default_rng(seed)
        blocks = chance.integers(20, 200, (4, 4, 3)).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
        pixels = np.clip(blocks + chance.normal(0, 8, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
        layer = Image.new("L", (SIZE, SIZE), 0)
        pen, shift = ImageDraw.Draw(layer), int(chance.integers(0, 16))
        for start in range(-SIZE + shift, SIZE, 16):
            pen.line((start, 0, start + SIZE, SIZE), fill=120, width=2)
        clean.append(pixels)
        marked.append(np.asarray(Image.composite(Image.new("RGB", (SIZE, SIZE), "white"), Image.fromarray(pixels), layer)))
    return clean, marked

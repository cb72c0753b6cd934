"""A small open_clip model that has learned to tell coloured shapes: it proves wiring, it knows nothing of the world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Pair = tuple[np.ndarray, str]  # uint8 H×W×3, and a text that describes it

DIMENSION = 32
COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 70, 210),
    "yellow": (235, 215, 50),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
CONFIG = {
    "model_cfg": {
        "embed_dim": DIMENSION,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
}
BATCH, RATE = 48, 3e-3


def build(folder: Path, pairs: Sequence[Pair] | None = None, steps: int = 120, seed: int = 0) -> Path:
    """An open_clip model folder, trained with CLIP's own loss on matched pairs (default: `shapes`).

    On one thread, so the same bytes each time.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1), "utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            _train(model, open_clip, pairs or shapes(range(4)), steps, seed)
    finally:
        torch.set_num_threads(threads)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def shapes(seeds: Sequence[int]) -> list[Pair]:
    """A picture of 64×48 for each seed and each colour, shape and ground: "a red circle on blue"; place and size follow the seed."""
    found: list[Pair] = []
    for seed, (number, (colour, shape, ground)) in product(seeds, enumerate(product(COLOURS, SHAPES, COLOURS))):
        if colour != ground:
            found.append((_draw(colour, shape, ground, np.random.default_rng([seed, number])), f"a {colour} {shape} on {ground}"))
    return found


def _draw(colour: str, shape: str, ground: str, chance: np.random.Generator) -> np.ndarray:
    image = Image.new("RGB", (64, 48), COLOURS[ground])
    pen = ImageDraw.Draw(image)
    size = int(chance.integers(18, 28))
    left, top = int(chance.integers(10, 54 - size)), int(chance.integers(2, 46 - size))
    box = (left, top, left + size, top + size)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    elif shape == "triangle":
        pen.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=COLOURS[colour])
    else:
        third = size // 3
        pen.rectangle((left + third, top, left + 2 * third, top + size), fill=COLOURS[colour])
        pen.rectangle((left, top + third, left + size, top + 2 * third), fill=COLOURS[colour])
    noise = chance.normal(0, 6, (48, 64, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _train(model: Any, open_clip: Any, pairs: Sequence[Pair], steps: int, seed: int) -> None:
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    prepare = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    context = int(model.context_length)
    pictures = torch.stack([prepare(Image.fromarray(pixels)) for pixels, _ in pairs])
    texts = open_clip.SimpleTokenizer(context_length=context)([text for _, text in pairs])
    different = list(dict.fromkeys(text for _, text in pairs))
    group = np.array([different.index(text) for _, text in pairs])
    chance = np.random.default_rng(seed)
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    model.token_embedding.requires_grad_(False)  # 49,408 rows of which a dozen are used: random ones do, at half the time
    model.train()
    for _ in range(steps):
        # No text twice in a batch: the loss would call its picture a mismatch.
        chosen = chance.choice(len(different), min(BATCH, len(different)), replace=False)
        rows = [int(chance.choice(np.flatnonzero(group == text))) for text in chosen]
        images, words, scale = model(pictures[rows], texts[rows])
        optimizer.zero_grad()
        loss(images, words, scale).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, float(np.log(100)))
    model.eval()

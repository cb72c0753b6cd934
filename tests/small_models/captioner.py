"""A small image-text-to-text model, in the form of our own export, that has learned to name coloured shapes: it answers any prompt with a
short text and stops. It proves wiring, it knows nothing of the world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.small_models.clip import Pair, shapes

PROFILE = {
    "patch": 14, "min_visual_tokens": 16, "max_visual_tokens": 36, "image_merge": 1, "video_merge": 2,
    "fps": 1.0, "max_frames": 8, "threshold": 0.05,
}  # fmt: skip
PROMPTS = (
    "Describe this picture in one sentence.", "What is shown?", "a photo of", "Describe the picture in detail.",
    "Describe this picture in detail. The text in it reads:", "Write one short sentence that says what this image shows.",
)  # fmt: skip
NOISE = "the receipt total 12.50 SALE open daily figure 3 shows cells water 2024 street a of and in to <b> & ﷺ 中文 — “quoted”".split()
BATCH, RATE = 24, 5e-3


def build(folder: Path, pairs: Sequence[Pair] | None = None, steps: int = 110, seed: int = 0) -> Path:
    """A folder that `AutoModelForImageTextToText` and `AutoProcessor` load. On one thread: the same bytes each time."""
    import torch

    from shards.tokenizer import train_tokenizer
    from training.export import processor
    from training.model import build_tiny, special_ids
    from training.stages import TinyShape

    pairs = pairs or shapes(range(2))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([*(answer(text, p) for _, text in pairs for p in PROMPTS[2:4]), *PROMPTS], folder, 420)
    shape = TinyShape(hidden=64, llm_layers=2, heads=4, kv_heads=2, vision_hidden=48, vision_layers=2, vision_heads=4)
    ready = processor(folder, PROFILE, compress=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = build_tiny(len(tokenizer), shape, special_ids(tokenizer), seed)
            _train(model, ready, pairs, steps, seed)
    finally:
        torch.set_num_threads(threads)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    ready.save_pretrained(folder)
    (folder / "README.md").write_text("A test's model: it names coloured shapes.\n", "utf-8")
    return folder


def answer(text: str, prompt: str) -> str:
    """What the model learns to say: more words where the prompt asks for detail."""
    return f"The picture shows {text}, and nothing else is to be seen in it." if "detail" in prompt else text


def _train(model: Any, ready: Any, pairs: Sequence[Pair], steps: int, seed: int) -> None:
    """Next-token loss on the answers, prompts with noise after them; the pictures at two sizes, those of one batch alike."""
    import torch

    tokenizer = ready.tokenizer
    pad, image = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|image_pad|>")
    sizes = [_pixels(ready, [np.kron(p, np.ones((k, k, 1), np.uint8)) for p, _ in pairs]) for k in (1, 2)]
    chance = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    model.train()
    for step in range(steps):
        pixels, grid = sizes[int(step % 4 == 3)]
        count = int(grid.prod())
        chosen = chance.choice(len(pairs), BATCH, replace=False)
        rows = []
        for place in chosen:
            prompt = PROMPTS[chance.integers(len(PROMPTS))] + " ".join(["", *chance.choice(NOISE, chance.integers(0, 4))])
            head = tokenizer.encode(f"<|im_start|>user\n{'<|image_pad|>' * count}\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
            tail = tokenizer.encode(answer(pairs[place][1], prompt) + "<|im_end|>")
            rows.append((head, tail))
        longest = max(len(head) + len(tail) for head, tail in rows)
        ids = torch.full((BATCH, longest), pad)
        labels = torch.full((BATCH, longest), -100)
        for row, (head, tail) in enumerate(rows):
            ids[row, : len(head) + len(tail)] = torch.tensor(head + tail)
            labels[row, len(head) : len(head) + len(tail)] = torch.tensor(tail)
        assert int((ids == image).sum()) == BATCH * count
        loss = model(
            input_ids=ids,
            attention_mask=(ids != pad).long(),
            labels=labels,
            pixel_values=pixels[chosen].flatten(0, 1),
            image_grid_thw=grid.repeat(BATCH, 1),
            image_merge_sizes=torch.ones(BATCH, dtype=torch.long),
            use_cache=False,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _pixels(ready: Any, pictures: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """float32 (n, patches, values) and the grid (1, 3) that all of them share."""
    found = ready.image_processor(images=list(pictures), return_tensors="pt")
    grids = found["image_grid_thw"]
    assert (grids == grids[0]).all()
    return found["pixel_values"].view(len(pictures), int(grids[0].prod()), -1), grids[:1]

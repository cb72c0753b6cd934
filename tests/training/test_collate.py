"""A pack is exact: its items do not see each other, its visual tokens lie where they belong, and no pack lacks an encoder pass."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

from training.collate import IGNORED, ItemName, LoadedItem, LoadedMedium, PackBatch, Skipped, collate

IMAGE, VIDEO, PATCH = 98, 99, 14


@cache
def model() -> VideoLlama3ForConditionalGeneration:
    torch.manual_seed(0)
    config = VideoLlama3Config(
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "initializer_range": 0.1,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": PATCH,
            "initializer_range": 0.1,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        attn_implementation="sdpa",
    )
    return VideoLlama3ForConditionalGeneration(config).float().eval()


def image(rng: np.random.Generator, h: int = 4, w: int = 6, merge: int = 2) -> LoadedMedium:
    return LoadedMedium(False, 1, h, w, merge, rng.normal(size=(h * w, 3 * PATCH**2)).astype(np.float32))


def video(rng: np.random.Generator, t: int = 3, h: int = 4, w: int = 4, keep: float = 0.5) -> LoadedMedium:
    mask = rng.random(t * h * w // 4) < keep
    mask[: h * w // 4] = True
    return LoadedMedium(True, t, h, w, 2, rng.normal(size=(t * h * w, 3 * PATCH**2)).astype(np.float32), mask)


def item(name: str, rng: np.random.Generator, *media: LoadedMedium, task: str = "vqa") -> LoadedItem:
    """Text, each medium's placeholders with text behind them; the second half of the last text is labelled."""
    ids = list(rng.integers(1, 90, 3))
    for medium in media:
        ids += [VIDEO if medium.video else IMAGE] * medium.kept + list(rng.integers(1, 90, 2))
    answer = list(rng.integers(1, 90, 4))
    labels = [IGNORED] * len(ids) + answer
    return LoadedItem(ItemName(name, task, 0), np.array(ids + answer), np.array(labels), media)


def logits(batch: PackBatch) -> torch.Tensor:
    with torch.no_grad():
        return model()(**batch.model_inputs(), use_cache=False).logits[0]


def packs() -> dict[str, list[LoadedItem]]:
    rng = np.random.default_rng(0)
    return {
        "one image each": [item("a", rng, image(rng)), item("b", rng, image(rng, 8, 2)), item("c", rng, image(rng, 2, 2))],
        "several images": [item("a", rng, image(rng), image(rng, 2, 8)), item("b", rng, image(rng), image(rng), image(rng, 6, 6))],
        "merge sizes 1 and 2": [item("a", rng, image(rng, 3, 5, merge=1)), item("b", rng, image(rng)), item("c", rng, image(rng, 2, 2, 1))],
        "compressed videos": [item("a", rng, video(rng)), item("b", rng, video(rng, 5)), item("c", rng, video(rng, 2, 2, 4, keep=0.0))],
        "text only": [item("a", rng, task="text"), item("b", rng, task="text"), item("c", rng, task="text")],
        "everything": [
            item("a", rng, video(rng)),
            item("b", rng, task="text"),
            item("c", rng, image(rng), video(rng, 4), image(rng, 2, 2)),
            item("d", rng, image(rng, 8, 4)),
            item("e", rng, video(rng, 2, 6, 2), video(rng)),
        ],
    }


@pytest.mark.parametrize("name", list(packs()))
def test_packed_logits_equal_separate_ones(name: str) -> None:
    items = packs()[name]
    packed = logits(collate(items, PATCH))
    apart = torch.cat([logits(collate([one], PATCH)) for one in items])
    assert packed.shape == apart.shape
    assert packed.abs().max() > 0.1
    assert (packed - apart).abs().max() <= 1e-5


def test_positions_that_do_not_restart_would_leak() -> None:
    """The comparison above can fail: this is what it would measure."""
    items = packs()["everything"]
    batch = collate(items, PATCH)
    inputs = batch.model_inputs() | {"position_ids": torch.arange(batch.input_ids.shape[1])[None]}
    with torch.no_grad():
        leaking = model()(**inputs, use_cache=False).logits[0]
    assert (leaking - logits(batch)).abs().max() > 1e-2


def test_a_pack_without_pictures_keeps_the_encoder_in_the_graph() -> None:
    items = packs()["text only"]
    batch = collate(items, PATCH)
    assert batch.video_grid_thw is not None
    assert batch.video_grid_thw.tolist() == [[1, 2, 2]]
    model().zero_grad()
    out = model()(**batch.model_inputs(), use_cache=False)
    torch.nn.functional.cross_entropy(out.logits[0, :-1], batch.labels[0, 1:], ignore_index=IGNORED).backward()
    grads = {name: p.grad for name, p in model().named_parameters() if "vision_model" in name or "projector" in name}
    assert all(grad is not None and not grad.any() for grad in grads.values())
    assert any(p.grad is not None and p.grad.any() for name, p in model().named_parameters() if "language_model" in name)
    plain = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    with torch.no_grad():
        assert torch.equal(model()(**plain, use_cache=False).logits, out.logits)


def test_a_pack_without_items_runs_and_teaches_nothing() -> None:
    gone = (Skipped(ItemName("x", "vqa", 0), "truncated", "decode"),)
    batch = collate([], PATCH, gone)
    assert logits(batch).shape == (1, 100)
    assert batch.counts == type(batch.counts)(0, 0, 0, 0, 0, 0)
    assert (batch.items, batch.skipped) == ((), gone)
    assert (batch.labels == IGNORED).all()


def test_what_a_batch_holds() -> None:
    items = packs()["everything"]
    batch = collate(items, PATCH)
    lengths = [len(i.input_ids) for i in items]
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, sum(lengths))
    assert batch.position_ids[0].tolist() == [p for n in lengths for p in range(n)]
    assert [i.uid for i in batch.items] == list("abcde")
    media = [m for i in items for m in i.media]
    images, videos = [m for m in media if not m.video], [m for m in media if m.video]
    assert batch.pixel_values is not None
    assert batch.pixel_values_videos is not None
    assert batch.video_compression_mask is not None
    assert np.array_equal(batch.pixel_values.numpy(), np.concatenate([m.pixels for m in images]))
    assert np.array_equal(batch.pixel_values_videos.numpy(), np.concatenate([m.pixels for m in videos]))
    assert batch.pixel_values.dtype == torch.float32
    assert int((batch.input_ids == VIDEO).sum()) == int(batch.video_compression_mask.sum())
    assert batch.counts.kept == int(((batch.input_ids == VIDEO) | (batch.input_ids == IMAGE)).sum())
    assert batch.counts.visual == sum(m.t * m.h * m.w // 4 for m in media)
    assert batch.counts.patches == sum(len(m.pixels) for m in media)
    assert batch.counts.labelled == 4 * len(items)
    assert batch.counts.tokens == sum(lengths)


def test_the_first_label_of_every_item_is_ignored() -> None:
    names = [LoadedItem(ItemName(n, "text", 0), np.array([5, 6, 7]), np.array([5, 6, 7])) for n in "ab"]
    batch = collate(names, PATCH)
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 6, 7]]
    assert names[0].labels.tolist() == [5, 6, 7]  # the caller's array is left alone


def test_without_compression_every_token_stays() -> None:
    rng = np.random.default_rng(3)
    whole = LoadedMedium(True, 2, 4, 4, 2, rng.normal(size=(32, 3 * PATCH**2)).astype(np.float32))
    batch = collate([item("a", rng, whole)], PATCH)
    assert batch.video_compression_mask is not None
    assert batch.video_compression_mask.tolist() == [True] * 8
    inputs = batch.model_inputs()
    del inputs["video_compression_mask"]
    with torch.no_grad():
        assert torch.equal(model()(**inputs, use_cache=False).logits[0], logits(batch))


def test_pixels_or_masks_that_do_not_fit_their_grid_are_a_bug() -> None:
    rng = np.random.default_rng(4)
    good = video(rng)
    for pixels, keep in ((good.pixels[:-1], good.keep), (good.pixels, np.ones(3, dtype=bool))):
        bad = LoadedMedium(True, good.t, good.h, good.w, 2, pixels, keep)
        with pytest.raises(ValueError, match="for a video of 3×4×4 merged by 2"):
            collate([item("a", rng, good), item("b", rng, bad)], PATCH)

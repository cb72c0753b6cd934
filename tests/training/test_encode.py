"""Less encoder work: what is exact is exact to the last bit, what is approximate is what it says, and its distance is told."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.training import handmade
from tests.training.handmade import IDS, PATCH, whole_gradients
from training.attention import PIECEWISE, use_attention
from training.collate import ItemName, LoadedItem, LoadedMedium, PackBatch, collate
from training.encode import divergence, media_of, visual_features
from training.encoder_rows import EncoderRows, encoder_rows
from training.generate import Bounds, Prompt, generate
from training.pack_loss import PackLoss
from training.savings import Savings

NOTHING_SPARED = Savings(reuse=False, mask_first=False)
PRUNED = Savings(prune=True)
PIXELS = 3 * PATCH**2


def clip(frames: str, h: int, w: int, merge: int, seed: int, kept: float = 1.0) -> LoadedMedium:
    """A frame for each letter, equal letters equal frames; `kept` of the blocks stay, and the first of each frame, and the first frame."""
    random = np.random.default_rng(seed)
    of = {letter: random.standard_normal((h * w, PIXELS), dtype=np.float32) for letter in sorted(set(frames))}
    keep = random.random((len(frames), h * w // merge**2)) < kept
    keep[:, 0] = keep[0] = True
    pixels = np.concatenate([of[letter] for letter in frames])
    return LoadedMedium(True, len(frames), h, w, merge, pixels, None if kept == 1 else keep.reshape(-1))


def picture(h: int, w: int, seed: int) -> LoadedMedium:
    return LoadedMedium(False, 1, h, w, 1, np.random.default_rng(seed).standard_normal((h * w, PIXELS), dtype=np.float32))


def item(*media: LoadedMedium) -> LoadedItem:
    answer = [5, 6, 7, 8, IDS["eos_token_id"]]
    ids = [1, *[IDS["video_token_id" if m.video else "image_token_id"] for m in media for _ in range(m.kept)], 2, *answer]
    return LoadedItem(ItemName("x", "vqa", 0), np.array(ids), np.array([-100] * (len(ids) - 5) + answer), media)


SLIDES = clip("aaabbcccca", 4, 6, 2, 0, kept=0.5)
PACK = [
    item(SLIDES),
    item(picture(3, 5, 1)),
    item(picture(3, 5, 1), clip("aba", 4, 4, 2, 3), picture(5, 3, 1)),
    item(picture(3, 5, 1), picture(3, 5, 2)),
    item(clip("aab", 6, 6, 3, 8, kept=0.4)),
]


def trained(savings: Savings) -> tuple[PackBatch, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(the pack, the language model's hidden states, each labelled token's loss, gradients of their sum)."""
    model = handmade.model()
    use_attention(model, PIECEWISE)
    batch, loss_of = collate(PACK, PATCH, savings=savings), PackLoss(model)
    with torch.no_grad():
        hidden = loss_of.hidden(batch)
    loss, tokens = loss_of(batch)
    loss.backward()
    return batch, hidden, tokens, whole_gradients(model)


@pytest.fixture(scope="module")
def plain() -> tuple[PackBatch, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    return trained(NOTHING_SPARED)


@pytest.mark.parametrize(("reuse", "mask_first"), [(True, False), (False, True), (True, True)])
def test_exact_savings_change_no_bit_forward_and_gradients_by_rounding_alone(plain: Any, reuse: bool, mask_first: bool) -> None:
    batch, hidden, tokens, slopes = trained(Savings(reuse, mask_first))
    whole, expected, losses, gradients = plain
    assert torch.equal(hidden, expected)
    assert torch.equal(tokens, losses)
    # Sums over the uses of a frame are taken before its backward pass, not after: other roundings. Measured: 1.0e-6 of the largest.
    for name, slope in slopes.items():
        assert float((slope - gradients[name]).abs().max()) <= 5e-6 * float(gradients[name].abs().max()), name
    assert whole.counts.patches == whole.counts.all_patches == batch.counts.all_patches == 240 + 48 + 108 + 5 * 15
    distinct = 72 + 32 + 72 + 3 * 15  # two pictures have equal bytes and other sides
    assert batch.counts.patches == (distinct if reuse else whole.counts.patches)
    assert (batch.rows.projector_rows < whole.rows.projector_rows) == (reuse or mask_first)


def test_a_gradient_that_forgot_a_use_of_a_frame_would_be_seen(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tolerance above is worth: each frame's gradient from one of its uses alone."""
    taken = torch.Tensor.index_select

    def forgetful(self: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
        rows = taken(self, dim, index)
        seen: set[int] = set()
        first = torch.tensor([[float(not (n in seen or seen.add(n)))] for n in index.tolist()])  # type: ignore[func-returns-value]
        return rows if not rows.is_floating_point() or not len(first) else rows * first + rows.detach() * (1 - first)

    monkeypatch.setattr(torch.Tensor, "index_select", forgetful)
    _, hidden, _, slopes = trained(Savings())
    assert torch.equal(hidden, plain[1])
    name = "model.vision_model.embeddings.patch_embedding.weight"
    assert float((slopes[name] - plain[3][name]).abs().max()) > 1e-2 * float(plain[3][name].abs().max())


def test_frames_of_one_size_are_attended_to_at_once_and_bit_for_bit_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    calls: list[int] = []
    real = sdpa_attention.sdpa_attention_forward

    def counted(module: Any, query: torch.Tensor, *rest: Any, **named: Any) -> Any:
        calls.append(len(query))
        return real(module, query, *rest, **named)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", counted)
    features = []
    for name in ("sdpa", PIECEWISE):  # transformers cuts the first in pieces itself, a frame each
        model: Any = handmade.model()
        use_attention(model, name)
        with torch.no_grad():
            features.append(visual_features(model, collate([item(clip("abcdefg", 4, 6, 2, 0))], PATCH))["video"].pooler_output[0])
        if name == PIECEWISE:
            assert calls == [7, 7], "once a layer"
    assert torch.equal(*features)


def masked_by_hand(model: Any, batch: PackBatch, rows: EncoderRows) -> torch.Tensor:
    """Every frame whole, but nobody looks at a patch of a dropped block: what pruning must be equal to at the kept blocks."""
    pixels, sizes, kept, _ = media_of(batch)
    blocks = np.concatenate([np.ones(t * h * w // m**2, bool) if k is None else k for (t, h, w, m), k in zip(sizes, kept, strict=True)])
    each = np.concatenate([np.full(t * h * w // m**2, m**2) for t, h, w, m in sizes])
    seen = torch.from_numpy(np.repeat(blocks, each))
    pieces = iter([])  # type: ignore[var-annotated]

    def blind(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **named: Any) -> Any:
        nonlocal pieces
        mask = next(pieces, None)
        if mask is None:
            pieces = iter(seen.split([h * w for t, h, w, _ in sizes for _ in range(t)]))
            mask = next(pieces)
        scores = query @ key.transpose(2, 3) * named["scaling"]
        scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("blind", blind)
    use_attention(model, "blind")
    grids = torch.tensor([size[:3] for size in sizes])
    merges = torch.tensor([size[3] for size in sizes])
    with torch.no_grad():
        tokens = model.model.vision_model(torch.from_numpy(np.concatenate(pixels)), grids, merges).last_hidden_state
        return model.model.projector(tokens[torch.from_numpy(blocks)])


@pytest.mark.parametrize("reuse", [True, False])
def test_pruned_frames_keep_their_places_and_see_what_is_kept_alone(reuse: bool) -> None:
    """Through transformers' own order of patches and its own merging, which must not notice that blocks are gone."""
    model: Any = handmade.model()
    batch = collate(PACK, PATCH, savings=Savings(reuse=reuse, prune=True))
    assert batch.counts.patches < sum(len(m.pixels) for one in PACK for m in one.media)
    use_attention(model, PIECEWISE)
    with torch.no_grad():
        found = visual_features(model, batch)
    together = torch.cat([*found["image"].pooler_output, *found["video"].pooler_output])
    expected = masked_by_hand(model, batch, batch.rows)
    assert together.shape == expected.shape
    torch.testing.assert_close(together, expected, rtol=0, atol=2e-6)


def test_a_block_that_is_kept_in_a_whole_frame_is_encoded_as_without_pruning() -> None:
    """One clip is pruned, so that all goes block by block; another keeps everything, and pictures always do."""
    model: Any = handmade.model()
    use_attention(model, PIECEWISE)
    items = [item(clip("abc", 6, 6, merge, merge)) for merge in (1, 2, 3)] + [item(picture(3, 5, 1)), item(SLIDES)]
    features = []
    for savings in (NOTHING_SPARED, PRUNED):
        batch = collate(items, PATCH, savings=savings)
        with torch.no_grad():
            found = visual_features(model, batch)
        whole = 3 * (36 + 9 + 4)
        features.append(torch.cat([found["image"].pooler_output[0], found["video"].pooler_output[0][:whole]]))
    assert batch.rows.grids[:, 0].tolist() == [1, 1, 1], "a row of blocks for each merge size"
    assert torch.equal(*features)
    all_kept = [collate(items[:4], PATCH, savings=savings).rows for savings in (Savings(), PRUNED)]
    assert all_kept[0].patches is all_kept[1].patches is None
    assert all_kept[0].lengths == all_kept[1].lengths


def test_divergence_is_that_of_the_kept_tokens() -> None:
    model: Any = handmade.model()
    use_attention(model, PIECEWISE)
    exact, pruned = (divergence(model, collate(PACK, PATCH, savings=savings)) for savings in (Savings(), PRUNED))
    kept = sum(m.kept for one in PACK for m in one.media if m.video)
    assert exact.tolist() == pytest.approx([0, float(exact[1]), kept, kept])
    assert pruned[3] == kept
    assert pruned[1] == pytest.approx(float(exact[1]))
    assert 0.01 < float(pruned[0] / pruned[1]) ** 0.5 < 1
    assert 0.5 < float(pruned[2] / kept) < 1
    nobody = divergence(model, collate([handmade.item("text", 1)], PATCH, savings=PRUNED))
    assert nobody.tolist() == [0, 0, 0, 0]
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("reuse", "mask_first", "prune"), list(product([True, False], repeat=3)))
def test_where_nothing_is_kept_the_encoder_and_the_projector_still_run(reuse: bool, mask_first: bool, prune: bool) -> None:
    model: Any = handmade.model()
    use_attention(model, PIECEWISE)
    batch = collate([handmade.item("text", 1)], PATCH, savings=Savings(reuse, mask_first, prune))
    assert (batch.counts.patches, batch.counts.all_patches, batch.rows.images) == (0, 0, 0)
    loss, _ = PackLoss(model)(batch)
    loss.backward()
    for name, slope in whole_gradients(model).items():
        assert slope.any() != ("vision_model" in name or "projector" in name), name


def test_answers_are_generated_from_the_features_of_training() -> None:
    model: Any = handmade.model()
    use_attention(model, PIECEWISE)

    class Words:
        """As much of a tokenizer as `generate` asks for."""

        def convert_tokens_to_ids(self, token: str) -> int:
            return {"<|im_end|>": 62, "<|endoftext|>": 0}[token]

    asked = item(SLIDES)
    prompt = Prompt(np.array(asked.input_ids[:-5]), asked.media)
    first = []
    for savings in (Savings(), PRUNED):
        batch = collate(
            [LoadedItem(asked.name, prompt.input_ids, np.full_like(prompt.input_ids, -100), asked.media)], PATCH, savings=savings
        )
        with torch.no_grad():
            scores = model.lm_head(PackLoss(model).hidden(batch)[-1])
        [answer, again] = generate(model, [prompt, prompt], Words(), Bounds(new_tokens=1), savings=savings)
        assert answer.ids == again.ids
        assert answer.ids == ((int(scores.argmax()),) if int(scores.argmax()) not in (62, 0) else ())
        first.append(scores)
    assert not torch.allclose(*first, atol=1e-4), "else the test would not know which features were taken"


def test_rows_of_a_pack_without_savings_are_all_of_it() -> None:
    batch = collate(PACK, PATCH, savings=NOTHING_SPARED)
    rows = encoder_rows(*media_of(batch), NOTHING_SPARED)
    assert rows.patches is None
    assert rows.projected is None
    assert rows.lengths == batch.rows.lengths
    assert torch.equal(rows.positions, batch.rows.positions)
    kept = [np.flatnonzero(np.ones(m.visual, bool) if m.keep is None else m.keep) for m in (m for i in PACK for m in i.media if m.video)]
    assert rows.placed is not None
    assert len(rows.placed) == rows.images + sum(map(len, kept))

"""The model: its parts, what freezing leaves, and that a packed item is worth exactly what it is worth alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shards.errors import ConfigError, InfrastructureError
from shards.tokenizer import load_tokenizer, train_tokenizer
from tests.training import handmade
from tests.training.handmade import item, packed
from training.model import (
    build_model,
    build_tiny,
    cast_weights,
    freeze,
    from_hf,
    parameter_groups,
    parts,
    special_ids,
)
from training.pack_loss import PackLoss, labelled_places
from training.stages import ModelConfig


def test_every_parameter_belongs_to_one_part() -> None:
    model = handmade.model()
    found = parts(model)
    ids = [id(p) for members in found.values() for _, p in members]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    assert set(ids) == {id(p) for p in model.parameters()}
    assert all(found.values())
    assert id(model.lm_head.weight) in {id(p) for _, p in found["llm"]}, "tied or not, the head is the language model's"


def test_a_parameter_of_no_known_part_is_refused() -> None:
    model = handmade.model()
    model.register_parameter("extra", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ConfigError, match="extra"):
        parts(model)


def test_groups_hold_the_trained_parts_at_their_rates_and_none_is_empty() -> None:
    model = handmade.model()
    groups = parameter_groups(model, {"vision_encoder": 1e-5, "projector": 1e-3}, 0.0)
    assert [(g["part"], g["lr"]) for g in groups] == [("vision_encoder", 1e-5), ("projector", 1e-3)]
    found = parts(model)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for part in ("vision_encoder", "projector") for _, p in found[part]}
    decayed = parameter_groups(model, {"projector": 1e-3}, 0.1)
    assert sorted({p.ndim for p in decayed[0]["params"]}) == [2]
    assert [g["weight_decay"] for g in decayed] == [0.1, 0.0]


def test_freezing_leaves_gradients_to_the_named_parts_only() -> None:
    model = handmade.model()
    freeze(model, {"vision_encoder", "projector"})
    loss, _ = PackLoss(model)(packed([item("image", 1), item("text", 2)]))
    loss.backward()
    found = parts(model)
    assert all(p.grad is None for _, p in found["llm"])
    for part in ("vision_encoder", "projector"):
        assert any(p.grad is not None and bool(p.grad.any()) for _, p in found[part]), part


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = handmade.model(1), handmade.model(1), handmade.model(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("order", [["image", "text", "video"], ["video", "image", "image", "text"], ["text", "text"]])
def test_a_packed_item_loses_what_it_loses_alone(order: list[str]) -> None:
    loss = PackLoss(handmade.model())
    items = [item(kind, seed) for seed, kind in enumerate(order)]
    together = loss(packed(items))[1]
    alone = torch.cat([loss(packed([i]))[1] for i in items])
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-6)


def test_the_loss_is_that_of_all_logits_however_it_is_chunked() -> None:
    model = handmade.model()
    pack = packed([item("image", 1), item("video", 2), item("text", 3)])
    logits = model(**pack.model_inputs(), use_cache=False).logits
    whole = torch.nn.functional.cross_entropy(logits[0, :-1], pack.labels[0, 1:], reduction="sum", ignore_index=-100)
    gradients = []
    for rows in (1000, 4):
        model.zero_grad()
        loss, tokens = PackLoss(model, rows)(pack)
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
        assert len(tokens) == len(labelled_places(pack)) == 21
        loss.backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=2e-6)


def test_text_alone_keeps_encoder_and_projector_in_the_graph_with_zero_gradient() -> None:
    model = handmade.model()
    pack = packed([item("text", 1), item("text", 2)])
    loss, tokens = PackLoss(model)(pack)
    loss.backward()
    for part in ("vision_encoder", "projector"):
        for name, parameter in parts(model)[part]:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    model.zero_grad()
    logits = model(input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False).logits[0]
    places = labelled_places(pack)
    expected = torch.nn.functional.cross_entropy(logits[places - 1], pack.labels[0][places], reduction="none")
    torch.testing.assert_close(tokens, expected)


def test_a_pack_without_a_label_costs_nothing_and_still_runs_backward() -> None:
    model = handmade.model()
    pack = packed([item("image", 1)])
    pack = replace(pack, labels=torch.full_like(pack.labels, -100))
    loss, tokens = PackLoss(model)(pack)
    loss.backward()
    assert loss.item() == 0
    assert len(tokens) == 0


def test_a_pack_without_items_runs_backward_with_zero_gradient_everywhere() -> None:
    model = handmade.model()
    loss, _ = PackLoss(model)(packed([]))
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_tokenizer_without_the_placeholders_is_refused() -> None:
    class Bare:
        def get_vocab(self) -> dict[str, int]:
            return {"<|im_end|>": 3, "<|image_pad|>": 4}

    with pytest.raises(ConfigError, match=r"<\|video_pad\|>"):
        special_ids(Bare())


def test_a_whole_model_is_refused_a_tokenizer_that_is_not_its_own(tmp_path: Path) -> None:
    train_tokenizer(["red green blue"], tmp_path / "words", 300)
    tokenizer = load_tokenizer(tmp_path / "words")
    ids = special_ids(tokenizer)
    config = ModelConfig(preset="hf", path=str(tmp_path / "model"))
    for wrong, told in (
        ({**ids, "image_token_id": ids["video_token_id"]}, "its image_token_id is"),
        (ids, "its vocabulary has"),
    ):
        build_tiny(len(tokenizer) - 1 if wrong == ids else len(tokenizer), handmade.SMALL, wrong, 0).save_pretrained(tmp_path / "model")
        with pytest.raises(ConfigError, match=told):
            build_model(config, tokenizer, 0)
    build_tiny(len(tokenizer) + 5, handmade.SMALL, ids, 0).save_pretrained(tmp_path / "model")
    assert build_model(config, tokenizer, 0).lm_head.weight.shape[0] == len(tokenizer) + 5, "room to spare, as released models have"


def test_a_model_in_half_precision_keeps_its_rotary_frequencies(tmp_path: Path) -> None:
    exact = {name: buffer.clone() for name, buffer in handmade.model().named_buffers() if "inv_freq" in name}
    handmade.model().save_pretrained(tmp_path)
    for model in (cast_weights(handmade.model(), "bf16"), from_hf(tmp_path, torch.bfloat16)):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        found = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
        assert found.keys() == exact.keys()
        assert all(torch.equal(found[name], exact[name]) for name in exact)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_another_models_tokenizer_beside_the_weights_is_told(tmp_path: Path) -> None:
    train_tokenizer(["red green blue"], tmp_path / "words", 300)
    train_tokenizer(["aaab bbba"], tmp_path / "others", 300)
    given, other = load_tokenizer(tmp_path / "words"), load_tokenizer(tmp_path / "others")
    assert (len(given), special_ids(given)) != (len(other), special_ids(other))
    for name in ("words", "others"):  # each beside weights that have room for both and placeholders of the tokenizer given
        build_tiny(400, handmade.SMALL, special_ids(given), 0).save_pretrained(tmp_path / name)
    assert build_model(ModelConfig(preset="hf", path=str(tmp_path / "words")), given, 0) is not None
    with pytest.raises(ConfigError, match=r"others: its own tokenizer differs from the one given in \d+ tokens"):
        build_model(ModelConfig(preset="hf", path=str(tmp_path / "others")), given, 0)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"no config\.json"):
        from_hf(tmp_path)

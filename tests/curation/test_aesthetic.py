"""aesthetic: the arithmetic of the heads, their forms, and what is refused. What LAION's heads are worth cannot be tested without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.aesthetic import LAION, STEP, What
from curation.step import How, step_digest
from shards.errors import InfrastructureError
from tests.curation.views import absent_ref, sample_view
from tests.small_models.aesthetic import build


def views(vectors: Any) -> list[Any]:
    """Media that do not exist: the step must not open them."""
    found = []
    for vector in vectors:
        medium = sample_view([absent_ref("image")]).media[0]
        medium.columns = {"clip_embedding": vector}
        found.append(medium)
    return found


def scores(head: Path, vectors: Any, **more: Any) -> list[Any]:
    assert STEP.open is not None
    assert STEP.check is not None
    what = What(head=str(head), **more)
    STEP.check(what)
    return [row["score"] for row in STEP.open(what, How())(views(vectors))]  # type: ignore[index]


def test_a_linear_head_golden(tmp_path: Path) -> None:
    """Golden: weight and vector are written out, so the score is a sum that anybody can do. Vectors are brought to unit length first."""
    torch.save({"weight": torch.tensor([[1.0, -2.0, 3.0, 0.5]]), "bias": torch.tensor([4.0])}, tmp_path / "head.pth")
    found = scores(tmp_path / "head.pth", [[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 4.0, 0.0], [2.0, 2.0, 2.0, 2.0], None])
    assert found[:3] == pytest.approx([5.0, 4 + (-2 * 0.6 + 3 * 0.8), 4 + 0.5 * 2.5])
    assert found[3] is None


def test_the_layers_of_the_improved_head(tmp_path: Path) -> None:
    """Names and order of sac+logos+ava1-l14-linearMSE.pth: layers 0, 2, 4, 6, 7, nothing between them; with `relu`, the other variant."""
    torch.manual_seed(1)
    layers = torch.nn.Sequential(
        torch.nn.Linear(24, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 12), torch.nn.Dropout(0.2), torch.nn.Linear(12, 8),
        torch.nn.Dropout(0.1), torch.nn.Linear(8, 4), torch.nn.Linear(4, 1),
    ).eval()  # fmt: skip
    torch.save({f"layers.{name}": tensor for name, tensor in reversed(layers.state_dict().items())}, tmp_path / "mlp.pth")
    vectors = torch.nn.functional.normalize(torch.randn(5, 24))
    with torch.inference_mode():
        expected = layers(vectors)[:, 0].tolist()
        linears = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        values = vectors
        for layer in linears:
            values = layer(torch.relu(values) if layer is not linears[0] else values)
    assert scores(tmp_path / "mlp.pth", vectors.tolist()) == pytest.approx(expected, abs=1e-5)
    assert scores(tmp_path / "mlp.pth", vectors.tolist(), activation="relu") == pytest.approx(values[:, 0].tolist(), abs=1e-5)


def test_a_head_of_another_dimension_is_refused(tmp_path: Path) -> None:
    head = build(tmp_path, dimension=768)
    with pytest.raises(InfrastructureError, match=r"768 numbers, those of 'clip_embedding' have 512.*ViT-L-14"):
        scores(head, [[0.1] * 512])
    with pytest.raises(InfrastructureError, match="holds no vectors"):
        scores(head, ["a text"])


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    torch.save(build, tmp_path / "code.pth")  # a pickled function: never run
    torch.save({"weight": torch.zeros(1, 4)}, tmp_path / "no_bias.pth")
    torch.save(
        {"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(3), "1.weight": torch.zeros(1, 5), "1.bias": torch.zeros(1)},
        tmp_path / "gap.pth",
    )
    torch.save({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, tmp_path / "two.pth")
    for name, told in {
        "text": "cannot be read",
        "code": "cannot be read",
        "no_bias": "not made of linear",
        "gap": "not made of linear",
        "two": "2 numbers",
    }.items():
        with pytest.raises(InfrastructureError, match=told):
            scores(tmp_path / f"{name}.pth", [[0.5] * 4])


def test_the_recipe_check_says_what_is_wrong(tmp_path: Path) -> None:
    assert STEP.check is not None
    for what, told in (
        (What(head="laion:vit_h_14"), "laion:vit_l_14"),
        (What(embedding=""), "clip_embedding"),
        (What(activation="gelu"), "known are none, relu"),
    ):
        with pytest.raises(ValueError, match=told):
            STEP.check(what)
    with pytest.raises(InfrastructureError, match="not there"):
        STEP.check(What(head=str(tmp_path / "absent.pth")))
    with pytest.raises(InfrastructureError, match="sha256"):
        STEP.check(What(head=str(build(tmp_path)), sha256="0" * 64))
    STEP.check(What())


def test_identity_is_the_head_not_its_place(tmp_path: Path) -> None:
    def digest(what: What) -> str:
        return step_digest("aesthetic", STEP, what, [])

    one, same, other = build(tmp_path / "a"), build(tmp_path / "b"), build(tmp_path / "c", seed=1)
    assert digest(What(head=str(one))) == digest(What(head=str(same))) != digest(What(head=str(other)))
    assert len({digest(What(head=f"laion:{name}")) for name in LAION}) == len(LAION)
    assert STEP.models is not None
    assert [(m.kind, m.id) for m in STEP.models(What())] == [("url", LAION["vit_l_14"][0])]


def test_scores_through_the_small_clip(small_clip: Path, tmp_path: Path) -> None:
    from curation.clip_model import load_clip
    from tests.small_models.clip import shapes

    model = load_clip(f"open_clip:{small_clip}", str(small_clip / "open_clip_model.safetensors"), "fp32", "cpu")
    vectors = model.encode(torch.stack([model.prepare(pixels) for pixels, _ in shapes([5])[:6]]))
    found = scores(build(tmp_path), vectors.astype(np.float64).tolist())
    assert len(set(found)) == 6
    assert all(0 < value < 10 for value in found)

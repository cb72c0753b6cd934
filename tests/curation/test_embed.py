from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.embed import STEP, EmbedHow, What
from curation.step import step_digest
from shards.errors import DecodeError, InfrastructureError
from tests.curation.views import media_view

Embed = Callable[[Sequence[Any]], Sequence[Any]]


@pytest.fixture(scope="module")
def lite0() -> Embed:
    assert STEP.open is not None
    return STEP.open(What(), EmbedHow())


def vectors(embed: Embed, paths: Sequence[Path]) -> np.ndarray:
    rows = embed([media_view(path) for path in paths])
    assert all(isinstance(row, dict) for row in rows), rows
    return np.array([row["embedding"] for row in rows])


def test_near_copies_are_near_and_others_are_not(lite0: Embed, data_dir: Path) -> None:
    """The floor tells the right architecture from efficientnet_lite0, which takes the same weights and gives 0.73 for a grey copy."""
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    groups = [r for r in records if r["kind"] == "dup" and r.get("dup_type") == "made_transform"][:3]
    originals = []
    for group in groups:
        mild = [
            f
            for f, op in zip(group["files"], group["ops"], strict=True)
            if op in ("original", "webp_q60", "jpeg_q20", "aspect_stretch", "crop_90", "bright_gray")
        ]
        found = vectors(lite0, [data_dir / f for f in mild])
        assert found.shape[1] == 1280
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert (found @ found[0]).min() >= 0.78
        originals.append(found[0])
    between = np.array(originals) @ np.array(originals).T
    assert between[np.triu_indices(len(groups), 1)].max() <= 0.6


def test_an_unreadable_picture_costs_its_own_row_only(lite0: Embed, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    first, broken, again = lite0([media_view(good), media_view(bad), media_view(good)])
    assert isinstance(broken, DecodeError)
    assert first["embedding"] == again["embedding"]
    [alone] = lite0([media_view(good)])
    np.testing.assert_allclose(alone["embedding"], first["embedding"], atol=1e-5)
    assert [isinstance(r, DecodeError) for r in lite0([media_view(bad)])] == [True]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model folder with random weights: real code paths, no meaning."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    mean = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": mean}
    (folder / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    torch.manual_seed(1)
    torch.save(open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (50, 32, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_open_clip_gives_its_own_encoding_of_its_own_preprocessing(tiny_clip: Path, picture: Path) -> None:
    import open_clip
    import torch

    assert STEP.open is not None
    what = What(model=f"open_clip:{tiny_clip}", weights=str(tiny_clip / "weights.pt"), normalise=False)
    found = vectors(STEP.open(what, EmbedHow(device="cpu")), [picture])

    model = open_clip.create_model(f"local-dir:{tiny_clip}", load_weights=False).eval()
    model.load_state_dict(torch.load(tiny_clip / "weights.pt", weights_only=True))
    pixels = Image.open(picture).crop((0, 9, 32, 41))  # the shorter side is 32 already; the middle of the longer one
    values = (torch.from_numpy(np.asarray(pixels).copy()).float() / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    with torch.inference_mode():
        expected = model.encode_image(values.permute(2, 0, 1)[None]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_random_weights_follow_their_seed_and_bf16_is_near_fp32(tiny_clip: Path, picture: Path) -> None:
    assert STEP.open is not None
    what = What(model=f"open_clip:{tiny_clip}", weights="random:7")
    one, same = (vectors(STEP.open(what, EmbedHow(device="cpu")), [picture]) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = vectors(STEP.open(replace(what, weights="random:8"), EmbedHow(device="cpu")), [picture])
    assert float((one @ other.T)[0, 0]) < 0.9
    rough = vectors(STEP.open(replace(what, precision="bf16"), EmbedHow(device="cpu")), [picture])
    assert float((one @ rough.T)[0, 0]) > 0.999
    assert not np.array_equal(one, rough)


def test_the_same_weights_elsewhere_are_the_same_step(tiny_clip: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return step_digest("embed", STEP, What(model=f"open_clip:{folder}", weights=str(folder / "weights.pt")), [])

    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("open_clip_config.json", "weights.pt"):
        (copy / name).write_bytes((tiny_clip / name).read_bytes())
    assert digest(copy) == digest(tiny_clip)
    (copy / "weights.pt").write_bytes(b"other")
    assert digest(copy) != digest(tiny_clip)
    assert step_digest("embed", STEP, What(), []) != step_digest("embed", STEP, What(normalise=False), [])


def test_weights_that_do_not_fit_or_are_not_there_end_the_run(tiny_clip: Path, tmp_path: Path) -> None:
    import torch

    assert STEP.open is not None
    assert STEP.check is not None
    torch.save({"a": torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(InfrastructureError, match="do not fit"):
        STEP.open(What(model="timm:resnet10t", weights=str(tmp_path / "odd.pt")), EmbedHow())
    with pytest.raises(InfrastructureError, match="do not fit"):
        STEP.open(What(model=f"open_clip:{tiny_clip}", weights=str(tmp_path / "odd.pt")), EmbedHow())
    with pytest.raises(InfrastructureError, match="nosuchtag"):
        STEP.open(What(model="open_clip:RN50", weights="pretrained:nosuchtag"), EmbedHow())
    with pytest.raises(InfrastructureError, match="not there"):
        STEP.check(What(model="timm:resnet18", weights=str(tmp_path / "absent.pt")))


@pytest.mark.parametrize(
    "what",
    [
        What(model="resnet18"),
        What(model="torch:resnet18"),
        What(model="timm:efficientnet_lite0"),
        What(weights="package:something-else"),
        What(weights="random:x"),
        What(weights=""),
        What(precision="int8"),
        What(revision="main"),
    ],
)
def test_values_that_cannot_work_are_refused(what: What) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError):
        STEP.check(what)


def test_a_revision_is_asked_of_the_hub() -> None:
    from curation.encoders import _hub_revision

    assert _hub_revision("timm/resnet18.a1_in1k", "abc") == {"hf_hub_id": "timm/resnet18.a1_in1k@abc"}
    with pytest.raises(InfrastructureError, match="no hub"):
        _hub_revision(None, "abc")


def test_a_tag_brings_the_activation_it_was_trained_with() -> None:
    """open_clip builds ViT-L-14 with GELU for any tag, and only warns; rows of before that was seen to have another digest."""
    import open_clip

    from curation.encoders import encoder_identity, parse_weights, wants_quick_gelu

    assert wants_quick_gelu("ViT-L-14", "openai")
    assert not wants_quick_gelu("ViT-L-14", "laion2b_s32b_b82k")
    assert not wants_quick_gelu("ViT-L-14", None)
    model = open_clip.create_model("RN50", load_weights=False, force_quick_gelu=wants_quick_gelu("RN50", "openai"))
    assert any(type(module).__name__ == "QuickGELU" for module in model.modules())
    assert encoder_identity("open_clip:RN50", parse_weights("pretrained:openai")) == ["open_clip", "RN50", "activation of the tag"]
    assert encoder_identity("timm:resnet18", parse_weights("pretrained:")) == ["timm", "resnet18"]


def test_an_open_clip_folder_is_looked_at_before_anything_starts(tiny_clip: Path, tmp_path: Path) -> None:
    assert STEP.check is not None
    STEP.check(What(model=f"open_clip:{tiny_clip}", weights=str(tiny_clip / "weights.pt")))
    with pytest.raises(ValueError, match="give the path of its weights"):
        STEP.check(What(model=f"open_clip:{tiny_clip}", weights="pretrained:openai"))
    with pytest.raises(ValueError, match=r"no open_clip_config\.json"):
        STEP.check(What(model=f"open_clip:{tmp_path}", weights="random:1"))

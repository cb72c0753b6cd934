"""Faces wiped out as pictures are written: what is recorded, what stays as it was, and what is written anew."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.blur import CELLS, Blur, blurred, wiped
from pipeline.cli import app
from pipeline.recipe import load_recipe
from shards.errors import RecipeError, ShardError, SourceError
from shards.image import decode_image
from shards.media import Limits
from shards.reader import Dataset
from shards.sample import MediaRef
from shards.verify import verify
from shards.writer import ShardMedium
from tests.pipeline.small import ask, files_of, recipe, run

BLUR = Blur("faces_boxes", "0" * 16)
BOX = (0.25, 0.25, 0.5, 0.5)


def noise(height: int = 80, width: int = 120) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def medium(data: bytes, name: str = "a.png", **more: str) -> ShardMedium:
    return ShardMedium("image", name, data, **more)


def test_a_box_and_its_margin_are_few_colours_and_the_rest_is_untouched() -> None:
    before = noise()
    after = wiped(before, [BOX])
    inside = np.zeros(before.shape[:2], bool)
    inside[16:44, 24:66] = True  # the box is 20..40, 30..60; a fifth of its sides around it
    np.testing.assert_array_equal(after[~inside], before[~inside])
    assert after[inside].std() < before[inside].std() / 4
    for other in (noise()[:, ::-1], noise()[::-1]):  # whatever 16 averages say is all there is left
        few = np.asarray(Image.fromarray(after[16:44, 24:66]).resize((CELLS, CELLS), Image.Resampling.BOX)).astype(int)
        again = wiped(other, [BOX])[16:44, 24:66]
        assert np.abs(np.diff(again.astype(int), axis=1)).max() < 20
        assert few.shape == (CELLS, CELLS, 3)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.99, 0.99, 1, 1), (0, 0.5, 0.001, 0.501)])
def test_boxes_at_the_border_stay_within(box: tuple[float, ...]) -> None:
    assert wiped(noise(), [box]).shape == (80, 120, 3)
    assert wiped(noise(1, 1), [box]).shape == (1, 1, 3)


def test_formats_stay_and_orientation_is_applied_once() -> None:
    faces = [{"box": BOX, "confidence": 0.99}]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(noise(), "JPEG", quality=95, exif=exif)
    for name, data, form in (
        ("a.jpg", turned, "JPEG"),
        ("a.png", encoded(noise(), "PNG"), "PNG"),
        ("a.webp", encoded(noise(), "WEBP", lossless=True), "PNG"),
    ):
        made = blurred(medium(data, name), BLUR, faces, Limits())
        assert isinstance(made.data, bytes)
        with Image.open(io.BytesIO(made.data)) as picture:
            assert picture.format == made.format == form
            assert not picture.getexif()
        np.testing.assert_allclose(decode_image(made.data, Limits()).shape, decode_image(data, Limits()).shape)
        assert made.original_sha256 == hashlib.sha256(data).hexdigest()
        assert made.transform is not None
        assert (made.transform["operator"], made.transform["version"]) == ("blur", 1)
        assert blurred(medium(data, name), BLUR, faces, Limits()).data == made.data
    assert decode_image(turned, Limits()).shape == (120, 80, 3)


def test_what_has_no_faces_keeps_its_bytes_and_a_transform_is_remembered() -> None:
    plain = medium(encoded(noise(), "PNG"))
    assert blurred(plain, BLUR, [], Limits()) is plain
    page = ShardMedium("image", "p.png", encoded(noise(), "PNG"), "", "f" * 64, {"operator": "page", "version": 1, "parameters": {}})
    made = blurred(page, BLUR, [{"box": BOX}], Limits())
    assert made.original_sha256 == "f" * 64
    assert made.transform is not None
    assert made.transform["parameters"]["after"]["operator"] == "page"
    with pytest.raises(SourceError, match="changed"):
        blurred(medium(encoded(noise(), "PNG"), sha256="a" * 64), BLUR, [{"box": BOX}], Limits())


def test_a_picture_nobody_looked_at_is_not_written() -> None:
    from pipeline.shardwork import ShardTask, _medium

    task = ShardTask("f", 0, "train-000000", "s", "v", b"", None, {}, {}, Limits(), BLUR)
    ref = MediaRef("image", "a.png", "/nonexistent", -1, 1, "0" * 16)
    with pytest.raises(ShardError, match="cannot be blurred"):
        _medium(ref, "", task, {"uid": "u", "source": "s", "key": "k", "_formats": None, "faces_boxes": None}, 0)


def test_a_blur_by_no_step_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path}, ["probe"], write={"blur": "faces"})
    with pytest.raises(RecipeError, match="'faces' is no step that finds boxes"):
        load_recipe(path)
    path = recipe(tmp_path / "r.yaml", {"pics": tmp_path}, ["probe"], write={"blur": "probe"})
    with pytest.raises(RecipeError, match="'probe' is no step that finds boxes"):
        load_recipe(path)


@pytest.mark.usefixtures("one_ray")
def test_a_dataset_with_faces_wiped_out(tmp_path: Path) -> None:
    """The step is one that finds a box in wide pictures (tests/steps/boxes.py): what is written does not hang on a detector."""
    pics, folder = tmp_path / "pics", tmp_path / "run"
    pics.mkdir()
    for name, width in (("narrow.png", 60), ("wide.jpg", 120), ("wide.png", 120)):
        Image.fromarray(noise(80, width)).save(pics / name)

    def written(blur: str) -> Path:
        steps = ["probe", {"tests.steps.boxes": {"as": "faces"}}, {"compose": {"tasks": ["short_caption"]}}]
        return recipe(tmp_path / "r.yaml", {"pics": pics}, steps, write={"blur": blur} if blur else {})

    plain = run(written(""), folder).dataset
    made = run(written("faces"), folder).dataset
    assert plain is not None
    assert made is not None
    assert made.version != plain.version
    assert (made.written, made.reused) == (1, 0)  # an old tar would still show the faces
    assert verify(made.path) == []
    dataset = Dataset.open(made.path)
    for raw in dataset.samples():
        record = dataset.record(raw)
        [entry] = record["media"]
        source = (pics / record["key"]).read_bytes()
        assert entry["original_sha256"] == hashlib.sha256(source).hexdigest()
        assert entry["sha256"] == hashlib.sha256(raw.media[0]).hexdigest()
        if record["key"] == "narrow.png":
            assert raw.media == [source]
            assert entry["transform"] is None
            continue
        assert entry["sha256"] != entry["original_sha256"]
        assert entry["transform"]["operator"] == "blur"
        np.testing.assert_allclose(entry["transform"]["parameters"]["boxes"], [[0.25, 0.25, 0.5, 0.5]])
        shown = decode_image(raw.media[0], Limits())
        assert shown.shape == (80, 120, 3)
        assert shown[22:38, 34:56].std() < 40
        assert record["scores"]["sha256"] == entry["original_sha256"]  # scores speak of what was read
        assert entry["member"].endswith(record["key"][-4:])
    for uid, key in ask(folder, "select uid, key from samples"):
        told = " ".join(CliRunner().invoke(app, ["explain", str(folder), uid], catch_exceptions=False).stdout.split())
        assert ('is made of the original by {"operator":"blur"' in told) == key.startswith("wide"), told
    before = files_of(Path(made.path))
    again = run(tmp_path / "r.yaml", folder).dataset
    assert again is not None
    assert (again.version, again.written) == (made.version, 0)
    assert files_of(Path(made.path)) == before
    assert ask(folder, "select count(*) from samples where verdict = 'kept'") == [(3,)]

"""Still images: hostile files end in pixels or in typed errors, and every mode of picture becomes honest RGB."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from shards.errors import DecodeError, LimitError, SampleError
from shards.image import decode_image, image_header
from shards.media import Limits

LIMITS = Limits()


def encoded(im: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    im.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds a few bytes of it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture
def gradient() -> Image.Image:
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8))


def test_hostile_files_decode_or_raise_typed_errors(data_dir: Path) -> None:
    decoded, refused = {}, {}
    for path in sorted((data_dir / "hostile").rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            pixels = decode_image(data, LIMITS)
        except SampleError as error:
            refused[path.name] = error
            continue
        header = image_header(data, LIMITS)
        assert pixels.shape == (header.height, header.width, 3), path.name
        assert pixels.dtype == np.uint8
        decoded[path.name] = pixels
    assert len(decoded) >= 65
    for name in ("bomb_1bit.png", "bomb_rgb.png", "decompression_bomb.gif"):
        assert isinstance(refused[name], LimitError), name
    for name in ("truncated_50.jpg", "truncated_97.jpg", "broken_data_stream.png", "truncated_end_chunk.png", "zero_byte.jpg"):
        assert isinstance(refused[name], DecodeError), name
    for name, words in (
        ("html_404.jpg", "not an image: looks like HTML"),
        ("json_error.png", "not an image: looks like JSON"),
        ("svg_script.svg", "not an image: looks like SVG"),
        ("zero_byte.jpg", "not an image: an empty file"),
        ("truncated_half.mp4", "not an image: looks like an MP4 video"),
    ):
        assert words in str(refused[name])
    for name in ("cmyk.jpg", "exif6.jpg", "gray16.png", "palette_trns.png", "wrong_extension.png", "lab-red.tif", "strip_1x8000.png"):
        assert name in decoded


def test_same_picture_in_many_forms_has_the_same_brightness(data_dir: Path) -> None:
    """These hostile files hold one photograph: as JPEG, CMYK, GIF, WebP, turned, and under wrong names."""
    names = ("UPPER.JPG", "cmyk.jpg", "exif6.jpg", "animated.gif", "animated.webp", "gif_named.jpg", "progressive_trailing_junk.jpg")
    means = [decode_image((data_dir / "hostile" / "made" / name).read_bytes(), LIMITS).mean() for name in names]
    assert max(means) - min(means) < 1.0


def test_bombs_are_refused_by_the_header(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    data = (data_dir / "hostile" / "made" / "bomb_rgb.png").read_bytes()
    for call in (image_header, decode_image):
        with pytest.raises(LimitError, match=r"12000×12000 = 144,000,000 pixels exceeds the limit image.pixels = 100,000,000"):
            call(data, LIMITS)


def test_limits_are_ours_not_pillows(gradient: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(gradient, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(data, LIMITS).shape == (40, 60, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(LimitError, match="pixels"):
        image_header(data, Limits(image_pixels=40 * 60 - 1))
    assert image_header(data, Limits(image_pixels=40 * 60)).width == 60
    with pytest.raises(LimitError, match="bytes"):
        decode_image(data, Limits(image_bytes=len(data) - 1))


def test_a_bomb_inside_an_icon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries set it
    png = png_header(20_000, 20_000)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png
    with pytest.raises(LimitError, match="20000×20000"):
        decode_image(icon, LIMITS)


def test_truncation_is_an_error_even_where_another_library_allowed_it(gradient: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for format in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"):
        data = encoded(gradient, format)
        with pytest.raises(DecodeError):
            decode_image(data[: len(data) * 2 // 3], LIMITS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_turns_header_and_pixels(gradient: Image.Image, orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    data = encoded(gradient, format, exif=exif, **options)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    header, pixels = image_header(data, LIMITS), decode_image(data, LIMITS)
    assert (header.height, header.width) == wanted.shape[:2] == ((60, 40) if orientation >= 5 else (40, 60))
    np.testing.assert_array_equal(pixels, wanted)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF", "PPM"):
        pixels = decode_image(encoded(Image.fromarray(ramp), format), LIMITS)
        np.testing.assert_allclose(pixels[..., 0].ravel(), np.arange(256), atol=1)
        assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 9e9])
def test_floats_are_scaled_by_their_range(top: float) -> None:
    ramp = np.linspace(0, top, 256).astype(np.float32).reshape(16, 16)
    np.testing.assert_allclose(decode_image(encoded(Image.fromarray(ramp), "TIFF"), LIMITS)[..., 1].ravel(), np.arange(256), atol=1)


def test_alpha_is_composited_on_white(gradient: Image.Image) -> None:
    rgba = gradient.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.where(np.arange(60) < 30, 0, 255).astype(np.uint8), (40, 1))))
    for im, format in ((rgba, "PNG"), (rgba.convert("LA"), "PNG"), (rgba, "TIFF")):
        pixels = decode_image(encoded(im, format), LIMITS)
        assert (pixels[:, :30] == 255).all()
        assert (pixels[:, 30:] == np.asarray(im.convert("RGB"))[:, 30:]).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode_image(encoded(palette, "PNG", transparency=0), LIMITS).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(decode_image(encoded(half, "PNG"), LIMITS)[0, 0, 0]) - 127) <= 1


def test_animations_give_their_first_frame(gradient: Image.Image) -> None:
    frames = [gradient, ImageOps.invert(gradient)]
    for format, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **options)
        assert image_header(data, LIMITS).frames == 2
        np.testing.assert_array_equal(decode_image(data, LIMITS), np.asarray(gradient))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(format=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), cut=st.integers(0, 400), flips=st.lists(st.integers(0, 8000)))
def test_damage_gives_pixels_or_sample_errors(gradient: Image.Image, format: str, cut: int, flips: list[int]) -> None:
    data = bytearray(encoded(gradient, format))
    for flip in flips:
        data[flip % len(data)] ^= 1 << (flip % 8)
    try:
        pixels = decode_image(bytes(data[: max(len(data) - cut, 0)]), Limits(image_pixels=1_000_000))
    except SampleError as error:
        told = str(error)
    else:
        told = f"{pixels.shape[0]} rows" if pixels.dtype == np.uint8 and pixels.shape[2] == 3 else ""
    assert told

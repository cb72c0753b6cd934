"""Still images: what the header says, and the pixels. Whatever Pillow raises on them becomes DecodeError."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageFile

from shards.errors import DecodeError, LimitError, SampleError
from shards.media import Limits

log = logging.getLogger("fovea")

# Pillow remarks on odd metadata; what matters is raised. Once at import: catch_warnings is not safe between threads.
warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")

# Formats worth reading from a stranger: no PostScript (runs a program), no containers of scientific data, nothing identified by luck.
FORMATS = frozenset("JPEG MPO PNG WEBP GIF BMP DIB TIFF AVIF JPEG2000 ICO ICNS PPM PCX TGA SGI XBM XPM PSD DDS FLI".split())
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE = 258  # TIFF tag
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg file"),
    (b"FLV\x01", "a Flash video"),
    (b"ID3", "an MP3 file"),
)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """format, mode as Pillow names them; width, height in pixels after EXIF orientation; frames ≥ 1 (only the first is ever decoded)."""

    format: str
    mode: str
    width: int
    height: int
    frames: int


def image_header(data: bytes, limits: Limits) -> ImageHeader:
    """What the header alone says; no pixel is decoded. Raises LimitError (bytes, pixels: bombs end here) and DecodeError."""
    im = _open(data, limits)
    try:
        width, height = _oriented_size(im)
        return ImageHeader(im.format or "", im.mode, width, height, _frame_count(im))
    finally:
        im.close()


def decode_image(data: bytes, limits: Limits) -> np.ndarray:
    """The first frame as uint8 (height, width, 3) RGB: EXIF orientation applied, alpha composited on white, more than 8 bits scaled.

    16-bit grey maps 0..65535 to 0..255 (TIFF: its own bits per sample). 32-bit integers and floats: as they are when they lie within
    0..255 (floats within 0..1 and 16-bit ranges are scaled), else linearly from their least to their greatest value. CMYK by Pillow's
    arithmetic, without colour management; LAB through ImageCms. A truncated file is an error, never a half-grey picture.
    Raises LimitError, DecodeError.
    """
    im = _open(data, limits)
    try:
        width, height = _oriented_size(im)
        orientation = _orientation(im)
        im.load()
        flat = _to_rgb(im)
        if orientation != 1:
            flat = _transpose(flat, orientation)
        pixels = np.asarray(flat, dtype=np.uint8)
    except Exception as error:
        raise _as_sample_error(error, im.format, limits) from error
    finally:
        im.close()
    if pixels.shape != (height, width, 3):
        raise DecodeError(f"{im.format}: the header promises {width}×{height}, the pixels are {pixels.shape[1]}×{pixels.shape[0]}")
    return pixels


def looks_like(data: bytes) -> str:
    """What bytes that no image decoder takes seem to be, in words for people."""
    if not data:
        return "an empty file"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return (
            "an AVIF or HEIF image of a kind this decoder lacks"
            if data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
            else "an MP4 video"
        )
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in text):
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if text.startswith(b"<"):
        return "XML"
    if text.startswith((b"{", b"[")):
        return "JSON"
    try:
        data[:1024].decode("ascii")
    except UnicodeDecodeError:
        return f"unknown binary data starting with {data[:8].hex(' ')}"
    return "plain text"


def _open(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """Pillow's opener without its process-wide pixel limit, which is neither ours nor safe to change while other threads decode."""
    if len(data) > limits.image_bytes:
        raise LimitError(f"image of {len(data):,} bytes exceeds the limit image.bytes = {limits.image_bytes:,}")
    if not data:
        raise DecodeError("not an image: an empty file")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        log.warning("another library had set LOAD_TRUNCATED_IMAGES; it is off again: truncated images are errors here")
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.init()
    complaints: list[str] = []
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if name not in FORMATS:
            continue
        claimed: bool | str = False
        try:
            claimed = accept is None or accept(data[:16])
            if not claimed or isinstance(claimed, str):  # a string is a regret: "support for … is not installed"
                continue
            if name in ("ICO", "ICNS"):
                _check_inner(name, data, limits)
            im = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:  # Pillow's way to say "not mine after all"
            if claimed and accept is not None:
                complaints.append(f"{name}: {error}")
            continue
        except Exception as error:
            raise _as_sample_error(error, name, limits) from error
        _check_pixels(name, *im.size, limits)
        return im
    if complaints:
        raise DecodeError(f"damaged image ({'; '.join(complaints)})")
    raise DecodeError(f"not an image: looks like {looks_like(data)}")


def _check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise DecodeError(f"{name}: a picture of {width}×{height} pixels")
    if width * height > limits.image_pixels:
        raise LimitError(f"{name} of {width}×{height} = {width * height:,} pixels exceeds the limit image.pixels = {limits.image_pixels:,}")


def _check_inner(name: str, data: bytes, limits: Limits) -> None:
    """Icons hold whole PNGs whose true size their directory need not tell, and Pillow decodes them while it opens the icon."""
    at = data.find(_PNG)
    while at >= 0:
        if len(header := data[at + 16 : at + 24]) == 8:
            width, height = struct.unpack(">II", header)
            _check_pixels(f"PNG within {name}", width, height, limits)
        at = data.find(_PNG, at + 1)


def _orientation(im: ImageFile.ImageFile) -> int:
    """EXIF orientation 1..8 as known before the pixels. TIFF is turned by Pillow itself; unreadable EXIF turns nothing."""
    if im.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(im).get(_ORIENTATION, 1)  # the base method: PNG's own would decode the pixels first
    except Exception:  # exception: Pillow's EXIF parser on hostile metadata; the picture itself may be sound
        log.debug("unreadable EXIF in a %s", im.format, exc_info=True)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented_size(im: ImageFile.ImageFile) -> tuple[int, int]:
    width, height = im.size
    return (height, width) if _orientation(im) >= 5 else (width, height)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _transpose(im: Image.Image, orientation: int) -> Image.Image:
    return im.transpose(_TURNS[orientation])


def _frame_count(im: ImageFile.ImageFile) -> int:
    try:
        return max(int(getattr(im, "n_frames", 1)), 1)
    except Exception:  # exception: counting runs through frames that are never decoded; their damage is not the first frame's
        log.debug("cannot count the frames of a %s", im.format, exc_info=True)
        return 1


def _to_rgb(im: Image.Image) -> Image.Image:
    if im.mode == "RGB" and "transparency" not in im.info:
        return im
    if im.mode.startswith("I;16") or im.mode in ("I", "F"):
        return _deep_to_rgb(im)
    if im.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(im, lab, srgb, outputMode="RGB")
        if converted is None:
            raise ValueError("LAB could not be converted")
        return converted
    if im.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in im.info:
        rgba = im.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return im.convert("RGB")


def _deep_to_rgb(im: Image.Image) -> Image.Image:
    values = np.asarray(im)
    transparent = im.info.get("transparency")
    hole = values == transparent if isinstance(transparent, int) else None
    if im.mode.startswith("I;16"):
        bits = getattr(im, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        grey = _scaled(values, 0.0, float(2**bits - 1))
    else:
        grey = _scaled(values, *_range(values, im.mode == "F"))
    if hole is not None:
        grey[hole] = 255
    return Image.fromarray(grey).convert("RGB")


def _range(values: np.ndarray, real: bool) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    least, greatest = float(finite.min()), float(finite.max())
    if least >= 0:
        for top in (1.0, 255.0, 65535.0) if real else (255.0, 65535.0):
            if greatest <= top:
                return 0.0, top
    return least, greatest


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    unit = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    return np.rint(np.clip(unit, 0.0, 1.0) * 255.0).astype(np.uint8)


def _as_sample_error(error: Exception, where: str | None, limits: Limits) -> SampleError:
    if isinstance(error, SampleError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return LimitError(f"{where}: {error} (limit image.pixels = {limits.image_pixels:,})")
    return DecodeError(f"{where or 'image'}: {error or type(error).__name__}")

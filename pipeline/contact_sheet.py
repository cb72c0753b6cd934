"""Contact sheets: small pictures of samples, drawn in pairs. What cannot be read is a grey box that says why."""

from __future__ import annotations

import importlib.util
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.errors import FoveaError
from shards.image import decode_image
from shards.media import Limits
from shards.read import open_media, read_media
from shards.sample import MediaRef
from shards.video import sample_frames

SIDE = 176  # pixels: every small picture fits a square of this side
MOST_MEDIA = 4  # of one sample that are drawn

_LINE = 16  # pixels from one line of writing to the next
_MARGIN = 14
_PAPER, _INK, _FAINT, _BOX = (255, 255, 255), (32, 33, 36), (110, 114, 120), (216, 218, 222)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A sample in small. image: RGB, at most SIDE × SIDE. why: the reason where it is a grey box, or partly one; else None.
    text: of a sample without media, which `image` shows written."""

    image: Image.Image
    why: str | None = None
    text: str = ""

    def jpeg(self) -> bytes:
        return _jpeg(self.image, 82)


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of a sheet: two thumbnails with what is written under each, and what is written beside both (the first line in bold ink)."""

    left: Thumbnail
    right: Thumbnail
    under_left: str
    under_right: str
    beside: Sequence[str]


def thumbnail(media: Sequence[MediaRef], text: str, limits: Limits) -> Thumbnail:
    """A sample's media in small, up to MOST_MEDIA of them in a square; where it has none, the beginning of its text.

    Media are opened and decoded one at a time under `limits`; a video shows its first frame. Whatever FoveaError that raises is the
    reason in a grey box: one bad medium, or a disk that is away, costs one box.
    """
    if not media:
        words = text.strip()
        return Thumbnail(_written(words, _PAPER), text=words[:2_000]) if words else blank("no media, no text")
    shown = media[:MOST_MEDIA]
    side = SIDE if len(shown) == 1 else (SIDE - 4) // 2
    small = [_small(medium, limits, side) for medium in shown]
    whys = [why for _, why in small if why is not None]
    if len(small) == 1:
        return Thumbnail(small[0][0], whys[0] if whys else None)
    square = Image.new("RGB", (SIDE, SIDE if len(small) > 2 else side), _PAPER)
    for place, (image, _) in enumerate(small):
        x, y = place % 2 * (side + 4), place // 2 * (side + 4)
        square.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
    return Thumbnail(square, "; ".join(whys) or None)


def blank(why: str) -> Thumbnail:
    """A grey box."""
    return Thumbnail(_written(why, _BOX), why)


def sheet(title: str, pairs: Sequence[Pair], columns: int = 2) -> bytes:
    """JPEG of pairs side by side, `columns` of them in a row, in reading order."""
    wide, high = 3 * SIDE + 3 * _MARGIN, SIDE + 3 * _LINE + _MARGIN
    columns = max(1, min(columns, len(pairs)))
    rows = -(-len(pairs) // columns)
    page = Image.new("RGB", (columns * wide + _MARGIN, rows * high + 3 * _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), _printable(title), _INK, _font(17))
    for number, pair in enumerate(pairs):
        x, y = number % columns * wide + _MARGIN, number // columns * high + 3 * _LINE
        for place, (small, under) in enumerate(((pair.left, pair.under_left), (pair.right, pair.under_right))):
            at = x + place * (SIDE + 6)
            page.paste(small.image, (at + (SIDE - small.image.width) // 2, y + (SIDE - small.image.height) // 2))
            for n, line in enumerate(_fold(under if len(under) <= 50 else f"…{under[-49:]}", 27)[:2]):
                draw.text((at, y + SIDE + 3 + n * _LINE), line, _FAINT, _font(12))
        lines = [(line, n == 0) for n, text in enumerate(pair.beside) for line in _fold(text, 24)]
        for n, (line, strong) in enumerate(lines[: SIDE // _LINE]):
            draw.text((x + 2 * (SIDE + 6) + 6, y + n * _LINE), line, _INK if strong else _FAINT, _font(14 if strong else 12))
    return _jpeg(page, 88)


def _small(medium: MediaRef, limits: Limits, side: int) -> tuple[Image.Image, str | None]:
    try:
        image = Image.fromarray(_pixels(medium, limits))
    except FoveaError as error:
        why = str(error) or type(error).__name__
        return _written(why, _BOX, side), why
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image, None


def _pixels(medium: MediaRef, limits: Limits) -> np.ndarray:
    """uint8 (H, W, 3). Raises FoveaError."""
    if medium.kind == "image":
        return decode_image(read_media(medium, limits), limits)
    if medium.kind == "video":
        with open_media(medium, limits) as file:
            first: np.ndarray = sample_frames(file, fps=1.0, max_frames=1, limits=limits).pixels[0]
            return first
    raise FoveaError(f"{medium.name}: a {medium.kind.upper()} is not drawn here; its pages are samples of their own after the step pages")


def _written(text: str, ground: tuple[int, int, int], side: int = SIDE) -> Image.Image:
    box = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(box)
    if ground == _PAPER:
        draw.rectangle((0, 0, side - 1, side - 1), outline=_BOX)
    lines = _fold(text, max(8, side * 27 // SIDE))[: (side - 12) // _LINE]
    for n, line in enumerate(lines):
        draw.text((6, 6 + n * _LINE), line, _INK, _font(12))
    return box


def _fold(text: str, width: int) -> list[str]:
    return textwrap.wrap(_printable(text), width, break_long_words=True) or [""]


def _printable(text: str) -> str:
    """Of what a stranger wrote only what can be drawn: no control characters, no halves of surrogate pairs."""
    return "".join(c if c.isprintable() else " " for c in text[:2_000])


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's font where that is installed, for it knows more letters than Pillow's own; what neither knows is an empty box."""
    spec = importlib.util.find_spec("matplotlib")
    path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec is not None and spec.origin is not None else None
    return ImageFont.truetype(str(path), size - 1) if path is not None and path.is_file() else ImageFont.load_default(size)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()

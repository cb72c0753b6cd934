"""The quickstart's corpus: real photographs that ship in installed packages, pages typeset from known text, clips panned over them,
planted copies, broken files. The same bytes on every machine with the same libraries."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from shards.errors import InfrastructureError

# package, path in it, what the picture shows (looked at and written for this corpus)
PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png", "a smiling astronaut in an orange suit beside a flag"),
    ("skimage", "data/camera.png", "a man in a long coat behind a camera on a tripod"),
    ("skimage", "data/chelsea.png", "a ginger tabby cat looking past the camera"),
    ("skimage", "data/coffee.png", "coffee in a red cup on a wooden table"),
    ("skimage", "data/coins.png", "rows of old coins on a dark cloth"),
    ("skimage", "data/rocket.jpg", "a rocket on its launch pad at night"),
    ("skimage", "data/hubble_deep_field.jpg", "hundreds of galaxies in a black sky"),
    ("skimage", "data/moon.png", "craters on the surface of the moon"),
    ("skimage", "data/motorcycle_left.png", "a red motorcycle parked in a garage"),
    ("skimage", "data/retina.jpg", "the blood vessels of a human retina"),
    ("skimage", "data/ihc.png", "stained tissue under a microscope"),
    ("skimage", "data/brick.png", "a wall of grey bricks"),
    ("skimage", "data/grass.png", "blades of grass seen from above"),
    ("skimage", "data/gravel.png", "a ground of small stones"),
    ("skimage", "data/clock_motion.png", "a grey disc blurred by motion"),
    ("skimage", "data/color.png", "a wheel of bright colours"),
    ("skimage", "data/horse.png", "the black outline of a horse"),
    ("skimage", "data/cell.png", "a single cell under a microscope"),
    ("sklearn", "datasets/images/china.jpg", "a tower with red and green roofs by a lake in China"),
    ("sklearn", "datasets/images/flower.jpg", "a pink and orange flower with green leaves"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "a woman in a navy uniform with a cap"),
)
VIEWS = (
    ("left", (0.0, 0.1, 0.55, 0.9)),
    ("right", (0.45, 0.1, 1.0, 0.9)),
    ("middle", (0.22, 0.22, 0.78, 0.78)),
    ("top", (0.1, 0.0, 0.9, 0.55)),
    ("bottom", (0.1, 0.45, 0.9, 1.0)),
)
WORDS = (
    "river stone window garden letter market bridge summer paper silver forest candle morning harbour music winter village island "
    "teacher basket pocket mountain kitchen picture station bottle shadow copper engine meadow"
).split()


@dataclass(frozen=True, slots=True)
class Photograph:
    name: str
    shows: str
    image: Image.Image


def make_corpus(folder: Path) -> None:
    """Write photos/, pages.jsonl, clips.jsonl, questions.json and sums.jsonl under `folder`, whole or not at all. About 350 samples."""
    if (folder / "READY").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    photographs = list(load_photographs())
    _write_photos(folder / "photos", photographs)
    _write_broken(folder / "photos" / "broken")
    _write_pages(folder)
    _write_clips(folder, photographs)
    _write_questions(folder, photographs)
    _write_sums(folder)
    (folder / "READY").write_text("made whole\n")


def load_photographs() -> Iterator[Photograph]:
    """The photographs, at most 384 pixels on a side. Raises InfrastructureError if a package is not installed."""
    for package, path, shows in PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise InfrastructureError(
                f"the quickstart's pictures come with {package}, which is not installed: pip install 'fovea-vlm[quickstart]'"
            )
        with Image.open(Path(spec.origin).parent / path) as file:
            image = file.convert("RGB")
        image.thumbnail((384, 384), Image.Resampling.LANCZOS)
        yield Photograph(Path(path).stem, shows, image)


def view(photograph: Photograph, box: tuple[float, float, float, float]) -> Image.Image:
    w, h = photograph.image.size
    return photograph.image.crop((int(box[0] * w), int(box[1] * h), int(box[2] * w), int(box[3] * h)))


def _write_photos(folder: Path, photographs: Sequence[Photograph]) -> None:
    """A whole view and five partial ones of each photograph with their captions, and three copies of some: recoded, smaller, brighter."""
    folder.mkdir()
    for number, photograph in enumerate(photographs):
        _save(folder / f"{photograph.name}.jpg", photograph.image, f"A picture of {photograph.shows}.")
        for place, box in VIEWS:
            _save(folder / f"{photograph.name}-{place}.jpg", view(photograph, box), f"The {place} of a picture of {photograph.shows}.")
        if number % 4 == 0:
            copies = folder / "copies"
            copies.mkdir(exist_ok=True)
            small = photograph.image.resize([max(96, int(0.7 * s)) for s in photograph.image.size], Image.Resampling.BICUBIC)
            caption = f"A picture of {photograph.shows}."
            _save(copies / f"{photograph.name}-recoded.jpg", photograph.image, caption, quality=60)
            _save(copies / f"{photograph.name}-smaller.jpg", small, caption)
            _save(copies / f"{photograph.name}-brighter.jpg", ImageEnhance.Brightness(photograph.image).enhance(1.1), caption)
            shutil.copyfile(folder / f"{photograph.name}.jpg", copies / f"{photograph.name}-same.jpg")
            (copies / f"{photograph.name}-same.txt").write_text(caption)


def _write_broken(folder: Path) -> None:
    """What a crawl brings: nothing, half a picture, a web page, a bomb that its header betrays; and two pictures that rules refuse."""
    folder.mkdir()
    source = folder.parent / "coffee.jpg"
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "half.jpg").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    (folder / "page.jpg").write_text("<html><body>404: not found</body></html>")
    (folder / "noise.png").write_bytes(random.Random(1).randbytes(2000))
    (folder / "bomb.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "cut.mp4").write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 100)
    Image.new("RGB", (2000, 20), "navy").save(folder / "strip.jpg")
    Image.new("RGB", (24, 24), "olive").save(folder / "icon.png")


def _write_pages(folder: Path) -> None:
    """Thirty pages of three to six typeset lines; the text is the truth."""
    (folder / "pages").mkdir()
    rng = random.Random(7)
    records = []
    for number in range(30):
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(2, 4))).capitalize() for _ in range(rng.randint(3, 6))]
        page = Image.new("RGB", (420, 60 + 48 * len(lines)), (rng.randint(235, 255),) * 3)
        draw = ImageDraw.Draw(page)
        for i, line in enumerate(lines):
            draw.text((24, 24 + 48 * i), line, fill=(20, 20, 30), font=_font(26))
        name = f"pages/{number:02d}.png"
        page.save(folder / name)
        records.append({"id": f"page-{number:02d}", "files": [name], "text": "\n".join(lines)})
    _write_jsonl(folder / "pages.jsonl", records)


def _write_clips(folder: Path, photographs: Sequence[Photograph]) -> None:
    """Thirty clips of three seconds: the camera moves over a photograph, or stands still."""
    (folder / "clips").mkdir()
    records = []
    moves = ("to the right", "to the left", "down", "up", "closer", "not at all")
    for number in range(30):
        photograph, move = photographs[number % len(photographs)], moves[number % len(moves)]
        name = f"clips/{number:02d}.mp4"
        _encode(folder / name, _frames(photograph.image, move))
        caption = (
            f"The camera moves {move} over a picture of {photograph.shows}."
            if move != "not at all"
            else f"A still view of {photograph.shows}."
        )
        records.append({"id": f"clip-{number:02d}", "files": [name], "caption": caption})
    _write_jsonl(folder / "clips.jsonl", records)


def _frames(image: Image.Image, move: str, count: int = 24, size: int = 160) -> Iterator[np.ndarray]:
    square = image.resize((256, 256), Image.Resampling.BICUBIC)
    for i in range(count):
        step = i / (count - 1)
        shift = {"to the right": (step, 0.5), "to the left": (1 - step, 0.5), "down": (0.5, step), "up": (0.5, 1 - step)}.get(
            move, (0.5, 0.5)
        )
        side = int(size - 60 * step) if move == "closer" else size
        x, y = int(shift[0] * (256 - side)), int(shift[1] * (256 - side))
        yield np.asarray(square.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC))


def _encode(path: Path, frames: Iterator[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 600_000
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_questions(folder: Path, photographs: Sequence[Photograph]) -> None:
    """LLaVA conversations over the photographs: one picture with two turns, and two pictures to be told apart."""
    records: list[dict[str, object]] = []
    for number, photograph in enumerate(photographs):
        for place, _ in VIEWS[:2]:
            records.append(
                {
                    "id": f"question-{photograph.name}-{place}",
                    "image": f"photos/{photograph.name}-{place}.jpg",
                    "conversations": [
                        {"from": "human", "value": "<image>\nWhat does this picture show?"},
                        {"from": "gpt", "value": f"It shows {photograph.shows}."},
                        {"from": "human", "value": "Which part of the picture is it?"},
                        {"from": "gpt", "value": f"It is the {place}."},
                    ],
                }
            )
        other = photographs[(number + 3) % len(photographs)]
        records.append(
            {
                "id": f"pair-{photograph.name}",
                "image": [f"photos/{photograph.name}.jpg", f"photos/{other.name}.jpg"],
                "conversations": [
                    {"from": "human", "value": f"<image>\n<image>\nWhich picture shows {photograph.shows}?"},
                    {"from": "gpt", "value": "The first one."},
                ],
            }
        )
    (folder / "questions.json").write_text(json.dumps(records, indent=1))


def _write_sums(folder: Path) -> None:
    """Sixty conversations without a picture."""
    rng = random.Random(11)
    records = []
    for number in range(60):
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        turns = [{"from": "human", "value": f"What is {a} plus {b}?"}, {"from": "gpt", "value": f"{a} plus {b} is {a + b}."}]
        records.append({"id": f"sum-{number:02d}", "files": [], "conversations": turns})
    _write_jsonl(folder / "sums.jsonl", records)


def _save(path: Path, image: Image.Image, caption: str, quality: int = 92) -> None:
    image.save(path, quality=quality)
    path.with_suffix(".txt").write_text(caption)


def _write_jsonl(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in records))


def _font(size: int) -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise InfrastructureError(
            "the quickstart typesets with a font of matplotlib, which is not installed: pip install 'fovea-vlm[quickstart]'"
        )
    return ImageFont.truetype(str(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be very large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")

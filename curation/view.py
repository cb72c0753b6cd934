"""What a step sees of a sample: media opened and decoded at most once for all the steps fused in one child process."""

from __future__ import annotations

import hashlib
import io
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import numpy as np

from curation.rows import over_text_limit, sample_from_row
from curation.step import Result, Row
from curation.wire import Moment, Progress
from shards.errors import SampleError
from shards.image import ImageHeader, decode_image, image_header
from shards.media import Limits
from shards.read import open_media, opened, read_media
from shards.sample import MediaRef, Sample
from shards.video import VideoHeader, pick_frames, sample_frames, video_header

KEPT_BYTES = 64_000_000  # encoded bytes of a medium above which data() is not kept
FRAME_BYTES = 256_000_000  # of frames that are decoded, and kept for the next step, together
PULSE_SECONDS = 5.0  # between two signs of life while waiting for another try
_BLOCK = 1 << 20
_NOTHING: Mapping[str, Any] = MappingProxyType({})
V = TypeVar("V")


@dataclass(slots=True)
class Room:
    """What all views of one child share. Pixels live here only while their chunk runs, and never more than `pixel_bytes` of them.

    derived: the store in which a splitter's children get their bytes.
    A picture that had to make room for others is decoded again if a later step asks for it: memory is bounded, the answer is the same.
    """

    limits: Limits
    progress: Progress | None = None
    pixel_bytes: int = 1 << 30
    derived: str = ""
    bytes_read: int = 0
    step: int = -1
    inputs: int = 1
    call: int = 0
    _pixels: OrderedDict[MediaView, int] = field(default_factory=OrderedDict)

    def mark(self, sample: int = -1, decoding: bool = False, opening: bool = False) -> None:
        """Tells whoever watches this process what it is at."""
        if self.progress is not None:
            self.progress.write(Moment(self.call, self.step, sample, decoding, opening, self.inputs, opened()))

    def begin(self, inputs: int, sample: int = -1) -> None:
        """A new piece of work begins: CPU time is counted anew, and allowed for each input."""
        self.call, self.inputs = self.call + 1, inputs
        self.mark(sample)

    def pause(self, seconds: float) -> None:
        """Sleeps, and says again and again that it is alive: a wait is no silence to be killed for."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.begin(1)
            time.sleep(min(left, PULSE_SECONDS))

    @contextmanager
    def decoding(self, sample: int) -> Iterator[None]:
        self.mark(sample, decoding=True)
        try:
            yield
        finally:
            self.mark(sample)

    def keep(self, view: MediaView, size: int) -> None:
        self._pixels[view] = size
        while sum(self._pixels.values()) > self.pixel_bytes and len(self._pixels) > 1:
            oldest, _ = self._pixels.popitem(last=False)
            oldest.drop_pixels()

    def clear(self) -> None:
        """Frees the pixels of a chunk that is done."""
        for view in self._pixels:
            view.drop_pixels()
        self._pixels.clear()


class MediaView:
    """One medium of one sample. Every method may raise SourceError, LimitError or DecodeError: a step returns them as its answer.

    ref      where the bytes lie. limits: under which they are opened.
    sample   the sample it belongs to. number: its place among the sample's media.
    columns  what earlier steps wrote and this step declared to read, under final names: this medium's value at level "medium".
    """

    def __init__(self, room: Room, row: int, sample: Sample, number: int) -> None:
        self.ref: MediaRef = sample.media[number]
        self.limits: Limits = room.limits
        self.sample = sample
        self.number = number
        self.columns: Mapping[str, Any] = _NOTHING
        self._room, self._row = room, row
        self._data: bytes | None = None
        self._sha256: str | None = None
        self._image: np.ndarray | None = None
        self._header: VideoHeader | None = None
        self._frames: tuple[tuple[float, ...], np.ndarray] | None = None

    def data(self) -> bytes:
        """The encoded bytes, within limits. For videos prefer `open`."""
        if self._data is not None:
            return self._data
        with self._room.decoding(self._row):
            data = read_media(self.ref, self.limits)
        self._room.bytes_read += len(data)
        if len(data) <= KEPT_BYTES:
            self._data = data
        return data

    def open(self) -> BinaryIO:
        """The encoded bytes as a seekable file: from the source for a video, else from memory."""
        if self.ref.kind != "video":
            return io.BytesIO(self.data())
        with self._room.decoding(self._row):
            return open_media(self.ref, self.limits)

    def sha256(self) -> str:
        """64 hex digits over the encoded bytes; a video is hashed as it streams by."""
        if self._sha256 is None:
            if self.ref.kind != "video":
                self._sha256 = hashlib.sha256(self.data()).hexdigest()
            else:
                with self._room.decoding(self._row), open_media(self.ref, self.limits) as file:
                    self._sha256 = self._hash(file)
        return self._sha256

    def image(self) -> np.ndarray:
        """uint8 H×W×3, EXIF orientation applied; a video's first frame. Shared by all steps: read-only."""
        if self._image is None:
            pixels = self._first_frame() if self.ref.kind == "video" else self._decoded()
            pixels.setflags(write=False)
            self._image = pixels
            self._hold()
        return self._image

    def frames(self, times: Sequence[float]) -> Iterator[np.ndarray]:
        """The frames of a video on screen at these seconds (ascending), one after the other: uint8 H×W×3, turned as it is shown, read-only.

        They are decoded together, and kept for a step that asks for the same times, as far as FRAME_BYTES hold them; of a film with more
        the next ones are decoded when the ones before were taken, so that what is held does not grow with its length. It ends early where
        the video does.
        """
        wanted = tuple(times)
        if self._frames is not None and self._frames[0] == wanted:
            yield from self._frames[1]
            return
        header = self.video_header()
        at_once = max(1, FRAME_BYTES // (header.width * header.height * 3))
        for start in range(0, len(wanted), at_once):
            part = np.array(wanted[start : start + at_once], dtype=np.float64)
            with self._room.decoding(self._row), open_media(self.ref, self.limits) as file:
                pixels = pick_frames(file, part, self.limits).pixels
            pixels.setflags(write=False)
            if len(wanted) <= at_once:
                self._frames = (wanted, pixels)
                self._hold()
            yield from pixels
            if len(pixels) < len(part):
                return

    def image_header(self) -> ImageHeader:
        data = self.data()
        with self._room.decoding(self._row):
            return image_header(data, self.limits)

    def video_header(self) -> VideoHeader:
        if self._header is None:
            with self._room.decoding(self._row), open_media(self.ref, self.limits) as file:
                self._header = video_header(file, self.limits)
        return self._header

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """For a step that decodes by itself: a crash or an overrun inside is then known to be this sample's."""
        with self._room.decoding(self._row):
            yield

    def alive(self) -> None:
        """For a step whose call takes long by nature (a model writes, a server is waited for) and gets on: time is counted anew."""
        self._room.begin(self._room.inputs)

    def drop_pixels(self) -> None:
        self._image = self._frames = None

    def _hold(self) -> None:
        held = (self._image, self._frames[1] if self._frames is not None else None)
        self._room.keep(self, sum(pixels.nbytes for pixels in held if pixels is not None))

    def _decoded(self) -> np.ndarray:
        data = self.data()
        with self._room.decoding(self._row):
            return decode_image(data, self.limits)

    def _first_frame(self) -> np.ndarray:
        with self._room.decoding(self._row), open_media(self.ref, self.limits) as file:
            return sample_frames(file, fps=1.0, max_frames=1, limits=self.limits, size=None).pixels[0]

    def _hash(self, file: BinaryIO) -> str:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
            self._room.bytes_read += len(block)
            self._room.mark(self._row, decoding=True)  # a long film on a slow disk is progress, not a hang
        return digest.hexdigest()


class SampleView:
    """One sample: its record, its media, and the columns that the step declared to read (level "medium": a list, one for each medium)."""

    def __init__(self, room: Room, row: int, sample: Sample) -> None:
        self.sample = sample
        self.limits = room.limits
        self.media: Sequence[MediaView] = tuple(MediaView(room, row, sample, number) for number in range(len(sample.media)))
        self.columns: Mapping[str, Any] = _NOTHING


def each(views: Sequence[V], answer: Callable[[V], Row]) -> list[Result]:
    """A step function from a function of one view: an error that belongs to a sample becomes that sample's answer."""
    results: list[Result] = []
    for view in views:
        try:
            results.append(answer(view))
        except SampleError as error:
            results.append(error)
    return results


@dataclass(slots=True)
class Member:
    """A sample on its way through a program: the row of the work table that it is, and whether it is still in.

    row       place in the chunk. stamp, content, text_fp, known, have, failed: as in the work table. kinds: of its media, or "text".
    too_long  what is wrong with the length of its texts; None while within limits.
    """

    row: int
    view: SampleView
    stamp: str | None
    content: str | None
    text_fp: str
    known: frozenset[str]
    have: frozenset[str]
    failed: frozenset[str]
    kinds: frozenset[str]
    too_long: str | None
    alive: bool = True


def member_of(room: Room, i: int, row: dict[str, Any]) -> Member:
    sample = sample_from_row(row)
    return Member(
        row=i,
        view=SampleView(room, i, sample),
        stamp=row["media_stamp"],
        content=row["content"],
        text_fp=row["text_fp"],
        known=frozenset(row["known"] or ()),
        have=frozenset(row["have"] or ()),
        failed=frozenset(row["failed"] or ()),
        kinds=frozenset(medium.kind for medium in sample.media) or frozenset({"text"}),
        too_long=over_text_limit(sample.texts, room.limits),
    )

"""Frames at wanted times: groups of pictures without one are passed over, in the file by its index, else packet by packet.

Whatever is passed over, the frames are those of decoding everything: a decoder starts anew at a key frame only, and where the first
frame it then gives is no picture that stands for itself, `Unsure` asks for decoding without leaving anything out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import PictureType

from shards.errors import DecodeError
from shards.video_file import Film, reason, stamp_of_packet

LAST_FRAME_STANDS = 1.0  # seconds that a clip's last frame may stand beyond its own duration, as where the sound ends later
NEAR_BYTES = 1 << 18  # a key frame that lies so near is reached by reading on
HELD_BYTES = 1 << 25  # packets that wait for the decision whether they are needed
_EPSILON = 1e-6


def stands_until(film: Film, shown: Shown) -> float:
    """Until when the last frame of a film that was read to its end is on screen, in seconds from the first: for its own duration, or
    where an edit list hides what follows, until that would have begun. (A packet's duration is that to the next one decoded.)"""
    over, begun = film.seconds(film.over), film.seconds(shown.frame.pts)
    if over is None or begun is None:
        return shown.at + shown.span
    return shown.at + max(over - begun, 0.0)


class Unsure(Exception):
    """What was passed over may have been needed."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where a file's index says key frames lie: int64 stamps in the stream's time base and byte places, in order. Empty: it has none."""

    stamps: np.ndarray
    places: np.ndarray

    def have(self, packet: Any) -> bool:
        """Whether it is one of them, by its presentation (Matroska) or decoding time (MP4)."""
        return bool(np.isin([s for s in (packet.pts, packet.dts) if s is not None], self.stamps).any())


NO_KEYS = Keys(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded frame, `at` seconds after the first one, for `span` seconds (0 where unknown)."""

    frame: Any
    at: float
    span: float


def frames_at(film: Film, times: np.ndarray, keys: Keys = NO_KEYS, skip: bool = True) -> Iterator[Shown]:
    """For each of `times` the frame on screen, in order; each is chosen when a later frame, or the end, confirms it.

    Ends early where the video does, or tears: `film.clock.tear` says why then. Raises Unsure (never without `skip`), LimitError,
    DecodeError for frames without times.
    """
    index, shown, clock = 0, None, film.clock

    def wanted() -> float | None:
        return float(times[index]) if index < len(times) else None

    for one in needed_frames(film, wanted, keys, skip):
        while index < len(times) and shown is not None and one.at > times[index] + _EPSILON:
            if shown.frame.is_corrupt:
                clock.tear, clock.reached = f"the frame at {shown.at:.2f} s is damaged", shown.at
                return
            yield shown
            index += 1
        if index == len(times):
            return
        if shown is None or one.at >= shown.at:
            shown = one
            clock.reached = clock.reached if one.frame.is_corrupt else one.at + one.span
    stands = LAST_FRAME_STANDS if clock.tear is None else -2 * _EPSILON  # nobody knows what came after a tear
    while index < len(times) and shown is not None and times[index] <= max(shown.at, stands_until(film, shown) + stands):
        if shown.frame.is_corrupt:
            clock.tear, clock.reached = clock.tear or f"the frame at {shown.at:.2f} s is damaged", min(clock.reached, shown.at)
            return
        yield shown
        index += 1
    if shown is not None and index < len(times) and clock.tear is None:
        clock.tear = f"{film.name}: the frames end at {shown.at + shown.span:.2f} s"


def needed_frames(film: Film, wanted: Callable[[], float | None], keys: Keys = NO_KEYS, skip: bool = True) -> Iterator[Shown]:
    """Frames in display order, until nothing is wanted; groups of pictures that end before the time `wanted()` are not decoded.

    Packets wait undecoded until one at or after the wanted time comes (then all are decoded), or a key frame at or before it does (then
    what waited is dropped, for a decoder can start anew there).
    """
    decoder = _Decoder(film)
    packets = film.packets()
    skip = skip and not film.guessed  # the decoder guesses their order from all that came before
    waiting: list[Any] = []
    held, live, anew = 0, True, False
    place, sought = 0, -1.0
    while (packet := next(packets, None)) is not None:
        if (goal := wanted()) is None:
            return
        at = decoder.since_start(film.seconds(stamp_of_packet(packet)))
        place = max(place, (packet.pos or 0) + packet.size)
        if skip and not live and at is not None and packet.is_keyframe and at <= goal:
            anew, waiting, held = anew or bool(waiting), [], 0
        waiting.append(packet)
        held += packet.size
        if skip and not live and at is not None and at < goal and held < HELD_BYTES:
            continue
        if anew:
            decoder.restart(goal)
            anew = False
        ready, waiting, held = waiting, [], 0
        yield from decoder.frames(ready, goal if skip else None)
        if decoder.torn:
            return
        goal = wanted()
        live = goal is None or at is None or at >= goal
        if skip and not live and goal is not None and goal != sought:
            sought = goal  # once for each: a demuxer may land before the key frame that was meant
            if (jumped := _jumped(film, keys, decoder.start + goal, place)) is not None:
                packets, anew = jumped, True
    if (goal := wanted()) is None:
        return
    if anew:
        decoder.restart(goal)
    yield from decoder.frames([*waiting, None], None)


class _Decoder:
    """start: seconds at which the first frame stands. torn: it gives no more frames."""

    def __init__(self, film: Film) -> None:
        self._film, self._context = film, film.stream.codec_context
        self._started, self.start, self.torn = False, 0.0, False
        self._pushed: int | None = None  # in the stream's time base
        self._goal: float | None = None  # after a restart, until its first frame has come
        self._thins = film.codec == "h264"  # pictures that it marks as unreferenced are needed by none

    def since_start(self, seconds: float | None) -> float | None:
        return None if seconds is None or not self._started else seconds - self.start

    def restart(self, goal: float) -> None:
        self._context.flush_buffers()
        self._goal = goal

    def frames(self, packets: list[Any], goal: float | None) -> Iterator[Shown]:
        """What comes out for these packets, None among them standing for the end. With a goal, frames that are neither shown then or later
        nor needed by others may be left out."""
        times = [self.since_start(self._film.seconds(stamp_of_packet(p))) if p is not None and p.pts is not None else None for p in packets]
        last = max((t for t in times if t is not None and goal is not None and t <= goal + _EPSILON), default=None)
        for packet, at in zip(packets, times, strict=True):
            if self._thins:
                spared = last is not None and at is not None and at < last - _EPSILON
                self._context.skip_frame = "NONREF" if spared else "DEFAULT"
            for frame in self._decoded(packet):
                yield self._shown(frame)
            if self.torn:
                return

    def _decoded(self, packet: Any) -> list[Any]:
        clock = self._film.clock
        try:
            frames = self._context.decode(packet)
        except Exception as error:
            if not self._started:  # a recording that begins amid a group of pictures
                clock.tear = clock.tear or f"{self._film.name}: {reason(error)}"
                return []
            clock.tear, self.torn = f"{self._film.name}: {reason(error)}", True
            bad = stamp_of_packet(packet) if packet is not None else None
            frames = [frame for frame in self._rest() if bad is not None and frame.pts is not None and frame.pts < bad]
        for frame in frames:
            clock.frame(frame)
        return frames

    def _rest(self) -> list[Any]:
        """What the decoder still holds of what came before the tear."""
        self._context.skip_frame = "DEFAULT"
        try:
            return list(self._context.decode(None))
        except Exception:  # exception: the tear is known already, and nothing more is there
            return []

    def _shown(self, frame: Any) -> Shown:
        seconds = self._film.seconds(self._in_order(frame) if self._film.guessed else frame.pts)
        if seconds is None:
            raise DecodeError(f"{self._film.name}: a frame without a time")
        if not self._started:
            self._started, self.start, self._film.clock.tear = True, seconds, None
        at = seconds - self.start
        if self._goal is not None:
            if at > self._goal + _EPSILON or not (frame.key_frame or frame.pict_type == PictureType.I):
                raise Unsure
            self._goal = None
        return Shown(frame, at, float((frame.duration or 0) * self._film.stream.time_base))

    def _in_order(self, frame: Any) -> int | None:
        """Frames come out in the order they are shown in, at the decoding times of the packets that pushed them out: those are shown at a
        constant distance. The last ones, which the end of the file pushes out, follow by their duration."""
        after = None if self._pushed is None else self._pushed + max(frame.duration or 1, 1)
        self._pushed = after if frame.dts is None else frame.dts
        return self._pushed


def _jumped(film: Film, keys: Keys, goal: float, place: int) -> Iterator[Any] | None:
    """The packets from the last key frame at or before `goal` (seconds, as the container counts) on, where it lies far behind `place`."""
    stamp = int(np.floor(goal / float(film.stream.time_base) + _EPSILON))
    index = int(np.searchsorted(keys.stamps, stamp, side="right")) - 1
    if index < 0 or keys.places[index] < place + NEAR_BYTES:
        return None
    sought = stamp
    for _ in range(3):
        try:
            film.container.seek(sought, stream=film.stream, backward=True)
        except Exception as error:
            raise Unsure from error
        packets = film.packets()
        first = next(packets, None)
        if first is None or not first.is_keyframe or first.pts is None or not keys.have(first):
            raise Unsure  # the index and the file do not agree
        if first.pts <= stamp:
            return _behind(first, packets)
        sought = min(first.pts, first.dts if first.dts is not None else first.pts) - 1  # found by when it is decoded; it is shown later
    raise Unsure


def _behind(first: Any, packets: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from packets

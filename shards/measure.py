"""What an item costs under a profile (a MEASURE_TYPE struct), and the way back: bytes and their measure to what the encoder eats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, BinaryIO, Literal

import numpy as np

from shards.chat import MediumTokens, count_item
from shards.compression import compressed
from shards.errors import LimitError, ProfileError, SampleError, ShardError
from shards.image import ImageHeader, decode_image, image_header
from shards.items import Item, shown
from shards.media import Limits
from shards.preprocess import MediumSize, frame_grid, image_grid, medium_size, normalise, patchify, preprocess_image
from shards.profile import Profile
from shards.repeats import first_equal, kept_once
from shards.tokens import kept_by_frame, pack_mask, unpack_mask
from shards.video import VideoHeader, frame_times, sample_frames, video_header
from shards.video_frames import LAST_FRAME_STANDS


class Medium:
    """One medium of a sample: bytes, or a seekable file for a video. Its header is read once; frames are sampled once for each grid, so
    that several items of a sample share the work."""

    def __init__(self, kind: Literal["image", "video"], data: bytes | BinaryIO, limits: Limits) -> None:
        self.kind = kind
        self.data = data
        self.limits = limits
        self._measured: dict[tuple[str, MediumSize, float | None], dict[str, Any]] = {}

    @cached_property
    def header(self) -> ImageHeader | VideoHeader:
        """Raises DecodeError, LimitError, as every use of a medium does."""
        return image_header(_bytes(self.data), self.limits) if self.kind == "image" else video_header(self.data, self.limits)

    def frames(self, profile: Profile, until: float | None = None) -> int:
        """Frames that are sampled under the profile, those after `until` seconds left out: 1 for an image. A video that tears while it is
        decoded has fewer, of the size that it would have whole."""
        header = self.header
        return 1 if isinstance(header, ImageHeader) else len(frame_times(header.good, profile.fps, profile.max_frames, until))

    def measured(self, profile: Profile, count: int, until: float | None = None) -> dict[str, Any]:
        """MEASURED_MEDIUM_TYPE of this medium, of a video as far as `until`, among `count` images and frames of its item. An image is
        measured by its header alone."""
        size = medium_size(self.header.width, self.header.height, self.frames(profile, until), profile, self.kind, count)
        key = (profile.digest, size, until)
        if key not in self._measured:
            self._measured[key] = _measured_image(size, profile) if self.kind == "image" else _measured_video(self, size, profile, until)
        return self._measured[key]


@dataclass(frozen=True, slots=True)
class LoadedMedium:
    """patches float32 (t·h·w, 3·patch²) in the order of `preprocess.patchify`; grid (t, h, w) in patches; mask bool
    (t·h/merge·w/merge) of kept visual tokens, None where all are kept."""

    patches: np.ndarray
    grid: tuple[int, int, int]
    merge: int
    mask: np.ndarray | None


def measure_item(item: Item, media: Sequence[Medium], tokenizer: Any, profile: Profile) -> dict[str, Any]:
    """The MEASURE_TYPE struct of an item. `media` are the sample's, all of them: parts name them by place.

    The budget of visual tokens is split evenly over all images and frames of the item. Images cost their header, videos their sampled
    frames (for their compression); a streamed video is one medium, as far as its last message shows it. Raises DecodeError and LimitError
    of the media, LimitError for more text tokens than profile.max_text_tokens, SampleError for what `encode_item` refuses and for a stream
    that goes on after its video, ShardError for a part whose medium the sample lacks or has in another kind.
    """
    parts = shown(item)
    for part in parts:
        if not 0 <= part.media < len(media) or media[part.media].kind != part.type:
            raise ShardError(f"item {item.task}/{item.n} names {part.type} {part.media}; the sample has {[m.kind for m in media]}")
    count = sum(media[part.media].frames(profile, part.until) for part in parts)
    measured = [media[part.media].measured(profile, count, part.until) for part in parts]
    for part, found in zip(parts, measured, strict=True):
        _refuse_unseen(item, part.until, media[part.media], found, profile)
    sizes = [_size(medium) for medium in measured]
    kept = [kept_by_frame(_mask(medium), size.t, size.h, size.w, size.merge) for medium, size in zip(measured, sizes, strict=True)]
    tokens = [MediumTokens(part.type, k, m["times"]) for part, k, m in zip(parts, kept, measured, strict=True) if part.type != "text"]
    text_tokens, labelled_tokens = count_item(item, tokenizer, tokens)
    if text_tokens > profile.max_text_tokens:
        raise LimitError(
            f"item {item.task}/{item.n} has {text_tokens:,} text tokens, profile {profile.name!r} allows "
            f"max_text_tokens = {profile.max_text_tokens:,}"
        )
    return {
        "text_tokens": text_tokens,
        "labelled_tokens": labelled_tokens,
        "patches": sum(size.patches for size in sizes),
        "visual_tokens": sum(size.tokens for size in sizes),
        "kept_tokens": sum(map(sum, kept)),
        "media": measured,
    }


def load_medium(
    data: bytes | BinaryIO,
    measured: Mapping[str, Any],
    kind: Literal["image", "video"],
    profile: Profile,
    limits: Limits,
    until: float | None = None,
) -> LoadedMedium:
    """The patches of a medium at the grid that `measure_item` stored, with the stored mask (never computed again). `until`: that of
    its part in `shards.items.shown`.

    Raises DecodeError and LimitError of the medium; ProfileError if the pixels give another grid or other frame times than the measure
    says (another medium or profile); ShardError if the stored mask does not fit.
    """
    size, times = _size(measured), tuple(float(t) for t in measured["times"])
    merge = profile.image_merge if kind == "image" else profile.video_merge
    if size.merge != merge:
        raise ProfileError(f"the {kind} was measured with merge {size.merge}, profile {profile.name!r} has {merge}; measure it again")
    mask = unpack_mask(measured["mask"], size.tokens) if measured["mask"] is not None else None
    if kind == "image":
        rgb = decode_image(_bytes(data), limits)
        _must_fit(rgb.shape[0], rgb.shape[1], size, profile, kind)
        return LoadedMedium(preprocess_image(rgb, (size.h, size.w), profile), (1, size.h, size.w), merge, mask)

    def target(height: int, width: int, frames: int) -> tuple[int, int]:
        if frames < size.t:
            raise ProfileError(f"{frames} frames are sampled from the video, {size.t} were measured; measure it again")
        _must_fit(height, width, size, profile, kind)
        return size.h * profile.patch, size.w * profile.patch

    frames = sample_frames(data, profile.fps, profile.max_frames, limits, target, until)
    if len(frames.times) != size.t or not np.array_equal(frames.times, np.array(times, dtype=np.float32)):
        raise ProfileError(f"frames are sampled at other times than were measured under profile {profile.name!r}; measure it again")
    patches = normalise(patchify(frames.pixels, profile.patch, merge))
    return LoadedMedium(patches, (size.t, size.h, size.w), merge, mask)


def _measured_image(size: MediumSize, profile: Profile) -> dict[str, Any]:
    keep = [1.0] * len(profile.report_thresholds)
    return {**_numbers(size), "times": [], "mask": None, "keep": keep, "distinct": 1, "distinct_kept": size.tokens}


def _measured_video(medium: Medium, size: MediumSize, profile: Profile, until: float | None) -> dict[str, Any]:
    target = (size.h * profile.patch, size.w * profile.patch)
    frames = sample_frames(medium.data, profile.fps, profile.max_frames, medium.limits, lambda h, w, t: target, until)
    size = replace(size, t=len(frames.pixels))
    pixels, grid = patchify(frames.pixels, profile.patch, size.merge), (size.t, size.h, size.w, size.merge)
    mask, keep = compressed(pixels, *grid, profile.method, profile.threshold, profile.token_budget, profile.report_thresholds)
    first = first_equal(list(pixels.reshape(size.t, -1)))
    return {
        **_numbers(size),
        "times": [float(t) for t in frames.times],
        "mask": None if mask.all() else pack_mask(mask),
        "keep": keep,
        "distinct": len(np.unique(first)),
        "distinct_kept": int(kept_once(first, mask.reshape(size.t, -1)).sum()),
    }


def _refuse_unseen(item: Item, until: float | None, medium: Medium, found: Mapping[str, Any], profile: Profile) -> None:
    """What is said of a stream after its video has ended, or has torn, was never seen."""
    if until is None or isinstance(medium.header, ImageHeader):
        return
    torn = found["t"] < medium.frames(profile, until)
    if torn or until > medium.header.good + LAST_FRAME_STANDS:
        end = found["times"][-1] if torn else medium.header.good
        raise SampleError(f"item {item.task}/{item.n} speaks at {until:g} s of a video whose frames end at {end:.2f} s")


def _must_fit(height: int, width: int, size: MediumSize, profile: Profile, kind: str) -> None:
    """The stored grid must be one that these pixels have for some number of media in the item."""
    grids = _grids(height, width, size.t, profile, kind)
    if (size.h, size.w) not in grids:
        raise ProfileError(
            f"a {kind} of {width}×{height} pixels cannot have the measured grid of {size.h}×{size.w} patches under profile "
            f"{profile.name!r}; the medium is another one, or was measured otherwise: measure it again"
        )


@lru_cache(maxsize=256)
def _grids(height: int, width: int, frames: int, profile: Profile, kind: str) -> frozenset[tuple[int, int]]:
    # With more media than this each has the least share, and the grid changes no more.
    last = max(profile.max_visual_tokens // profile.min_visual_tokens, frames) + 1
    if kind == "image":
        return frozenset(image_grid(height, width, profile, count) for count in range(1, last + 1))
    return frozenset(frame_grid(height, width, frames, profile, count) for count in range(frames, last + 1))


def _numbers(size: MediumSize) -> dict[str, int]:
    return {"t": size.t, "h": size.h, "w": size.w, "merge": size.merge}


def _size(measured: Mapping[str, Any]) -> MediumSize:
    return MediumSize(*(int(measured[name]) for name in ("t", "h", "w", "merge")))


def _mask(measured: Mapping[str, Any]) -> np.ndarray | None:
    return None if measured["mask"] is None else unpack_mask(measured["mask"], _size(measured).tokens)


def _bytes(data: bytes | BinaryIO) -> bytes:
    if isinstance(data, bytes):
        return data
    data.seek(0)
    return data.read()

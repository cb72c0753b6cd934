"""What the encoder and the projector need not compute: the choices, and what is left by arithmetic on index rows. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class Savings:
    """reuse       pictures and frames of a pack that are equal to the last bit are encoded once. Exact.
    mask_first  visual tokens that compression drops do not pass the projector. Exact.
    prune       blocks that compression drops do not pass the encoder either: kept ones attend to the kept ones of their frame, at the
                places they had (as RLT, Choudhury et al. 2024, arXiv 2411.05222, prunes before the encoder). Approximate.
    """

    reuse: bool = True
    mask_first: bool = True
    prune: bool = False


EXACT = Savings()  # everything that changes no result


@dataclass(frozen=True, slots=True)
class Encoded:
    """What items cost the encoder and the projector, int64 [items]: patches, Σ patches² by frame, and rows of the projector."""

    patches: np.ndarray
    frame_squares: np.ndarray
    projected: np.ndarray


MEDIUM_FIELDS = (
    "t",
    "h",
    "w",
    "merge",
    "distinct",
    "distinct_kept",
)  # of MEASURED_MEDIUM_TYPE, that `encoded` reads; the last two if there


def encoded(media: pa.ListArray, kept: np.ndarray, compress: bool, savings: Savings) -> Encoded:
    """Of items with these media (list of MEASURED_MEDIUM_TYPE; `mask` is read for `prune` alone) and so many kept tokens (int64 [items]).

    It is what training.encoder_rows finds in a pack, with two exceptions, both upward. What is equal in two media of a pack (a picture that
    several of its items ask about) is counted for each. Under `prune` nothing is counted as reused: a frame equal to the one before it
    keeps one block, which is next to nothing. An index without `distinct` (format fovea-index/1) is taken to have no equal frames.
    """
    flat = media.flatten()
    fields = {flat.type.field(place).name for place in range(flat.type.num_fields)}
    t, h, w, merge = (_numbers(flat, name) for name in MEDIUM_FIELDS[:4])
    parents = pc.list_parent_indices(media).to_numpy(zero_copy_only=False)

    def summed(values: np.ndarray) -> np.ndarray:
        sums = np.zeros(len(media), dtype=np.int64)
        np.add.at(sums, parents, values)
        return sums

    each = h * w // merge**2
    if compress and savings.prune:
        blocks, squares = _kept_blocks(flat.field("mask"), t, each)
        return Encoded(summed(blocks * merge**2), summed(squares * merge**4), kept)
    known = savings.reuse and "distinct" in fields
    frames = _numbers(flat, "distinct") if known else t
    if not (compress and savings.mask_first):
        projected = summed(frames * each)
    else:
        projected = summed(_numbers(flat, "distinct_kept")) if known else kept
    return Encoded(summed(frames * h * w), summed(frames * (h * w) ** 2), projected)


def _kept_blocks(masks: pa.Array, t: np.ndarray, each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Σ over frames of kept blocks, Σ of their squares) of media with `t` frames of `each` blocks; a mask of null keeps all."""
    kept, squares = t * each, t * each**2
    masked = np.flatnonzero(masks.is_valid().to_numpy(zero_copy_only=False))
    if not len(masked):
        return kept, squares
    held = masks.take(pa.array(masked))
    lengths = pc.binary_length(held).to_numpy(zero_copy_only=False).astype(np.int64)
    bits = np.unpackbits(np.frombuffer(b"".join(held.to_pylist()), dtype=np.uint8), bitorder="little")
    frames = t[masked]
    medium = np.repeat(np.arange(len(masked)), frames)
    inside = np.arange(len(medium)) - np.repeat(np.cumsum(frames) - frames, frames)
    starts = 8 * (np.cumsum(lengths) - lengths)[medium] + inside * each[masked][medium]
    by_frame = np.add.reduceat(bits, starts, dtype=np.int64)  # bits beyond a mask's end are 0
    kept[masked] = np.bincount(medium, weights=by_frame, minlength=len(masked)).astype(np.int64)
    squares[masked] = np.bincount(medium, weights=by_frame.astype(np.float64) ** 2, minlength=len(masked)).astype(np.int64)
    return kept, squares


def _numbers(flat: pa.StructArray, name: str) -> np.ndarray:
    values: np.ndarray = flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return values

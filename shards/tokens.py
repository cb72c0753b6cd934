"""Visual tokens: how many there are, and masks of those that are kept (shards.compression makes them).

Order of tokens everywhere: frame by frame, row by row, as after merging; so a mask lines up with the encoder's merged output.
"""

from __future__ import annotations

import numpy as np

from shards.errors import ShardError


def merged_tokens(t: int, h: int, w: int, merge: int) -> int:
    """Visual tokens of t frames of h × w patches, merge × merge patches to one."""
    return t * (h // merge) * (w // merge)


def pack_mask(mask: np.ndarray) -> bytes:
    """bool (n) to ceil(n/8) bytes: token i is bit i % 8 (from the least) of byte i // 8."""
    return np.packbits(mask.astype(bool), bitorder="little").tobytes()


def unpack_mask(packed: bytes, tokens: int) -> np.ndarray:
    """Inverse of `pack_mask`: bool (tokens). Raises ShardError for a wrong length or bits set beyond the end."""
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little").astype(bool)
    if len(packed) != (tokens + 7) // 8 or bits[tokens:].any():
        raise ShardError(f"a compression mask of {len(packed)} bytes does not fit {tokens} visual tokens")
    return bits[:tokens]


def kept_by_frame(mask: np.ndarray | None, t: int, h: int, w: int, merge: int) -> list[int]:
    """Kept tokens of each frame; a mask of None keeps all."""
    each = merged_tokens(1, h, w, merge)
    return [each] * t if mask is None else [int(n) for n in mask.reshape(t, each).sum(axis=1)]

"""Masks as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.tokens import kept_by_frame, pack_mask, unpack_mask


def test_a_mask_of_none_keeps_all() -> None:
    assert kept_by_frame(None, 4, 6, 4, 2) == [6, 6, 6, 6]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=70))
def test_masks_survive_packing(bits: list[bool]) -> None:
    packed = pack_mask(np.array(bits, dtype=bool))
    assert len(packed) == (len(bits) + 7) // 8
    assert unpack_mask(packed, len(bits)).tolist() == bits
    assert [bool(packed[i // 8] >> (i % 8) & 1) for i in range(len(bits))] == bits
    with pytest.raises(ShardError, match="does not fit"):
        unpack_mask(packed + b"\0", len(bits))


def test_a_mask_with_bits_beyond_its_end_is_refused() -> None:
    with pytest.raises(ShardError, match="does not fit 5"):
        unpack_mask(b"\xff", 5)

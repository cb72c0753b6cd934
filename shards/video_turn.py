"""How a video's pictures are turned and mirrored to be shown, by the display matrix that cameras write (ISO/IEC 14496-12, 6.2.2)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def upright(frame: Any) -> bool:
    """Whether PyAV's frame is shown as it is stored."""
    return _axes(frame) == (False, False, False)


def lies(frame: Any) -> bool:
    """Whether width and height change places when PyAV's frame is shown."""
    return _axes(frame)[0]


def shown(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Pixels (H, W, …) of PyAV's frame as they are to be shown: one of the eight orientations, the nearest to what its matrix says."""
    swapped, across, down = _axes(frame)
    turned = pixels.swapaxes(0, 1) if swapped else pixels
    return np.ascontiguousarray(turned[:: -1 if down else 1, :: -1 if across else 1])


def _axes(frame: Any) -> tuple[bool, bool, bool]:
    """(axes change places, then left and right do, top and bottom do): a point (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0

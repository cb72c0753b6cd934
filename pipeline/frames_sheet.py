"""What compression keeps of a video, to look at: frames with dropped blocks dimmed, and the share that is kept by threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 224  # pixels of a frame in a sheet
COLUMNS = 6
DIM = 0.22  # of a dropped block's brightness
TINT = (28, 30, 74)  # what a dropped block is dimmed towards: a dark one would look like a kept one

_MARGIN, _LINE = 12, 20
_PAPER, _INK = (255, 255, 255), (32, 33, 36)


def sheet(frames: np.ndarray, times: np.ndarray, kept: np.ndarray, title: str) -> Image.Image:
    """One picture of all frames, in order, each with its time and the share of its blocks that is kept.

    frames: uint8 (T, H, W, 3). times: seconds (T). kept: bool (T, rows, columns) of blocks, which divide H and W evenly.
    """
    t, height, width = frames.shape[:3]
    rows, columns = kept.shape[1:]
    light = np.where(kept, 1.0, DIM).repeat(height // rows, axis=1).repeat(width // columns, axis=2)
    tall = round(height * WIDTH / width)
    across = min(COLUMNS, t)
    lines = -(-t // across)
    font = ImageFont.load_default(14)
    wide = max(across * (WIDTH + _MARGIN), math.ceil(font.getlength(title)) + _MARGIN)
    whole = Image.new("RGB", (_MARGIN + wide, _MARGIN + _LINE + _MARGIN + lines * (tall + _LINE + _MARGIN)), _PAPER)
    draw = ImageDraw.Draw(whole)
    draw.text((_MARGIN, _MARGIN), title, _INK, font)
    for index in range(t):
        share = light[index][..., None]
        shown = Image.fromarray((frames[index] * share + np.array(TINT) * (share < 1)).astype(np.uint8))
        left = _MARGIN + index % across * (WIDTH + _MARGIN)
        top = 2 * _MARGIN + _LINE + index // across * (tall + _LINE + _MARGIN)
        whole.paste(shown.resize((WIDTH, tall), Image.Resampling.BILINEAR), (left, top))
        draw.text((left, top + tall + 2), f"{times[index]:.1f} s   {kept[index].mean():.0%} kept", _INK, font)
    return whole


def curve(shares: Mapping[str, tuple[Sequence[float], Sequence[float]]], marks: Sequence[float], title: str, path: Path) -> None:
    """Plots, for each method, (thresholds in grey levels, shares of tokens that are kept); `marks`: thresholds of the sheets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, (thresholds, kept) in shares.items():
        axes.plot(thresholds, kept, marker="o", markersize=3, label=name)
    for mark in marks:
        axes.axvline(mark, color="0.8", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("threshold, grey levels of 255 (0.05: the paper's)")
    axes.set_ylabel("share of visual tokens kept")
    axes.set_title(title, fontsize=10)
    axes.legend()
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)

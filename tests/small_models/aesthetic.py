"""A linear head for the vectors of the small CLIP: scores around 5, of no meaning."""

from __future__ import annotations

from pathlib import Path

from tests.small_models.clip import DIMENSION


def build(folder: Path, dimension: int = DIMENSION, seed: int = 0) -> Path:
    """A file `head.pth` of LAION's form: weight (1, dimension), bias (1)."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    chance = torch.Generator().manual_seed(seed)
    torch.save({"weight": torch.randn((1, dimension), generator=chance), "bias": torch.tensor([5.0])}, folder / "head.pth")
    return folder / "head.pth"

"""Heads on feature vectors: a few linear layers from a checkpoint, as a function of vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only its name, to tell a file that holds something else than weights; none is ever loaded
from typing import Any

import numpy as np

from shards.errors import InfrastructureError


@dataclass(frozen=True, slots=True)
class Head:
    """Layers (weight float64 (out, in), bias float64 (out,)) in order, `relu` between them or nothing."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    relu: bool = False

    @property
    def dimension(self) -> int:
        return int(self.layers[0][0].shape[1])

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float (n, dimension) -> float64 (n, outputs)."""
        values = vectors.astype(np.float64)
        for number, (weight, bias) in enumerate(self.layers):
            values = (np.maximum(values, 0) if number and self.relu else values) @ weight.T + bias
        return values


def load_head(path: Path, relu: bool = False) -> Head:
    """A state_dict of plain linears: "weight" and "bias", or "<anything>.<number>.weight" and ".bias", in the order of the numbers.

    Raises InfrastructureError for a file that is no such thing. Nothing but tensors is ever loaded from it.
    """
    tensors = _tensors(path)
    names = sorted((name.removesuffix("weight") for name in tensors if name.endswith("weight")), key=_number)
    layers = [(tensors.get(f"{name}weight"), tensors.get(f"{name}bias")) for name in names]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for weight, bias in layers:
        fits = weight is not None and bias is not None and weight.ndim == 2 and bias.shape == weight.shape[:1]
        if not fits or (found and weight is not None and weight.shape[1] != len(found[-1][1])):
            break
        assert weight is not None
        assert bias is not None
        found.append((weight, bias))
    if not found or len(found) != len(layers) or 2 * len(found) != len(tensors):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:6])
        raise InfrastructureError(f"head {path} is not made of linear layers that follow each other: {shapes or 'it holds no tensors'}")
    return Head(tuple(found), relu)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError, SafetensorError) as error:
        raise InfrastructureError(f"head {path} cannot be read as weights: {error}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {str(name): tensor.double().numpy() for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _number(name: str) -> tuple[int, str]:
    digits = re.findall(r"\d+", name)
    return (int(digits[-1]) if digits else 0, name)

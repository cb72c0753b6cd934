"""A decision forest as plain numbers in a JSON file: the mean of what its trees say. No pickle, no learning library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """Numbers of a feature and of the two nodes after it: left where the feature ≤ the threshold."""

    feature: int
    threshold: float
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """Probability of each label."""

    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Forest:
    """labels    what it tells apart.   features  names of the numbers it is given.
    trees     each a list of nodes and leaves, the first its root.
    """

    labels: tuple[str, ...]
    features: tuple[str, ...]
    trees: tuple[tuple[Node | Leaf, ...], ...]

    def probabilities(self, values: Mapping[str, float]) -> dict[str, float]:
        """Label -> probability; they sum to 1."""
        numbers = [values[name] for name in self.features]
        sums = [0.0] * len(self.labels)
        for tree in self.trees:
            for place, probability in enumerate(_leaf(tree, numbers)):
                sums[place] += probability
        total = sum(sums)
        return {label: value / total for label, value in zip(self.labels, sums, strict=True)}


def forest_from_json(value: Mapping[str, Any]) -> Forest:
    """{labels, features, trees}; a node is [feature, threshold, left, right], a leaf {"p": [probability of each label]}."""
    trees = tuple(tuple(Leaf(tuple(n["p"])) if isinstance(n, dict) else Node(*n) for n in tree) for tree in value["trees"])
    return Forest(tuple(value["labels"]), tuple(value["features"]), trees)


def _leaf(tree: Sequence[Node | Leaf], numbers: Sequence[float]) -> Sequence[float]:
    at = tree[0]
    while isinstance(at, Node):
        at = tree[at.left if numbers[at.feature] <= at.threshold else at.right]
    return at.probabilities

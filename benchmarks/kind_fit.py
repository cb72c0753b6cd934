"""Makes configs/kind/forests.json from the pictures with even uids. The same data and library give the same file.

    python -m benchmarks.kind_fit [--data ../shared/data] [--ocr-cache FILE] [--out configs/kind/forests.json]

Settings were compared by five-fold cross-validation among the even ones alone: logistic regression (0.84-0.88 macro recall), this
forest (0.89), 300 deeper trees (0.89), drawn pages and charts in addition (0.87).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from benchmarks.kind_truth import FIVE, default_cache, features, labelled
from curation.kind_features import PICTURE, TEXT

TREES = 40
DEPTH = 6
LEAF = 2  # pictures, at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--ocr-cache", type=Path, default=default_cache())
    parser.add_argument("--out", type=Path, default=Path("configs/kind/forests.json"))
    args = parser.parse_args()
    pictures = [picture for picture in labelled(args.data) if picture.label in FIVE and not picture.odd]
    found = features(pictures, args.ocr_cache)
    labels = [picture.label for picture in pictures]
    sets = {"with_ocr": PICTURE + TEXT, "without_ocr": PICTURE}
    forests = {name: fit([[found[p.id][n] for n in names] for p in pictures], labels, names) for name, names in sets.items()}
    args.out.write_text(json.dumps(forests, separators=(",", ":")).replace('"trees":', '\n"trees":').replace("]],[[", "]],\n[[") + "\n")
    print({name: sum(map(len, forest["trees"])) for name, forest in forests.items()}, "nodes of", len(pictures), "pictures")


def fit(rows: list[list[float]], labels: list[str], names: tuple[str, ...]) -> dict[str, Any]:
    model = RandomForestClassifier(TREES, max_depth=DEPTH, min_samples_leaf=LEAF, class_weight="balanced_subsample", random_state=0)
    model.fit(np.array(rows), labels)
    return {"labels": list(model.classes_), "features": list(names), "trees": [_tree(tree.tree_) for tree in model.estimators_]}


def _tree(tree: Any) -> list[Any]:
    nodes: list[Any] = []
    for at in range(tree.node_count):
        if tree.children_left[at] == -1:
            nodes.append({"p": [round(float(v), 3) for v in tree.value[at][0] / tree.value[at][0].sum()]})
        else:
            threshold = round(float(tree.threshold[at]), 5)
            nodes.append([int(tree.feature[at]), threshold, int(tree.children_left[at]), int(tree.children_right[at])])
    return nodes


if __name__ == "__main__":
    main()

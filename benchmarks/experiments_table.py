"""What the experiments came to: a table of means and spreads over seeds from their result lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

ASKED = ("clip_name", "order")
ORDER = ("after_images", "scratch", "scratch_time", "full", "full_time", "dirty", "curated")


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each arm. Scores are the mean over seeds with the least and the greatest in brackets."""
    head = ["arm", "seeds", "steps", "processor s", *(name.removeprefix("clip_") for name in ASKED)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm in ORDER:
        of_arm = [one for one in results if one["arm"] == arm]
        if of_arm:
            seeds = ", ".join(str(one["seed"]) for one in sorted(of_arm, key=lambda one: one["seed"]))
            scores = [spread([one["scores"][name] for one in of_arm]) for name in ASKED]
            steps, seconds = (spread([one[name] for one in of_arm], digits=0) for name in ("steps", "cpu_seconds"))
            lines.append(f"| {arm} | {seeds} | {steps} | {seconds} | {' | '.join(scores)} |")
    found = [one["found"] for one in results if "found" in one]
    if found:
        lines += ["", "| wrong captions in | found by the rule, recall | precision | records left of |", "|---|---|---|---|"]
        for source in (name for name in found[0] if name != "records"):
            of_source = [one[source] for one in found]
            recall, precision = (spread([one[name] for one in of_source]) for name in ("recall", "precision"))
            left, of = (
                sum(one["records"] for one in found) / len(found),
                sum(found[0][name]["records"] for name in found[0] if name != "records"),
            )
            lines.append(f"| {source} | {recall} | {precision} | {left:.0f} of {of} in all |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """mean (least to greatest); the number alone where all are equal."""
    shown = [f"{value:.{digits}f}" for value in (mean(values), min(values), max(values))]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"

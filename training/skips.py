"""Items that could not be read: counted by kind, source and shard, and the end of a run in which they become too many.

Each rank lists its own in OUT/skipped-<rank>.jsonl, for network file systems do not append atomically; OUT/skipped.jsonl joins them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import FoveaError, ShardError
from training.durable import append_line, replace_text, whole_lines

if TYPE_CHECKING:
    from training.collate import Skipped
    from training.stages import SkipLimit

CHANGED = 3  # damaged samples of a shard, and half of all that were asked of it: it is not the shard that was measured


class TooManySkipped(FoveaError):
    """More items of a rank were unreadable than the config allows. counts: how many of each kind."""

    def __init__(self, message: str, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.counts = counts

    def __reduce__(self) -> tuple[type[TooManySkipped], tuple[str, dict[str, int]]]:
        return TooManySkipped, (str(self), self.counts)


@dataclass
class SkipCount:
    """What one rank has seen of a stage since it was started. `limit`: None, and a share of 1, end nothing."""

    limit: SkipLimit | None
    seen: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    damaged: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def note(self, asked: Sequence[str], lost: Sequence[tuple[Skipped, str]]) -> None:
        """`asked`: the shard of each item of a step, `lost`: those that could not be read, with their shards.

        Raises TooManySkipped past the limit, ShardError for a shard of which so much is damaged that it must have been changed.
        """
        self.seen += len(asked)
        self.asked.update(asked)
        for skipped, shard in lost:
            self.kinds[skipped.kind] += 1
            self.sources[skipped.name.source] += 1
            self.shards[shard] += 1
            if skipped.kind == "damaged":
                self.damaged[shard].add(skipped.name.uid)
        limit = self.limit
        if not lost or limit is None or limit.share >= 1:
            return
        for shard in {shard for _, shard in lost}:
            if len(self.damaged[shard]) >= CHANGED and 2 * self.shards[shard] >= self.asked[shard]:
                raise ShardError(
                    f"{shard} is not the shard that the dataset's manifest describes: of {self.asked[shard]:,} items that were read of it "
                    f"{self.shards[shard]:,} are lost, and {len(self.damaged[shard]):,} samples fail their checksums, the last one "
                    f"{lost[-1][0].name.uid}. Run fovea shards verify and restore what it names; then the same command goes on"
                )
        total = sum(self.kinds.values())
        if total <= limit.items or total <= limit.share * self.seen:
            return
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common())
        (source, of_source), (shard, of_shard) = self.sources.most_common(1)[0], self.shards.most_common(1)[0]
        raise TooManySkipped(
            f"{total:,} of {self.seen:,} items on this rank could not be read ({kinds}); `skipped` allows {limit.items:,} and a share of "
            f"{limit.share:g}. Most are of source {source!r} ({of_source:,}) and in shard {shard} ({of_shard:,}), the last one: "
            f"{lost[-1][0].name.uid}: {lost[-1][0].reason}. Run fovea shards verify and restore what it names, or raise the limit; then "
            "the same command goes on",
            dict(self.kinds),
        )


def note_skip(path: Path, stage: int, epoch: int, uid: str, task: str, n: int, source: str, kind: str, reason: str, step: int) -> None:
    """Adds a line to a rank's own file."""
    where = {"stage": stage, "epoch": epoch, "step": step}
    record = {**where, "uid": uid, "task": task, "n": n, "source": source, "kind": kind, "reason": reason}
    append_line(path, json.dumps(record, ensure_ascii=False))


def forget_skips(out: Path, stage: int, epoch: int, step: int) -> None:
    """Drops what every rank (there may have been more of them) has noted of steps that are about to be made (again)."""
    for own in sorted(out.glob("skipped-*.jsonl")):
        records = whole_lines(own, needs=("stage", "epoch", "step"))
        kept = [r for r in records if (r["stage"], r["epoch"], r["step"]) < (stage, epoch, step)]
        replace_text(own, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def join_skips(out: Path, stage: int) -> dict[str, int]:
    """Writes `out`/skipped.jsonl, what all ranks have noted by stage, pass and step, and counts those of `stage` by kind, most first.

    Without any there is no file. Raises InfrastructureError where the disk does not take it.
    """
    needs = ("stage", "epoch", "step", "uid", "kind")
    records = [record for own in sorted(out.glob("skipped-*.jsonl")) for record in whole_lines(own, needs=needs)]
    records.sort(key=lambda r: (r["stage"], r["epoch"], r["step"], r["uid"]))
    if records or (out / "skipped.jsonl").is_file():
        replace_text(out / "skipped.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return dict(Counter(str(r["kind"]) for r in records if r["stage"] == stage).most_common())

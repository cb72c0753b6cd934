"""Items that could not be read: counted by kind, source and shard, and the end of a run in which they become too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shards.errors import FoveaError

if TYPE_CHECKING:
    from training.collate import Skipped
    from training.stages import SkipLimit


class TooManySkipped(FoveaError):
    """More items of a rank were unreadable than the config allows. counts: how many of each kind."""

    def __init__(self, message: str, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.counts = counts

    def __reduce__(self) -> tuple[type[TooManySkipped], tuple[str, dict[str, int]]]:
        return TooManySkipped, (str(self), self.counts)


@dataclass
class SkipCount:
    """What one rank has seen since its loader began. `note` raises TooManySkipped past `limit` (None: never)."""

    limit: SkipLimit | None
    seen: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)

    def note(self, items: int, lost: Sequence[tuple[Skipped, str]]) -> None:
        """`items` of a step, the `lost` ones (with their shards) among them."""
        self.seen += items
        for skipped, shard in lost:
            self.kinds[skipped.kind] += 1
            self.sources[skipped.name.source] += 1
            self.shards[shard] += 1
        total, limit = sum(self.kinds.values()), self.limit
        if not lost or limit is None or total <= limit.items or total <= limit.share * self.seen:
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

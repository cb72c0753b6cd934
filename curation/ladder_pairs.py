"""Near pairs that stay stored, so that another threshold above the floor, or another ordering, searches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.ladder import EMBEDDING, FRAMES, NAMES, PHASH
from curation.ladder_floors import larger_radii, lower_floors
from curation.ladder_search import Ladder, Pairs
from shards.sample import digest_of

VERSION = 1  # of what is stored
PAIRS = pa.schema([("better", pa.int64()), ("worse", pa.int64()), ("similarity", pa.float32())])


@dataclass(frozen=True, slots=True)
class Kept:
    """Under which keys the pairs of each rung are stored.

    floors   rung → similarity (for hashes: radius) down to which they are looked for.
    decides  rung → all that decides what is found but floor and order: digests of the steps behind the columns, what a search is told,
             what is fixed. order: what decides the order of the rows.
    """

    floors: dict[int, float]
    decides: dict[int, list[object]]
    order: list[object]

    def key(self, rung: int, floor: float | None = None, cut: bool = False) -> str:
        """cut: of pairs of which some are left out, because a row has more than are listed: which ones depends on the order."""
        floor = self.floors[rung] if floor is None else floor
        return digest_of("near pairs", VERSION, NAMES[rung], floor, self.decides[rung], *([self.order] if cut else []))

    def keys(self, rung: int) -> Iterator[str]:
        """Keys under which what is wanted may be, the best first."""
        yield self.key(rung)
        yield self.key(rung, cut=True)
        below = larger_radii(int(self.floors[rung])) if rung == PHASH else lower_floors(self.floors[rung])
        for floor in below:
            yield self.key(rung, float(floor))


def load(ladder: Ladder, kept: Kept, rung: int) -> pa.Table | None:
    """What is stored of a rung's pairs, in the schema PAIRS: numbers of rows of the population's table, the better one first as the order
    was when they were found. A row in a pair with itself has more near ones than are listed.

    Pairs of which none is missing hold for every order and every threshold above their floor. Others hold for their floor and order alone.
    """
    for key in kept.keys(rung):
        table = ladder.population.pairs.load(key)
        if table is not None:
            return table
    return None


def found_or_kept(ladder: Ladder, kept: Kept, rung: int) -> Pairs:
    """Pairs of a rung at or above its floor: those that are stored, else those of a search, which are stored then."""
    table = load(ladder, kept, rung)
    if table is not None:
        better, worse = (table[name].to_numpy() for name in ("better", "worse"))
        listed = better != worse
        return Pairs(better[listed], worse[listed], table["similarity"].to_numpy()[listed], worse[~listed])
    found = ladder.found(rung, kept.floors[rung])
    marks = np.full(len(found.cut), np.nan, np.float32)
    values = (
        np.concatenate([found.better, found.cut]),
        np.concatenate([found.worse, found.cut]),
        np.concatenate([found.similarity, marks]),
    )
    ladder.population.pairs.save(kept.key(rung, cut=len(found.cut) > 0), pa.table(dict(zip(PAIRS.names, values, strict=True)), PAIRS))
    return found


def what_decides(ladder: Ladder, digests: dict[str, str], held: str) -> dict[int, list[object]]:
    """`Kept.decides` of the rungs. digests: of the steps that wrote the columns compared. held: digest of what is fixed."""
    common: list[object] = [ladder.on, ladder.across, ladder.most, sorted(digests.items()), held]
    search: list[object] = [ladder.search.lists, ladder.search.probes, ladder.search.seed]
    own: dict[int, list[object]] = {
        PHASH: [ladder.limits.flips, ladder.limits.rotations],
        FRAMES: [ladder.limits.frame_radius],
        EMBEDDING: search,
    }
    return {rung: [*common, own.get(rung, [])] for rung in ladder.rungs}

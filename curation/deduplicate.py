"""Which samples are copies of which: by the sha256 of their bytes, and pictures by perceptual hash within a Hamming radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.hamming import near_pairs
from curation.ordering import order_columns, ordered
from curation.step import MEDIA_KINDS, Column, How, Step

FEWEST_BITS = 8  # a phash with fewer bits set, or fewer clear, is that of a flat picture and says nothing


@dataclass(frozen=True, slots=True)
class What:
    """on            "media": the bytes and pictures of a sample, not its texts.
    sha256        equal bytes are copies.
    phash_radius  pictures whose perceptual hashes differ in at most so many of 64 bits are copies (0..16; 0 = off).
    keep_best     an SQL ordering over scores, "width*height desc": of several copies the first one is kept. Completed by uid.
                  Of a sample with several media it sees the values of the first.
    """

    on: str = "media"
    phash_radius: int = 4
    sha256: bool = True
    keep_best: str = ""


def reduce(what: What, population: pa.Table) -> pa.Table:
    """The copies in a population: (uid, of, rung, similarity, group), a row for each uid, in order of uid.

    population: uid string, kind string, sha256 list<string>, phash list<uint64 | int64> and the columns that keep_best names.

    Samples are walked in the order (keep_best, uid). One that has the bytes of a sample already kept, or else whose phash lies within the
    radius of one already kept, is its copy (the nearest's; of equally near ones the first's); every other sample is kept. So a copy is
    always near the very sample that replaces it: copies do not chain, and nothing is rejected as a copy of something rejected.
    The result depends on the set of rows alone.

    Samples with several media are copies only of samples with the same bytes in the same order; videos and flat pictures only by sha256.
    Samples without media take no part: `of` is null and `group` their own uid. similarity: 1 for equal bytes, 1 − distance / 64 for phash.
    """
    population = population.take(pa.array(ordered(what.keep_best, population), pa.int64()))
    uids = population["uid"].to_pylist()
    n = len(uids)
    first_of_bytes = _first_equal(population["sha256"].to_pylist()) if what.sha256 else np.arange(n)
    keeper = np.arange(n)  # places in the order; smaller is better
    distance = np.full(n, -1)  # -1: by sha256
    if what.phash_radius:
        by_bytes = first_of_bytes != np.arange(n)
        _near_kept(
            [None if copy else h for h, copy in zip(_hashes(population), by_bytes, strict=True)], what.phash_radius, keeper, distance
        )
    keeper, distance = keeper[first_of_bytes], distance[first_of_bytes]
    copies = keeper != np.arange(n)
    table = pa.table(
        {
            "uid": pa.array(uids, pa.string()),
            "of": pa.array([uids[k] if copy else None for k, copy in zip(keeper, copies, strict=True)], pa.string()),
            "rung": pa.array([_rung(d) if copy else None for d, copy in zip(distance, copies, strict=True)], pa.string()),
            "similarity": pa.array(
                [1.0 - max(int(d), 0) / 64.0 if copy else None for d, copy in zip(distance, copies, strict=True)], pa.float64()
            ),
            "group": pa.array([uids[k] for k in keeper], pa.string()),
        }
    )
    return table.sort_by("uid")


def _first_equal(digests: Sequence[Sequence[str | None] | None]) -> np.ndarray:
    """int64 (n,): the first place with the same digests of all media in the same order; its own where there are none or one is missing."""
    first: dict[tuple[str | None, ...], int] = {}
    return np.array(
        [first.setdefault(tuple(d), place) if d and None not in d else place for place, d in enumerate(digests)], dtype=np.int64
    )


def _hashes(population: pa.Table) -> list[int | None]:
    """The phash of each sample that is one picture, as 0..2⁶⁴-1; None for others and where it is that of a flat picture."""
    found: list[int | None] = []
    for kind, values in zip(population["kind"].to_pylist(), population["phash"].to_pylist(), strict=True):
        alone = kind == "image" and values is not None and len(values) == 1 and values[0] is not None
        value = int(values[0]) & 0xFFFFFFFFFFFFFFFF if alone else 0
        found.append(value if FEWEST_BITS <= value.bit_count() <= 64 - FEWEST_BITS else None)
    return found


def _near_kept(hashes: Sequence[int | None], radius: int, keeper: np.ndarray, distance: np.ndarray) -> None:
    """Fills keeper and distance for the copies by phash.

    One place stands for all with its hash: the first. The rest of them are at distance 0 of it if it is kept, and else are copies of what
    it is a copy of, at the same distance. Pairs arrive grouped by their better place, so that place is decided when they do.
    """
    first: dict[int, int] = {}
    for place, value in enumerate(hashes):
        if value is not None:
            first.setdefault(value, place)
    nearest = np.full(len(first), 65)
    nearest_of = np.full(len(first), -1)
    for left, right, differ in near_pairs(np.fromiter(first.keys(), np.uint64, len(first)), radius):
        for i, j, d in zip(left.tolist(), right.tolist(), differ.tolist(), strict=True):
            if nearest_of[i] < 0 and d < nearest[j]:
                nearest[j], nearest_of[j] = d, i
    places = list(first.values())
    of_hash = {value: i for i, value in enumerate(first)}
    for place, value in enumerate(hashes):
        if value is None:
            continue
        i = of_hash[value]
        if nearest_of[i] >= 0:
            keeper[place], distance[place] = places[nearest_of[i]], nearest[i]
        elif places[i] != place:
            keeper[place], distance[place] = places[i], 0


def _rung(distance: int) -> str:
    return "sha256" if distance < 0 else "phash"


def _reads(what: What) -> list[str]:
    read = [*(["sha256"] if what.sha256 else []), *(["phash"] if what.phash_radius else []), *order_columns(what.keep_best)]
    return [name for name in dict.fromkeys(read) if name not in ("uid", "kind")]


def _columns(what: What) -> list[Column]:
    return [
        Column("of", pa.string(), MEDIA_KINDS, doc="uid of the kept sample this one is a copy of; null for an original"),
        Column("rung", pa.string(), MEDIA_KINDS, doc="what gave the copy away: sha256 or phash"),
        Column("similarity", pa.float64(), MEDIA_KINDS, doc="1 for equal bytes, 1 - distance / 64 for phash; null for an original"),
        Column("group", pa.string(), MEDIA_KINDS, doc="uid of the group's kept sample; its own for an original"),
    ]


def _check(what: What) -> None:
    if what.on != "media":
        raise ValueError(f"on: {what.on!r} is unknown; deduplicate compares 'media'")
    if not 0 <= what.phash_radius <= 16:
        raise ValueError(f"phash_radius: {what.phash_radius} is outside 0..16 (bits of 64; 0 = off)")
    if not what.sha256 and not what.phash_radius:
        raise ValueError("sha256 is off and phash_radius is 0: nothing is compared; turn one of them on")
    order_columns(what.keep_best)


def _implied(what: What) -> str:
    return "{prefix}of is null or turns > 0"


STEP = Step(
    version=1,
    shape="global",
    level="sample",
    applies=MEDIA_KINDS,
    prefix="duplicate_",
    what=What,
    how=How,
    columns=_columns,
    reads=_reads,
    reduce=lambda what, population: reduce(what, population.table),
    implied=_implied,
    check=_check,
)

"""Tables that find 64-bit hashes within a Hamming radius: buckets of bit bands; one that is too full is cut again by its other bits."""

from __future__ import annotations

import heapq
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import IO, NamedTuple

import numba
import numpy as np

BITS = 64
WIDEST_BAND = 22  # bits; a band has 2**bits buckets
FULL = 8_192  # hashes in a bucket; one with more is cut again
SWELL = 3  # all tables together hold at most so many times what the outermost ones hold
PROBE, COMPARE, PLACE = 80.0, 2.0, 20.0  # nanoseconds: a bucket looked up, a hash compared, a hash laid into a band's table


class Tables(NamedTuple):
    """Nodes; a node has bands; a band has buckets; a bucket has hashes in order of number, and a node of its own where it is full.

    A node stands for hashes that all have `value` where the bits of `same` are set (the outermost one: none). Its bands are cut from the
    other bits: `gather` (nodes, 8, 256) brings them together, an entry for each value of each byte; band b is `width[b]` bits of the
    result from `shift[b]` on. Bands of node k: first_band[k] … first_band[k + 1]. `parts[k]`: into how many its bits were cut, of which
    those that are needed for its radius are bands.

    starts    uint32: from starts_at[b] on, where each bucket of band b starts, behind entries_at[b].
    hashes    uint64, numbers: uint32: the entries.
    children  child_bucket uint32 ascending and child_node int32, from children_at[b] to children_at[b + 1].
    flips     uint32: what turns a value of `width` bits into those near it, from flips_at[width] on, fewest bits first.
    flips_of  int64 (widths, radii): how many of them are within a radius.
    pending   nodes that can wait at once when a hash is looked up.
    look      hashes of a full bucket that are compared before its node is asked: where many are near, they are enough.
    """

    first_band: np.ndarray
    parts: np.ndarray
    same: np.ndarray
    value: np.ndarray
    gather: np.ndarray
    shift: np.ndarray
    width: np.ndarray
    starts_at: np.ndarray
    entries_at: np.ndarray
    children_at: np.ndarray
    child_bucket: np.ndarray
    child_node: np.ndarray
    flips: np.ndarray
    flips_at: np.ndarray
    flips_of: np.ndarray
    pending: np.ndarray
    look: np.ndarray
    starts: np.ndarray
    hashes: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True, slots=True)
class _Node:
    same: np.ndarray  # uint64 scalar
    value: np.ndarray
    gather: np.ndarray
    parts: int
    bands: list[tuple[int, int]]  # shift, width
    level: int


def band_radius(radius: int, parts: int, band: int) -> int:
    """How far band `band` of `parts` must be searched so that all within `radius` are found by some band; -1: not at all.

    Were every band further than ⌊(radius − band) / parts⌋, together they would be further than the radius (Norouzi, Punjani, Fleet, "Fast
    Exact Search in Hamming Space with Multi-Index Hashing", 2014, section 3).
    """
    return (radius - band) // parts


def choose_parts(n: int, bits: int, radius: int, searches: int) -> int:
    """Into how many bands `bits` bits of n evenly spread hashes are cut, so that building and `searches` look-ups cost least; 1: none.

    One part is one bucket with everything in it: what a few hashes want, and what cannot be cut.
    """
    best, least = 1, searches * (PROBE + n * COMPARE / 2)
    for parts in range(2, min(max(radius + 1, 4), bits) + 1):
        widths = _widths(bits, parts)
        if widths[0] > WIDEST_BAND or 2 ** widths[0] > max(64, 8 * n):
            continue
        work = 0.0
        for band, width in enumerate(widths):
            away = band_radius(radius, parts, band)
            if away >= 0:
                asked = sum(comb(width, k) for k in range(away + 1))
                work += searches * asked * (PROBE + n / 2.0**width * COMPARE / 2) + n * PLACE + 2.0**width
        if work < least:
            best, least = parts, work
    return best


def build_tables(folder: Path, hashes: np.ndarray, radius: int, searches: int) -> None:
    """Writes the tables of hashes (uint64 (n,), distinct, in order of number) for `searches` look-ups within `radius` into `folder`.

    The folder appears whole or not at all; one that is there stays. Fullest buckets are cut first, until none is full or the tables have
    swollen; what is left full is compared one by one, which is slower and finds the same.
    """
    if folder.exists():
        return
    own = Path(tempfile.mkdtemp(suffix=".part", dir=folder.parent))
    with ExitStack() as stack:
        _write(own, {name: stack.enter_context(open(own / f"{name}.bin", "wb")) for name, _ in _LARGE}, hashes, radius, searches)
    try:
        own.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(own)


def load_tables(folder: Path) -> Tables:
    """The tables in `folder`; the large ones are mapped, read-only."""
    small = np.load(folder / "nodes.npz", allow_pickle=False)
    large = {name: np.asarray(np.memmap(folder / f"{name}.bin", dtype, mode="r")) for name, dtype in _LARGE}
    return Tables(**{name: small[name] for name in Tables._fields if name not in large}, **large)


_LARGE = (("starts", np.uint32), ("hashes", np.uint64), ("numbers", np.uint32))


def _write(own: Path, files: dict[str, IO[bytes]], hashes: np.ndarray, radius: int, searches: int) -> None:
    nodes: list[_Node] = []
    starts_at, entries_at, first_band = [0], [0], [0]
    shift: list[int] = []
    width: list[int] = []
    children: list[tuple[int, int, int]] = []  # band, bucket, node
    full: list[tuple[int, int, int, int, int]] = []  # -size, band, bucket, from, level

    def add(node: _Node, members: np.ndarray, numbers: np.ndarray) -> None:
        nodes.append(node)
        for band_shift, band_width in node.bands:
            starts, laid, laid_numbers = _lay(members, numbers, node.gather, band_shift, band_width)
            sizes = np.diff(starts.astype(np.int64))
            for bucket in np.flatnonzero(sizes > FULL).tolist() if band_width else []:
                heapq.heappush(full, (-int(sizes[bucket]), len(shift), bucket, entries_at[-1] + int(starts[bucket]), node.level + 1))
            shift.append(band_shift)
            width.append(band_width)
            files["starts"].write(starts.data)
            files["hashes"].write(laid.data)
            files["numbers"].write(laid_numbers.data)
            starts_at.append(starts_at[-1] + len(starts))
            entries_at.append(entries_at[-1] + len(laid))
        first_band.append(len(shift))

    outermost = _node(hashes, radius, searches, 0)
    add(outermost, hashes, np.arange(len(hashes), dtype=np.uint32))
    room = SWELL * entries_at[-1]
    while full:
        size, band, bucket, begin, level = heapq.heappop(full)
        files["hashes"].flush()
        members = np.fromfile(own / "hashes.bin", np.uint64, -size, offset=begin * 8)
        node = _node(members, radius, len(members), level)
        if node.parts == 1 or entries_at[-1] + len(node.bands) * len(members) > room:
            continue
        files["numbers"].flush()
        children.append((band, bucket, len(nodes)))
        add(node, members, np.fromfile(own / "numbers.bin", np.uint32, -size, offset=begin * 4))
    children.sort()
    flips, flips_at, flips_of = _flips({w for node in nodes for _, w in node.bands}, radius, nodes)
    np.savez(
        own / "nodes.npz",
        first_band=np.array(first_band, np.int64),
        parts=np.array([node.parts for node in nodes], np.int64),
        same=np.array([node.same for node in nodes], np.uint64),
        value=np.array([node.value for node in nodes], np.uint64),
        gather=np.stack([node.gather for node in nodes]),
        shift=np.array(shift, np.int64),
        width=np.array(width, np.int64),
        starts_at=np.array(starts_at[:-1], np.int64),
        entries_at=np.array(entries_at[:-1], np.int64),
        children_at=np.searchsorted([band for band, _, _ in children], np.arange(len(shift) + 1)).astype(np.int64),
        child_bucket=np.array([bucket for _, bucket, _ in children], np.uint32),
        child_node=np.array([node for _, _, node in children], np.int32),
        flips=flips,
        flips_at=flips_at,
        flips_of=flips_of,
        pending=np.array([_pending(nodes, radius)], np.int64),
        look=np.array([FULL // 8], np.int64),
    )


def _node(members: np.ndarray, radius: int, searches: int, level: int) -> _Node:
    """How hashes are cut into bands: the outermost node's bits as they come, a full bucket's that differ in it, even ones spread first."""
    if level:
        same = ~(np.bitwise_or.reduce(members) ^ np.bitwise_and.reduce(members))
        some = members[:: max(1, len(members) // 4096)]
        off_balance = [abs(2 * int(np.count_nonzero(some >> np.uint64(bit) & np.uint64(1))) - len(some)) for bit in range(BITS)]
        bits = sorted((bit for bit in range(BITS) if not int(same) >> bit & 1), key=lambda bit: (off_balance[bit], bit))
    else:
        same, bits = np.uint64(0), list(range(BITS))
    parts = choose_parts(len(members), len(bits), radius, searches)
    if parts == 1:
        return _Node(same, members[0] & same, np.zeros((8, 256), np.uint64), 1, [(0, 0)], level)
    if level:
        dealt = [bits[part::parts] for part in range(parts)]
    else:
        edges = np.cumsum([0, *_widths(BITS, parts)]).tolist()
        dealt = [bits[a:b] for a, b in pairwise(edges)]
    places = [bit for part in dealt for bit in part]
    edges = np.cumsum([0, *map(len, dealt)]).tolist()
    bands = [(edges[part], len(dealt[part])) for part in range(parts) if band_radius(radius, parts, part) >= 0]
    return _Node(same, members[0] & same, _gather(places), parts, bands, level)


def _widths(bits: int, parts: int) -> list[int]:
    """Of bands as equal as can be, the wider ones first."""
    return [bits // parts + (part < bits % parts) for part in range(parts)]


def _gather(places: list[int]) -> np.ndarray:
    """uint64 (8, 256): where bit places[i] of a hash becomes bit i, what each value of each of its bytes becomes."""
    found = np.zeros((8, 256), np.uint64)
    values = np.arange(256, dtype=np.uint64)
    for place, bit in enumerate(places):
        found[bit // 8] |= (values >> np.uint64(bit % 8) & np.uint64(1)) << np.uint64(place)
    return found


def _flips(widths: set[int], radius: int, nodes: list[_Node]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    furthest = dict.fromkeys(widths, 0)
    for node in nodes:
        for band, (_, width) in enumerate(node.bands):
            furthest[width] = max(furthest[width], band_radius(radius, node.parts, band) if width else 0)
    flips_at = np.zeros(WIDEST_BAND + 1, np.int64)
    flips_of = np.ones((WIDEST_BAND + 1, radius + 1), np.int64)
    masks: list[int] = []
    for width in sorted(widths):
        first = len(masks)
        flips_at[width] = first
        for away in range(radius + 1):
            if away <= furthest[width]:
                masks += _masks(width, away)
            flips_of[width, away] = len(masks) - first
    return np.array(masks, np.uint32), flips_at, flips_of


def _masks(width: int, ones: int) -> Iterator[int]:
    return (sum(1 << bit for bit in bits) for bits in combinations(range(width), ones))


def _pending(nodes: list[_Node], radius: int) -> int:
    """A look-up takes one node from its pile at a time and lays at most as many there as it asks buckets."""
    asked = [
        sum(comb(width, k) for band, (_, width) in enumerate(node.bands) for k in range(band_radius(radius, node.parts, band) + 1))
        for node in nodes
    ]
    return 1 + max(asked) * (1 + max(node.level for node in nodes))


@numba.njit(cache=True)
def gathered(h, gather):  # type: ignore[no-untyped-def]
    """The bits of h as the bands of a node want them. gather: uint64 (8, 256)."""
    found = np.uint64(0)
    for byte in range(8):
        found |= gather[byte, (h >> np.uint64(8 * byte)) & np.uint64(255)]
    return found


@numba.njit(cache=True)
def _lay(hashes, numbers, gather, shift, width):  # type: ignore[no-untyped-def]
    """(where each bucket starts uint32 (2**width + 1,), hashes and numbers bucket after bucket, in the order they came)."""
    ones = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    starts = np.zeros((1 << width) + 1, np.uint32)
    for h in hashes:
        starts[np.int64((gathered(h, gather) >> np.uint64(shift)) & ones) + 1] += np.uint32(1)
    for bucket in range(1 << width):
        starts[bucket + 1] += starts[bucket]
    following = starts.copy()
    laid, laid_numbers = np.empty_like(hashes), np.empty_like(numbers)
    for i in range(len(hashes)):
        mine = np.int64((gathered(hashes[i], gather) >> np.uint64(shift)) & ones)
        place = following[mine]
        laid[place] = hashes[i]
        laid_numbers[place] = numbers[i]
        following[mine] += np.uint32(1)
    return starts, laid, laid_numbers

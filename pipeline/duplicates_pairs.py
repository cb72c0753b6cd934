"""The similarities around a threshold, from the pairs a deduplicate step stored: how many, what moving it would do, the nearest ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.deduplicate import What
from curation.ladder import EMBEDDING, FRAMES, NAMES, PHASH
from curation.ladder_pairs import PAIRS, load
from curation.ladder_search import Pairs
from curation.population import OneByOne
from curation.stars import Classes, settle
from pipeline.duplicates import Member, Opened, members
from pipeline.duplicates_recall import Recall, recall_of, sampled_rows, true_pairs
from pipeline.ledger import first

T = TypeVar("T")

SEARCHED_ROWS = 50_000  # of a population for which a moved threshold may search; beyond, only what is stored is walked
WALKED_ROWS = 5_000_000  # of a population that is walked again at all
OFTEN = 2  # pairs near a threshold that one sample is shown in
EDGE = 1e-6  # below a threshold a similarity still counts as at it: they are stored as float32
_GONE = (
    "its pairs are not stored: those of the newest population alone are kept, and another one, or another version of the search, came "
    "since; curate into a new run to see them"
)


@dataclass(frozen=True, slots=True)
class Bin:
    """Stored pairs of similarities from `low` on, up to the next bin's. above: they are at or above the threshold."""

    low: float
    label: str
    pairs: int
    above: bool


@dataclass(frozen=True, slots=True)
class Move:
    """The threshold somewhere else. pairs: stored ones at or above it; copies: that the walk would find, None where it was not tried.
    more_…: against where it is."""

    label: str
    value: float
    here: bool
    pairs: int
    more_pairs: int
    copies: int | None
    more_copies: int | None


@dataclass(frozen=True, slots=True)
class Near:
    """A pair near the threshold. above: at or above it. told: its similarity, as people read it. said: what became of it."""

    better: Member
    worse: Member
    similarity: float
    above: bool
    told: str
    said: str


@dataclass(frozen=True, slots=True)
class Scale:
    """How a rung's threshold is told and moved.

    rung       its name.
    field      of the step's What; value: what it says. threshold, floor: as similarities.
    by         by how much it is moved, in units of the field; width: of a bin, as similarity.
    bits       the field counts bits that differ: the larger it is, the looser.
    """

    rung: str
    field: str
    value: float
    threshold: float
    floor: float
    by: float
    width: float
    bits: bool = False

    def similarity(self, value: float) -> float:
        return 1 - value / 64 if self.bits else value

    def told(self, similarity: float) -> str:
        return f"{round((1 - similarity) * 64)} of 64 bits" if self.bits else f"{similarity:.4f}"


def scale_of(what: What, rung: int, floor: float) -> Scale:
    """floor: of the rung's search, in its own unit."""
    if rung == PHASH:
        return Scale(NAMES[rung], "phash_radius", what.phash_radius, 1 - what.phash_radius / 64, 1 - floor / 64, 1, 1 / 64, True)
    if rung == FRAMES:
        return Scale(NAMES[rung], "frame_share", what.frame_share, what.frame_share, floor, 0.05, 0.025)
    if rung == EMBEDDING:
        return Scale(NAMES[rung], "cosine", what.cosine, what.cosine, floor, 0.01, 0.005)
    return Scale(NAMES[rung], "jaccard", what.jaccard, what.jaccard, floor, 0.02, 0.01)


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of a step around its threshold. setting: as the recipe writes it; bits: it counts bits that differ. missing: why nothing
    is known of its pairs; else None. pairs: stored at or above `floor`. near: those nearest to the threshold, first above, then below."""

    rung: str
    setting: str
    bits: bool
    threshold: float
    floor: float
    pairs: int = 0
    bins: Sequence[Bin] = ()
    moves: Sequence[Move] = ()
    near: Sequence[Near] = ()
    recall: Recall | None = None
    missing: str | None = None


def rungs_of(step: Opened, borders: int = 12, sample: int = 500, seed: int = 0) -> list[Rung]:
    """Every rung of a step that has a threshold, in the order of the ladder.

    borders: pairs shown on each side. sample: rows that are compared with all others by brute force (0: none), drawn by `seed`.
    """
    ladder, kept = step.ladder, step.kept
    scales = {rung: scale_of(step.op.what, rung, kept.floors[rung]) for rung in ladder.rungs}
    tables = {rung: load(ladder, kept, rung) for rung in ladder.rungs}
    held = {rung: _pairs(table) for rung, table in tables.items() if table is not None}
    found = []
    for rung, scale in scales.items():
        empty = Rung(NAMES[rung], f"{scale.field}: {scale.value:g}", scale.bits, scale.threshold, scale.floor)
        if rung not in held:
            found.append(replace(empty, missing=_GONE if step.population.samples else "no sample reached it"))
            continue
        pairs, view = held[rung], f"audit_{NAMES[rung]}"
        listed = pa.table({"better": pairs.better, "worse": pairs.worse, "similarity": pairs.similarity})
        step.connection.register(view, listed.filter(pc.greater_equal(listed["similarity"], scale.floor - EDGE)))
        found.append(
            replace(
                empty,
                pairs=int(first(step.connection, f"select count(*) from {view}")[0]),
                bins=_bins(step, view, scale),
                moves=_moves(step, view, scale, held if len(held) == len(scales) else None),
                near=_near(step, view, scale, borders),
                recall=_recall(step, rung, view, scale, pairs.cut, sample, seed) if sample else None,
            )
        )
        step.connection.unregister(view)
    return found


def _pairs(table: pa.Table) -> Pairs:
    """As a search gives them: a stored row in a pair with itself says that it has more near ones than are listed."""
    better, worse, similarity = (table[name].to_numpy() for name in PAIRS.names)
    listed = better != worse
    return Pairs(better[listed], worse[listed], similarity[listed], worse[~listed])


def _recall(step: Opened, rung: int, view: str, scale: Scale, cut: np.ndarray, sample: int, seed: int) -> Recall:
    uids = step.held.table["uid"]
    rows, among = sampled_rows(step.ladder, rung, uids, sample, seed)
    truth = true_pairs(step.ladder, rung, rows, scale.floor)
    return recall_of(step.connection, view, truth, rows, among, scale.threshold - EDGE, cut, lambda pairs: _named(step, scale, pairs))


def _bins(step: Opened, pairs: str, scale: Scale) -> list[Bin]:
    last = max(0, round((1 - scale.threshold) / scale.width) - (not scale.bits))  # what is equal lies with what is nearly so
    place = f"least({last}, floor((similarity - {scale.threshold!r}) / {scale.width!r} + 1e-4)::bigint)"
    found = dict(step.connection.execute(f"select {place}, count(*) from {pairs} group by 1").fetchall())
    if not found:
        return []
    bins = []
    for n in range(round((scale.floor - scale.threshold) / scale.width), last + 1):
        low = scale.threshold + n * scale.width
        label = str(round((1 - low) * 64)) if scale.bits else f"{low:.3f}"
        bins.append(Bin(low, label, int(found.get(n, 0)), n >= 0))
    return bins


def _moves(step: Opened, pairs: str, scale: Scale, held: dict[int, Pairs] | None) -> list[Move]:
    """The threshold where it is and up to four steps to each side, from strict to loose. held: the pairs of all rungs, if all are there."""
    here = round(scale.value, 6)
    values = [round(scale.value + n * scale.by, 6) for n in range(-4, 5)]
    values = [v for v in values if v > 0 and scale.floor - EDGE <= scale.similarity(v) <= 1 + EDGE]
    values.sort(key=scale.similarity, reverse=True)
    asked = ", ".join(f"count(*) filter (where similarity >= {scale.similarity(v) - EDGE!r})" for v in values)
    counted = dict(zip(values, first(step.connection, f"select {asked} from {pairs}"), strict=True))
    copies = {v: _copies(step, scale, v, held) if held is not None else None for v in values}
    found = []
    for v in values:
        now, then = copies[here], copies[v]
        more = None if now is None or then is None else then - now
        found.append(Move(f"{v:g}", v, v == here, counted[v], counted[v] - counted[here], then, more))
    return found


def _copies(step: Opened, scale: Scale, value: float, held: dict[int, Pairs]) -> int | None:
    """How many copies there are with a threshold elsewhere, by the step's own walk over stored pairs; None where that would need a
    cluster to search anew what stays of rows with very many near ones."""
    ladder, taken = step.ladder, step.ladder.taken
    rows = step.population.table.num_rows
    if rows > WALKED_ROWS:
        return None
    limits = replace(step.op.what, **{scale.field: int(value) if scale.bits else value}).limits
    workers = OneByOne() if rows <= SEARCHED_ROWS else _Nobody()
    moved = replace(ladder, limits=limits, population=replace(ladder.population, workers=workers), cut={})
    classes = Classes(taken.code[taken.leader], taken.source[taken.leader]) if ladder.across == "sources" else None
    try:
        stars = settle(taken.units, moved.links(held), taken.fixed[taken.leader], moved.again, classes)
    except _Work:
        return None
    unit = taken.unit[: step.population.samples]
    gone = (stars.of[unit] >= 0) | (taken.leader[unit] != np.arange(len(unit)))
    return int((gone & ~taken.fixed[: len(unit)]).sum())


def _near(step: Opened, view: str, scale: Scale, borders: int) -> list[Near]:
    """`borders` pairs on each side: of the nearest ones first those that decide something, no sample in more than OFTEN of them; of equally
    near ones those with the least hash, which favours no source."""
    found: list[tuple[int, int, float]] = []
    for side, order in ((">=", "asc"), ("<", "desc")):
        query = (
            f"select better, worse, similarity from {view} where similarity {side} {scale.threshold - EDGE!r} "
            f"order by similarity {order}, md5(better || '-' || worse), better, worse limit {200 * borders}"
        )
        pairs = step.connection.execute(query).fetchall()
        decide = _decide(step, pairs, scale.rung)
        seen: Counter[int] = Counter()
        chosen: list[tuple[int, int, float]] = []
        for pair in [*(p for p, d in zip(pairs, decide, strict=True) if d), *(p for p, d in zip(pairs, decide, strict=True) if not d)]:
            if len(chosen) < borders and max(seen[pair[0]], seen[pair[1]]) < OFTEN:
                seen.update(pair[:2])
                chosen.append(pair)
        found += sorted(chosen, key=pairs.index)
    return _named(step, scale, found)


def _decide(step: Opened, pairs: Sequence[tuple[int, int, float]], rung: str) -> list[bool]:
    """Which pairs are why one is a copy of the other, or are of two groups and one of them stays: others hang on no threshold."""
    uids = step.held.table["uid"]
    named = {row: str(uids[row].as_py()) for pair in pairs for row in pair[:2]}
    step.connection.register("audit_uids", pa.table({"uid": pa.array(list(named.values()), pa.string())}))
    query = f'select uid, "of", rung from {step.result} where "of" is not null and uid in (select uid from audit_uids)'
    copies = {uid: (of, by) for uid, of, by in step.connection.execute(query).fetchall()}
    step.connection.unregister("audit_uids")
    found = []
    for better, worse, _ in pairs:
        (a, by_a), (b, by_b) = (copies.get(named[row], (None, None)) for row in (better, worse))
        caused = (b == named[better] and by_b == rung) or (a == named[worse] and by_a == rung)
        apart = (a is None or b is None) and (a or named[better]) != (b or named[worse])
        found.append(caused or apart)
    return found


def _named(step: Opened, scale: Scale, pairs: Sequence[tuple[int, int, float]]) -> list[Near]:
    """Pairs of rows with who they are."""
    uids = step.held.table["uid"]
    named = [(str(uids[better].as_py()), str(uids[worse].as_py()), float(s)) for better, worse, s in pairs]
    known = members(step, [uid for a, b, _ in named for uid in (a, b)])
    return [
        Near(known[a], known[b], s, s >= scale.threshold - EDGE, scale.told(s), _said(known[a], known[b])) for a, b, s in named
    ]  # fmt: skip


def _said(better: Member, worse: Member) -> str:
    """What became of a pair, told of its two samples as they stand."""
    if worse.of == better.uid:
        return f"second is a copy of first, by {worse.rung}"
    if better.of == worse.uid:
        return f"first is a copy of second, by {better.rung}"
    if worse.of is not None and better.of is not None:
        return "both are copies of one other" if worse.of == better.of else "copies of two others"
    if worse.of is not None:
        return "second is a copy of another"
    return "first is a copy of another" if better.of is not None else "neither is a copy"


class _Work(Exception):
    """A search that an audit does not do."""


class _Nobody:
    """Workers that do nothing: an audit of a large population reads what is stored."""

    cpus = 1

    def map(self, function: Callable[..., T], tasks: Iterable[Sequence[Any]], *, gpus: float = 0.0) -> Iterator[T]:
        raise _Work

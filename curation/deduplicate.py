"""Which samples are copies of which: a ladder of equal bytes, perceptual hashes, frames of clips, embeddings, and texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.ladder import EMBEDDING, FRAMES, NAMES, PHASH, SHA256, TEXT, Content, Thresholds, read_content, step_column
from curation.ladder_floors import LARGEST_RADIUS, radius_floor, similarity_floor
from curation.ladder_held import Held, check_version, no_keepers, read_keepers, version_of
from curation.ladder_pairs import Kept, found_or_kept, load, what_decides
from curation.ladder_search import Ladder
from curation.ladder_units import NO_SOURCE, Taken, content_codes, domains, take
from curation.near import MOST
from curation.near_vectors import Search
from curation.ordering import order_columns, ordered
from curation.population import Population
from curation.reference import PREFIX, Reference, check_references, parse_references, reference_identity
from curation.stars import Classes, Stars, settle
from curation.step import ALL_KINDS, MEDIA_KINDS, Column, How, Step
from shards.errors import InfrastructureError

PIECE = 1 << 20  # rows of an answer that are made at once

log = logging.getLogger("fovea")

_WORDS = {"on": ("media", "texts", "both"), "across": ("all", "source", "sources"), "action": ("auto", "reject", "mark")}
SMALLEST = {"cosine": 0.5, "jaccard": 0.3, "frame_share": 0.3}  # below that nearly all is near something: nothing bounds a search


@dataclass(frozen=True, slots=True)
class What:
    """on            what is compared: "media" = bytes and pictures; "texts"; "both" = a copy is near in its media and in its texts.
    across        "all" = copies count wherever they are; "source" = only within one source; "sources" = only between two.
    action        "auto" = copies are rejected, samples with conversations only marked (copies of a reference are always rejected);
                  "reject" = all copies are rejected; "mark" = none is, the columns are scores.
    sha256        equal bytes are copies.
    phash_radius  pictures whose perceptual hashes differ in at most so many of 64 bits are copies (0..16; 0 = off).
    phash_floor   radius within which pairs are looked for and stored, 0 = a little more. Changes no verdict: not digested.
    flips, rotations  a picture that is mirrored, or turned by quarters, counts as the nearest of its orientations (hashes only).
    frames        column of a video step's hashes of frames ("video_hashes"), its `hash_step` beside it; "" = off.
    frame_share   clips of which at least this share of each one's frames look the same at one offset are copies (0.3..1), as
                  curation/ladder_frames.py weighs it. frame_radius: bits of 64 within which two frames look the same (0..16).
    embedding     column of vectors of pictures ("embedding", "clip_embedding"); "" = off.
    cosine        pictures whose vectors have at least this cosine are copies (0.5..1). cosine_floor: as phash_floor.
    lists, probes, seed  of the search among vectors (curation/near_vectors.py): 0 lists = as many as the number of vectors asks for.
    texts         column of a minhash step's signatures, its `text_hash` beside it; "" = equal texts only. For on: texts and both.
    jaccard       texts whose signatures agree in at least this share are copies (0.3..1).
    keep_best     an SQL ordering over scores, "width*height desc": of several copies the first one is kept. Completed by uid.
                  Of a sample with several media it sees the values of the first.
    against       a version of a dataset: its samples stay, and newcomers lose to them. Path or URL of a dataset (its newest version), of a
                  version's folder, or "v-<digest>" alone, of the run's own dataset.
    reference     what the population must not contain: {name, and one of folder, dataset, webdataset, embeddings: path} each.
    """

    on: Literal["media", "texts", "both"] = "media"
    across: Literal["all", "source", "sources"] = "all"
    action: Literal["auto", "reject", "mark"] = "auto"
    sha256: bool = True
    phash_radius: int = 4
    phash_floor: int = 0
    flips: bool = False
    rotations: bool = False
    frames: str = ""
    frame_share: float = 0.5
    frame_radius: int = 12
    embedding: str = ""
    cosine: float = 0.95
    cosine_floor: float = 0.0
    lists: int = 0
    probes: int = 16
    seed: int = 42
    texts: str = "minhash"
    jaccard: float = 0.8
    keep_best: str = ""
    against: str = ""
    reference: tuple[dict[str, str], ...] = ()

    @property
    def media(self) -> bool:
        return self.on != "texts"

    @property
    def limits(self) -> Thresholds:
        return Thresholds(
            self.phash_radius if self.media and self.phash_radius else -1,
            self.cosine if self.media and self.embedding else 2.0,
            self.jaccard if self.on != "media" and self.texts else 2.0,
            self.flips,
            self.rotations,
            self.frame_share if self.media and self.frames else 2.0,
            self.frame_radius,
        )

    @property
    def text_hash(self) -> str:
        """The column that tells equal texts; "" where texts are not compared."""
        return "" if self.on == "media" else self.texts.removesuffix("minhash") + "text_hash"


def reduce(what: What, population: Population) -> pa.Table:
    """The copies in a population: (uid, of, rung, similarity, group), a row for each sample, in order of uid.

    Samples are taken in the order (keep_best, uid), what they are held against first. One that is near a sample that stays already is its
    copy: of the one by the strongest rung, of those the most similar, of those the best; every other one stays. So a copy is near the very
    sample that replaces it: copies do not chain (docs/decisions/0004-copies-do-not-chain.md). Samples of equal bytes share one verdict.
    The result depends on the set of samples and on what they are held against, and on nothing else.

    Near are samples of as many media, each near its counterpart in the same order: by equal bytes; by hashes, pictures that are not flat;
    by frames, clips; by vectors. The rung is the weakest that a medium needs, the similarity the least of them: 1 for equal bytes or texts,
    1 − distance / 64 for hashes, else share of frames, cosine or share of equal numbers. With on "both" the texts are near too, and the
    rung is that of the media.
    A sample that has nothing to compare takes no part: `of` is null and `group` its own uid.

    Raises InfrastructureError where vectors are not those of the column's step, and where `against` names a version that is not there.
    """
    ladder, kept, held = open_ladder(what, population)
    taken = ladder.taken
    links = ladder.links({rung: found_or_kept(ladder, kept, rung) for rung in ladder.rungs})
    classes = Classes(taken.code[taken.leader], taken.source[taken.leader]) if what.across == "sources" else None
    stars = settle(taken.units, links, taken.fixed[taken.leader], ladder.again, classes)
    answer = _answer(what, population.samples, held.table["uid"], taken, stars)
    of_reference = int(pc.sum(pc.starts_with(answer["of"], PREFIX)).as_py() or 0)
    if 2 * of_reference > population.samples:
        log.warning(
            "deduplicate: %d of %d samples are copies of a reference; is it the corpus itself that they are held against?",
            of_reference,
            population.samples,
        )
    return answer


def pair_keys(what: What, population: Population) -> dict[str, str]:
    """Rung → key under which `Population.pairs` holds its near pairs, where no list was cut (see `stored_pairs`)."""
    _, kept, _ = open_ladder(what, population)
    return {NAMES[rung]: kept.key(rung) for rung in kept.decides}


def stored_pairs(what: What, population: Population) -> dict[str, pa.Table]:
    """Rung → the near pairs that are stored for a population, above a floor below the threshold: better, worse int64 (rows of its table,
    those of `against` behind), similarity float32. Rungs of which nothing is stored are left out.

    They are those at the rung's anchor: of samples with several media, near in one medium; of copies in equal bytes only one of each unit.
    """
    ladder, kept, _ = open_ladder(what, population)
    tables = {NAMES[rung]: load(ladder, kept, rung) for rung in kept.decides}
    return {
        name: table.filter(pa.array(table["better"].to_numpy() != table["worse"].to_numpy()))
        for name, table in tables.items()
        if table is not None
    }


def open_ladder(what: What, population: Population) -> tuple[Ladder, Kept, Held]:
    """What is compared, under which keys its pairs are stored, and what it is held against: for `reduce`, and for whoever audits it."""
    held = read_keepers(population, what.against) if what.against else no_keepers(population)
    content = _content(what, population, held.table)
    source = np.full(len(content), NO_SOURCE, np.int32)
    if what.across != "all":
        source[~held.reference] = _sources(held.table)[~held.reference]
    order = ordered(what.keep_best, held.table)
    order = order[np.argsort(~held.reference[order], kind="stable")]
    taken = take(content_codes(content, what.on, what.sha256), order, source, held.fixed, what.across)
    ladder = Ladder(
        content=content,
        taken=taken,
        domains=domains(content, taken, what.on, what.across),
        on=what.on,
        across=what.across,
        limits=what.limits,
        search=Search(what.lists, what.probes, what.seed),
        population=population,
        most=MOST,
    )
    for vectors in (content.vectors, content.signatures):
        held = held.told(vectors, population.samples)
    compared = {name: population.digests.get(name, "") for name in _compared(what)}
    floors = {
        PHASH: float(max(what.phash_floor, what.phash_radius) if what.phash_floor else radius_floor(what.phash_radius)),
        FRAMES: similarity_floor(what.frame_share),
        EMBEDDING: min(what.cosine_floor, what.cosine) if what.cosine_floor else similarity_floor(what.cosine),
        TEXT: similarity_floor(what.jaccard),
    }
    sorts: list[object] = [what.keep_best, [[name, population.digests.get(name, "")] for name in order_columns(what.keep_best)]]
    return ladder, Kept(floors, what_decides(ladder, compared, held.digest), sorts), held


def _content(what: What, population: Population, table: pa.Table) -> Content:
    vectors = population.vectors[what.embedding] if what.media and what.embedding else None
    signatures = population.vectors[what.texts] if what.on != "media" and what.texts else None
    for name, found in ((what.embedding, vectors), (what.texts, signatures)):
        wanted = population.digests.get(name, "")
        if found is not None and found.digest and wanted and found.digest != wanted:
            raise InfrastructureError(
                f"deduplicate: the vectors of {name!r} are of the step {found.digest}, the recipe's is {wanted}: those of two models are "
                "never compared; run the recipe again, so that they are computed anew"
            )
    content = read_content(
        table,
        sha256=what.media and what.sha256,
        phash=what.media and what.phash_radius > 0,
        text_hash=what.text_hash,
        vectors=vectors,
        signatures=signatures,
        frames=what.frames if what.media else "",
    )
    if what.on == "both":  # no text equals no text: it is the media that tell
        content.text[content.text < 0] = int(content.text.max(initial=-1)) + 1
    return content


def _sources(table: pa.Table) -> np.ndarray:
    encoded = table["source"].dictionary_encode().unify_dictionaries()
    parts = [chunk.indices.fill_null(NO_SOURCE).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def _answer(what: What, samples: int, uids: pa.ChunkedArray, taken: Taken, stars: Stars) -> pa.Table:
    """The table of the first `samples` rows, in pieces: a column of strings in one would end at 2 GiB, which is 67 million uids."""
    uids = uids.cast(pa.large_string()).combine_chunks()
    rows = np.arange(samples)
    unit = taken.unit[:samples]
    of_unit, leader = stars.of[unit], taken.leader[unit]
    gone = of_unit >= 0
    of = np.where(gone, taken.leader[np.maximum(of_unit, 0)], leader)
    copy = (of != rows) & ~taken.fixed[:samples]
    of = np.where(copy, of, rows)
    rung = np.where(gone, stars.rung[unit], SHA256)
    similarity = np.where(gone, stars.similarity[unit], 1.0).astype(np.float64)
    names = pa.array(["text"] * len(NAMES) if what.on == "texts" else NAMES, pa.string())

    def piece(at: slice) -> pa.Table:
        return pa.table(
            {
                "uid": uids.slice(at.start, at.stop - at.start).cast(pa.string()),
                "of": uids.take(pa.array(of[at], mask=~copy[at])).cast(pa.string()),
                "rung": names.take(pa.array(rung[at], pa.int64(), mask=~copy[at])),
                "similarity": pa.array(similarity[at], mask=~copy[at]),
                "group": uids.take(pa.array(of[at])).cast(pa.string()),
            }
        )

    return pa.concat_tables([piece(slice(k, min(samples, k + PIECE))) for k in range(0, max(samples, 1), PIECE)])


def _compared(what: What) -> list[str]:
    """Columns whose values are compared."""
    media = [*(["sha256"] if what.sha256 else []), *(["phash"] if what.phash_radius else []), *([what.embedding] if what.embedding else [])]
    media += [what.frames, step_column(what.frames)] if what.frames else []
    texts = [what.text_hash, *([what.texts] if what.texts else [])]
    return [*(media if what.media else []), *(texts if what.on != "media" else [])]


def _vectors(what: What) -> dict[str, Literal["float", "uint32"]]:
    found: dict[str, Literal["float", "uint32"]] = {}
    if what.media and what.embedding:
        found[what.embedding] = "float"
    if what.on != "media" and what.texts:
        found[what.texts] = "uint32"
    return found


def _reads(what: What) -> list[str]:
    read = [*_compared(what), *(["source"] if what.across != "all" else []), *order_columns(what.keep_best)]
    return [name for name in dict.fromkeys(read) if name not in ("uid", "kind")]


def _columns(what: What) -> list[Column]:
    kinds = ALL_KINDS if what.on == "texts" else MEDIA_KINDS
    return [
        Column("of", pa.string(), kinds, doc="uid of the kept sample it is a copy of, or reference:<name>/<key>; null for an original"),
        Column("rung", pa.string(), kinds, doc="what gave the copy away: sha256, phash, frames, embedding or text"),
        Column("similarity", pa.float64(), kinds, doc="1 for equal bytes, 1 - distance / 64 for phash, else share, cosine or Jaccard"),
        Column("group", pa.string(), kinds, doc="what `of` is; its own uid for an original"),
    ]


def _references(what: What) -> Sequence[Reference]:
    return parse_references(what.reference)


def _identity(what: What) -> Mapping[str, Any]:
    left_out = ("phash_floor", "cosine_floor", *(() if what.frames else ("frames", "frame_share", "frame_radius")))
    told = {k: v for k, v in asdict(what).items() if k not in left_out}  # without frames as before there were any
    return {
        **told,
        "against": version_of(what.against) if what.against else "",
        "reference": [reference_identity(reference) for reference in _references(what)],
    }


def _check(what: What) -> None:
    for name, allowed in _WORDS.items():
        if getattr(what, name) not in allowed:
            raise ValueError(f"{name}: {getattr(what, name)!r} is unknown; it is one of {', '.join(allowed)}")
    for name in ("phash_radius", "phash_floor"):
        if not 0 <= getattr(what, name) <= LARGEST_RADIUS:
            off = "off" if name == "phash_radius" else "automatic"
            raise ValueError(f"{name}: {getattr(what, name)} is outside 0..{LARGEST_RADIUS} (bits of 64; 0 = {off})")
    if not 0 <= what.frame_radius <= LARGEST_RADIUS:
        raise ValueError(f"frame_radius: {what.frame_radius} is outside 0..{LARGEST_RADIUS} (bits of 64)")
    for name, least in SMALLEST.items():
        if not least <= getattr(what, name) <= 1:
            raise ValueError(f"{name}: {getattr(what, name)} is outside {least}..1")
    if what.cosine_floor and not SMALLEST["cosine"] <= what.cosine_floor <= 1:
        raise ValueError(f"cosine_floor: {what.cosine_floor} is outside {SMALLEST['cosine']}..1 (0 = automatic)")
    if what.lists < 0 or what.probes < 1:
        raise ValueError(f"lists: {what.lists} and probes: {what.probes}: lists is at least 0 (0 = automatic), probes at least 1")
    if what.seed < 0:
        raise ValueError(f"seed: {what.seed} is below 0")
    if what.media and not what.sha256 and not what.phash_radius and not what.embedding and not what.frames:
        raise ValueError("sha256 is off, phash_radius is 0 and there is no embedding: no media are compared; turn one of them on")
    if what.frames and not what.frames.endswith("hashes"):
        raise ValueError(f"frames: {what.frames!r} is no column of a video step; those are called video_hashes, or <as>_hashes")
    if what.frames and what.on == "texts":
        raise ValueError("frames: texts alone are compared (`on: texts`); take `frames` out, or compare media too")
    if what.on != "media" and what.texts and not what.texts.endswith("minhash"):
        raise ValueError(f"texts: {what.texts!r} is no column of a minhash step; those are called minhash, or <as>_minhash")
    for column in order_columns(what.keep_best):
        if column in _vectors(what):
            raise ValueError(f"keep_best: {column!r} holds lists, which cannot be ordered by; name another column")
    check_references(_references(what))
    if what.against:
        check_version(what.against)


def _implied(what: What) -> str | None:
    if what.action == "mark":
        return None
    if what.action == "reject":
        return "{prefix}of is null"
    if not what.reference:
        return "{prefix}of is null or turns > 0"
    return f"{{prefix}}of is null or (turns > 0 and not starts_with({{prefix}}of, '{PREFIX}'))"


STEP = Step(
    version=2,
    shape="global",
    level="sample",
    applies=ALL_KINDS,
    prefix="duplicate_",
    what=What,
    how=How,
    columns=_columns,
    reads=_reads,
    reduce=reduce,
    references=_references,
    compares=_compared,
    vectors=_vectors,
    identity=_identity,
    implied=_implied,
    check=_check,
)

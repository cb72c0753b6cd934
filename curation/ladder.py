"""What the rungs of deduplicate compare: of each row the codes of its bytes, its hashes, vectors and texts; and who is of one content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.cosines import cosine
from curation.ladder_frames import FEWEST_BITS, STEP_NAME, Frames, alike, frames_of
from curation.orientations import orientations
from curation.vectors import Vectors

SHA256, PHASH, FRAMES, EMBEDDING, TEXT = range(5)  # rungs, the strongest first
NAMES = ("sha256", "phash", "frames", "embedding", "text")
TEXTS = -1  # the component of a row that is its text; 0, 1, … are its media
AT_ONCE = 65_536  # pairs compared by their vectors


@dataclass(frozen=True, slots=True)
class Thresholds:
    """radius: of 64 bits, -1 = off; flips, rotations: whether mirrored and turned pictures count. cosine, jaccard, share: above 1 = off.
    share: of the frames of clips; frame_radius: of 64 bits, within which two frames look the same."""

    radius: int = -1
    cosine: float = 2.0
    jaccard: float = 2.0
    flips: bool = False
    rotations: bool = False
    share: float = 2.0
    frame_radius: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """What is compared of n rows.

    count    int64 (n,): media. start: int64 (n,): the number of the first of them.
    bytes    int64 (m,): media of equal bytes have the same code; -1: not compared. hash: uint64 (m,); hashed: bool (m,).
    text     int64 (n,): rows of equal text have the same code; -1: none.
    vectors, signatures  None where they are not compared. Rows behind theirs have none. frames: of the m media; None: not compared.
    """

    count: np.ndarray
    start: np.ndarray
    bytes: np.ndarray
    hash: np.ndarray
    hashed: np.ndarray
    text: np.ndarray
    vectors: Vectors | None = None
    signatures: Vectors | None = None
    frames: Frames | None = None

    def __len__(self) -> int:
        return len(self.count)

    def vector_ids(self, rows: np.ndarray, medium: int) -> np.ndarray:
        """int64: number of the vector of that medium of each row; -1 where it has none."""
        return _ids(self.vectors, rows, medium)

    def signature_ids(self, rows: np.ndarray) -> np.ndarray:
        return _ids(self.signatures, rows, 0)


def read_content(
    table: pa.Table,
    *,
    sha256: bool = False,
    phash: bool = False,
    text_hash: str = "",
    vectors: Vectors | None = None,
    signatures: Vectors | None = None,
    frames: str = "",
) -> Content:
    """From a population's columns `sha256` list<string>, `phash` list<uint64 | int64>, `text_hash` (its name) string, and with `frames`
    (its name) the hashes of frames list<list<uint64>> and, beside them, `hash_step` list<float>."""
    n = table.num_rows
    count = np.zeros(n, np.int64)
    lists = {name: _column(table, name) for name, on in (("sha256", sha256), ("phash", phash), (frames, bool(frames))) if on}
    lengths = {name: _lengths(column) for name, column in lists.items()}
    for length in lengths.values():
        np.maximum(count, length, out=count)
    if vectors is not None and vectors.count:
        held = np.zeros(n, np.int64)
        held[: vectors.rows] = vectors.valid[: vectors.rows]
        np.maximum.at(held, vectors.owner, vectors.place.astype(np.int64) + 1)
        np.maximum(count, held, out=count)
    start = np.cumsum(count) - count
    m = int(count.sum())
    codes, hashes, hashed = np.full(m, -1, np.int64), np.zeros(m, np.uint64), np.zeros(m, bool)
    if sha256:
        codes[_places(start, lengths["sha256"])] = codes_of(lists["sha256"].flatten())
    if phash:
        values = lists["phash"].flatten()
        at = _places(start, lengths["phash"])
        hashes[at] = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.uint64)
        hashed[at] = pc.is_valid(values).to_numpy(zero_copy_only=False)
        bits = np.bitwise_count(hashes)
        films = np.repeat(pc.fill_null(pc.equal(_column(table, "kind"), "video"), False).to_numpy(zero_copy_only=False), count)
        hashed &= (bits >= FEWEST_BITS) & (bits <= 64 - FEWEST_BITS) & ~films
    text = codes_of(_column(table, text_hash)) if text_hash else np.full(n, -1, np.int64)
    clips = _frames(table, lists[frames], step_column(frames), _places(start, lengths[frames]), m) if frames else None
    return Content(count, start, codes, hashes, hashed, text, vectors, signatures, clips)


def step_column(frames: str) -> str:
    """The column that says how many seconds lie between the hashes of one that is named `<as>_hashes`."""
    return frames.removesuffix("hashes") + STEP_NAME


def _frames(table: pa.Table, lists: pa.Array, step_name: str, places: np.ndarray, media: int) -> Frames:
    """places: numbers of the media that the lists' values are of."""
    values = lists.flatten()
    counts, steps = np.zeros(media, np.int64), np.zeros(media, np.float64)
    if pa.types.is_null(values.type):
        return frames_of(np.zeros(0, np.uint64), counts, steps)
    counts[places] = _lengths(values)
    steps[places] = pc.fill_null(_column(table, step_name).flatten().cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return frames_of(pc.fill_null(values.flatten(), 0).to_numpy(zero_copy_only=False).astype(np.uint64), counts, steps)


def codes_of(values: pa.Array) -> np.ndarray:
    """int64: equal values have equal codes, in order of their first; NULL is -1."""
    indices = pc.dictionary_encode(values.cast(pa.string()) if pa.types.is_null(values.type) else values).indices
    found: np.ndarray = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def whole_codes(content: Content, rows: np.ndarray, media: int, text: bool) -> np.ndarray:
    """int64 (len(rows),): rows that are equal in each of their `media` media, in order, and with `text` in their text too, have one code;
    -1 where one of them is not known."""
    columns = [content.bytes[content.start[rows] + medium] for medium in range(media)] + ([content.text[rows]] if text else [])
    if not columns:
        return np.full(len(rows), -1, np.int64)
    codes, known = columns[0], np.logical_and.reduce([c >= 0 for c in columns])
    for column in columns[1:]:
        joined = np.stack([codes, column], axis=1)
        codes = np.unique(joined, axis=0, return_inverse=True)[1].reshape(-1)
    return np.where(known, codes, -1)


def relate(
    content: Content, a: np.ndarray, b: np.ndarray, media: int, text: bool, limits: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bool: near, rung int8, similarity float32) of row pairs of `media` media each, near in every one of them and with `text` in text.

    The rung is the weakest that a medium needs, the similarity the least of all parts.
    """
    near = np.ones(len(a), bool)
    rung, similarity = np.zeros(len(a), np.int8), np.ones(len(a), np.float32)
    for medium in range(media):
        at = np.flatnonzero(near)
        found, shares = _medium(content, a[at], b[at], medium, limits)
        near[at] = found >= 0
        rung[at] = np.maximum(rung[at], found)
        similarity[at] = np.minimum(similarity[at], shares)
    if text:
        at = np.flatnonzero(near)
        shares = _texts(content, a[at], b[at])
        near[at] = shares >= np.float32(min(limits.jaccard, 1.0))  # off: equal texts only
        similarity[at] = np.minimum(similarity[at], shares)
    return near, rung, similarity


def _medium(content: Content, a: np.ndarray, b: np.ndarray, medium: int, limits: Thresholds) -> tuple[np.ndarray, np.ndarray]:
    """(int8 rung, -1: not near; float32 similarity) by the strongest rung."""
    x, y = content.start[a] + medium, content.start[b] + medium
    rung, similarity = np.full(len(a), -1, np.int8), np.zeros(len(a), np.float32)
    equal = (content.bytes[x] >= 0) & (content.bytes[x] == content.bytes[y])
    rung[equal], similarity[equal] = SHA256, 1.0
    apart = distances(content.hash[x], content.hash[y], limits)
    close = ~equal & content.hashed[x] & content.hashed[y] & (apart <= limits.radius)
    rung[close], similarity[close] = PHASH, 1 - apart[close].astype(np.float32) / 64
    if content.frames is not None and limits.share <= 1:
        left = np.flatnonzero(rung < 0)
        left = left[content.frames.has(x[left]) & content.frames.has(y[left])]
        shared = alike(content.frames, x[left], y[left], limits.frame_radius)
        enough = shared >= np.float32(limits.share)
        rung[left[enough]], similarity[left[enough]] = FRAMES, shared[enough]
    if content.vectors is not None and limits.cosine <= 1:
        left = np.flatnonzero(rung < 0)
        i, j = content.vector_ids(a[left], medium), content.vector_ids(b[left], medium)
        both = (i >= 0) & (j >= 0)
        left, close_by = left[both], cosines(content.vectors, i[both], j[both])
        enough = close_by >= np.float32(limits.cosine)
        rung[left[enough]], similarity[left[enough]] = EMBEDDING, close_by[enough]
    return rung, similarity


def distances(a: np.ndarray, b: np.ndarray, limits: Thresholds) -> np.ndarray:
    """uint8: bits in which hashes differ, of the nearest orientation; a and b broadcast."""
    turned = orientations(a.reshape(-1), limits.flips, limits.rotations)
    apart = np.bitwise_count(turned[:, 0].reshape(a.shape) ^ b)
    for k in range(1, turned.shape[1]):
        np.minimum(apart, np.bitwise_count(turned[:, k].reshape(a.shape) ^ b), out=apart)
    return apart


def _texts(content: Content, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    shares = ((content.text[a] >= 0) & (content.text[a] == content.text[b])).astype(np.float32)
    if content.signatures is not None:
        left = np.flatnonzero(shares < 1)
        i, j = content.signature_ids(a[left]), content.signature_ids(b[left])
        both = np.flatnonzero((i >= 0) & (j >= 0))
        for part in _parts(both):
            same = content.signatures.take(i[part]) == content.signatures.take(j[part])
            shares[left[part]] = np.float32(same.sum(axis=1)) / np.float32(content.signatures.width)
    return shares


def cosines(vectors: Vectors, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """float32: cosine of each pair of vectors, summed in float64 in order of the numbers: the same wherever it is computed."""
    found = np.empty(len(i), np.float32)
    for part in _parts(np.arange(len(i))):
        found[part] = _cosines_of(vectors.take(i[part]), vectors.take(j[part]))
    return found


def equal_pairs(codes: np.ndarray, rank: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(better, worse, cut): of things of one code ≥ 0 each with at most `most` that are ranked best among its betters."""
    order = np.lexsort((rank, codes))
    order = order[codes[order] >= 0]
    sorted_ = codes[order]
    begins = np.flatnonzero(np.concatenate([[True], sorted_[1:] != sorted_[:-1]])) if len(order) else np.zeros(0, np.int64)
    first = np.repeat(begins, np.diff(np.append(begins, len(order))))
    before = np.arange(len(order)) - first  # betters of each
    listed = np.minimum(before, most)
    worse = np.repeat(np.arange(len(order)), listed)
    better = np.repeat(first, listed) + (np.arange(len(worse)) - np.repeat(np.cumsum(listed) - listed, listed))
    return order[better], order[worse], order[before > most]


def _parts(at: np.ndarray) -> Sequence[np.ndarray]:
    return [at[k : k + AT_ONCE] for k in range(0, len(at), AT_ONCE)]


def _ids(vectors: Vectors | None, rows: np.ndarray, medium: int) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    if vectors is None or not vectors.count:
        return np.full(len(rows), -1, np.int64)
    if medium == 0:
        ids, there = np.minimum(rows, vectors.rows - 1), rows < vectors.rows
    else:
        keys, wanted = vectors.owner << 16 | vectors.place.astype(np.int64), rows << 16 | medium
        at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
        ids, there = vectors.rows + at, keys[at] == wanted if len(keys) else np.zeros(len(rows), bool)
        ids = np.minimum(ids, vectors.count - 1)
    return np.where(there & vectors.valid[ids], ids, -1)


def _column(table: pa.Table, name: str) -> pa.Array:
    """As one array with offsets of 64 bits: those of 32 end at 2 GiB of text, which are the sha256 of 33 million media."""
    column = table[name]
    return column.cast(large_type(column.type)).combine_chunks()


def large_type(kind: pa.DataType) -> pa.DataType:
    """The same values with offsets of 64 bits."""
    if pa.types.is_list(kind):
        return pa.large_list(large_type(kind.value_type))
    return pa.large_string() if pa.types.is_string(kind) else kind


def _lengths(column: pa.Array) -> np.ndarray:
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64)
    found: np.ndarray = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _places(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Numbers of the media of lists of these lengths, in order."""
    return np.repeat(start - (np.cumsum(length) - length), length) + np.arange(int(length.sum()))


@numba.njit(cache=True)
def _cosines_of(a, b):  # type: ignore[no-untyped-def]
    found = np.empty(len(a), np.float32)
    for k in range(len(a)):
        found[k] = cosine(a[k], b[k])
    return found

"""A task of a search: tiles of rows that ask and columns that are asked, compared by FAISS a bounded step at a time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import faiss
import numba
import numpy as np

from curation.clusters import one_thread
from curation.cosines import MARGIN, weigh
from curation.search_files import mapped, pairs_of, put_runs
from curation.search_plan import STEP_HITS, step_of
from curation.vectors import BLOCK, Vectors, block_path

NEAREST = 64  # that a GPU gives of each row in one call


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What all tasks of a search share: files, by place in that order.

    vectors     in order of run (search_lists), in each by rank.
    ranks       file of integers (n,): 0 is best. still_open: file of bool (n,): who may still get betters.
    floor       cosine. most: betters that are wanted of each.
    """

    vectors: Vectors
    ranks: str
    still_open: str
    floor: float
    most: int


def search_task(space: SearchSpace, tiles: np.ndarray, asking: str, path: str, gpus: float) -> None:
    """The near pairs of some tiles, written to `path` as runs (search_files), unless that is there already.

    tiles   int64 (t, 4): first and last row, first and last column. Columns are places, of one run.
    asking  file of integers: the places that rows number, in any order; "" where rows are places of the columns' run: then only the
            betters of rows are looked for (a triangle: what is worse than a row has it for a column).

    Of each worse one there are its best-ranked `most` + 1 in a tile, or all.
    """
    if Path(path).exists():
        return
    ranks, still_open, places = (np.asarray(mapped(file)) if file else None for file in (space.ranks, space.still_open, asking))
    assert ranks is not None
    assert still_open is not None
    gpu = gpus > 0 and faiss.get_num_gpus() > 0
    room = np.empty((int((tiles[:, 1] - tiles[:, 0]).max()), space.vectors.width), np.float32)
    with one_thread():
        put_runs(Path(path), (part for tile in tiles for part in _tile(space, tile, ranks, still_open, places, room, gpu)))


def _tile(
    space: SearchSpace, tile: np.ndarray, ranks: np.ndarray, still_open: np.ndarray, asking: np.ndarray | None, room: np.ndarray, gpu: bool
) -> Iterator[np.ndarray]:
    """PAIR arrays. Rows and columns are walked in order of rank. room: for the vectors of the rows, one tile's after the other."""
    first, last, column_first, column_last = (int(x) for x in tile)
    places = np.arange(first, last) if asking is None else asking[first:last].astype(np.int64)
    row_ranks = ranks[places].astype(np.int64)
    order = np.argsort(row_ranks)
    places, row_ranks = places[order], row_ranks[order]
    row_left = np.where(still_open[places], space.most + 1, 0)
    rows: np.ndarray | None = None
    border = int(np.argmax(row_left > 0)) if row_left.any() else len(row_left)  # before it those that never lose: fixed ones
    step = step_of(space.vectors.width)
    row_steps = [*_steps(0, border, step), *_steps(border, len(places), step)]
    for begin, end in _column_steps(column_first, column_last, step, 2 * (space.most + 1) if asking is None else 0):
        column_ranks = ranks[begin:end].astype(np.int64)
        column_left = np.where(still_open[begin:end], space.most + 1, 0) if asking is not None else np.zeros(end - begin, np.int64)
        columns: np.ndarray | None = None
        for row_begin, row_end in row_steps:
            of_rows, of_columns = _wanted(row_ranks[row_begin:row_end], row_left[row_begin:row_end], column_ranks, column_left)
            if not len(of_rows) or not len(of_columns):
                continue
            if rows is None:
                rows = room[: len(places)]
                read_places(space.vectors, places, rows)
            if columns is None:
                columns = read_range(space.vectors, begin, end)
            of_rows += row_begin
            step_rows = rows[row_begin:row_end] if len(of_rows) == row_end - row_begin else rows[of_rows]
            step_columns = columns if len(of_columns) == len(columns) else columns[of_columns]
            for offset, lims, labels in _candidates(step_rows, step_columns, space.floor - MARGIN, gpu):
                if not len(labels):
                    continue
                here = of_rows[offset : offset + len(lims) - 1]
                size = min(len(labels), (len(here) + len(of_columns)) * (space.most + 1))
                worse, better, similarity = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.float32)
                filled = weigh(
                    lims,
                    labels,
                    here,
                    of_columns,
                    step_rows[offset : offset + len(here)],
                    step_columns,
                    row_ranks,
                    column_ranks,
                    row_left,
                    column_left,
                    np.float32(space.floor),
                    worse,
                    better,
                    similarity,
                )
                if filled:
                    yield pairs_of(worse[:filled], better[:filled], similarity[:filled])


def _wanted(
    row_ranks: np.ndarray, row_left: np.ndarray, column_ranks: np.ndarray, column_left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64, int64: the rows and columns that can be in a pair whose worse one may still get a better one. Ranks are ascending."""
    open_rows, open_columns = row_left > 0, column_left > 0
    worst_row = row_ranks[open_rows][-1] if open_rows.any() else -1
    worst_column = column_ranks[open_columns][-1] if open_columns.any() else -1
    rows = (open_rows & (row_ranks > column_ranks[0])) | (row_ranks < worst_column)
    columns = (open_columns & (column_ranks > row_ranks[0])) | (column_ranks < worst_row)
    return np.flatnonzero(rows), np.flatnonzero(columns)


def _candidates(rows: np.ndarray, columns: np.ndarray, floor: float, gpu: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the first row, lims, labels) of some rows after the other, with at most STEP_HITS hits at a time."""
    wide = max(1, STEP_HITS // len(columns))
    if not gpu:
        for first in range(0, len(rows), wide):
            yield first, *_range_search(rows[first : first + wide], columns, floor)
        return
    nearest = min(NEAREST, len(columns))
    products, found = faiss.knn_gpu(faiss.StandardGpuResources(), rows, columns, nearest, metric=faiss.METRIC_INNER_PRODUCT)
    more = (products[:, -1] > floor) & (nearest < len(columns))  # more than it gave may be near: those rows are searched again here
    for first in range(0, len(rows), wide):
        last = min(first + wide, len(rows))
        again = np.flatnonzero(more[first:last]) + first
        lims, labels = _range_search(np.ascontiguousarray(rows[again]), columns, floor)
        hits = [np.sort(found[i][products[i] > floor]) for i in range(first, last)]
        for number, i in enumerate(again):
            hits[i - first] = labels[lims[number] : lims[number + 1]]
        yield first, np.concatenate([[0], np.cumsum([len(h) for h in hits])]), np.concatenate(hits)


def _range_search(rows: np.ndarray, columns: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    if not len(rows):
        return np.zeros(1, np.int64), np.zeros(0, np.int64)
    result = faiss.RangeSearchResult(len(rows))
    faiss.range_search_inner_product(
        faiss.swig_ptr(rows), faiss.swig_ptr(columns), rows.shape[1], len(rows), len(columns), float(floor), result
    )
    lims = faiss.rev_swig_ptr(result.lims, len(rows) + 1).astype(np.int64)
    if not lims[-1]:
        return lims, np.zeros(0, np.int64)
    return lims, faiss.rev_swig_ptr(result.labels, int(lims[-1])).copy()


def read_places(vectors: Vectors, places: np.ndarray, found: np.ndarray) -> None:
    """Copy vectors to float32 (len(places), width). A block is mapped for as long as it is read, so that no page of it stays ours."""
    order = np.argsort(places)
    borders = np.searchsorted(places[order], np.arange(vectors.blocks + 1) * BLOCK)
    for number in np.flatnonzero(np.diff(borders)).tolist():
        part = order[borders[number] : borders[number + 1]]
        _copy_rows(_block(vectors, number), places[part] - number * BLOCK, found, part)


def read_range(vectors: Vectors, first: int, last: int) -> np.ndarray:
    """float32 (last - first, width), copied."""
    parts = []
    for number in range(first // BLOCK, -(-last // BLOCK)):
        at = number * BLOCK
        parts.append(_block(vectors, number)[max(first - at, 0) : last - at].copy())
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _block(vectors: Vectors, number: int) -> np.ndarray:
    """`Vectors.block` without numpy's reading of headers: a task maps thousands, and a block's numbers are the end of its file."""
    file = os.open(block_path(vectors.folder, number), os.O_RDONLY)
    try:
        data = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(file)
    rows = min(BLOCK, vectors.count - number * BLOCK)
    return np.frombuffer(data, np.float32, rows * vectors.width, len(data) - rows * vectors.width * 4).reshape(rows, vectors.width)


@numba.njit(cache=True)
def _copy_rows(block: np.ndarray, rows: np.ndarray, out: np.ndarray, to: np.ndarray) -> None:
    for i in range(len(rows)):
        for j in range(block.shape[1]):
            out[to[i], j] = block[rows[i], j]


def _steps(first: int, last: int, most: int) -> list[tuple[int, int]]:
    """A range in as few steps of even size as hold `most`."""
    count = -(-(last - first) // most)
    edges = [first + (last - first) * i // count for i in range(count + 1)] if count else []
    return list(pairwise(edges))


def _column_steps(first: int, last: int, most: int, alone: int) -> list[tuple[int, int]]:
    """alone: how many best-ranked ones come by themselves: among copies of one thing the others then have enough, and are done."""
    border = min(last, first + alone)
    return [*_steps(first, border, most), *_steps(border, last, most)]

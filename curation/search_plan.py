"""The plan of a search by lists: tiles of bounded size, and tasks of about equal work, from the sizes of the lists alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEMORY = 256 << 20  # bytes of a task
STEP = 16 << 20  # bytes of a step's rows, and of its columns
STEP_MOST = 4_096  # of either: a list of the usual size is not cut, which FAISS is 5 to 10 % faster for
STEP_HITS = 1 << 22  # rows times columns of one call: as many hits as it can have, whatever the data
ROWS = 16_384  # of a tile at most: beyond it a call gets no faster
LEAST_ROWS = 64
COLUMNS = 1 << 20  # of a tile: they are read a step at a time, so they cost time, not memory
WORK = 1 << 37  # multiply-adds of a task: about 3 s on one core
MOST_TASKS = 1 << 16


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """Tiles in order of pool, each a rectangle of a pool's rows (who asks) and columns (who is in it), and tasks of neighbouring tiles.

    pool                        int64 (t,): the pool each tile is of.
    row_first, row_last         int64 (t,): among the pool's rows, from 0.
    column_first, column_last   int64 (t,): among the pool's columns, from 0.
    starts                      int64 (tasks + 1,): task i has tiles starts[i] … starts[i + 1].
    rows                        the most rows of a tile.
    width                       of the vectors.
    """

    pool: np.ndarray
    row_first: np.ndarray
    row_last: np.ndarray
    column_first: np.ndarray
    column_last: np.ndarray
    starts: np.ndarray
    rows: int
    width: int

    @property
    def tasks(self) -> int:
        return len(self.starts) - 1

    @property
    def work(self) -> np.ndarray:
        """float64 (tasks,): multiply-adds of each task when nothing is skipped."""
        cells = (self.row_last - self.row_first).astype(np.float64) * (self.column_last - self.column_first) * self.width
        summed = np.concatenate([[0.0], np.cumsum(cells)])
        return np.diff(summed[self.starts])

    @property
    def bytes(self) -> int:
        """The most memory that a task needs."""
        return task_bytes(self.rows, self.width)


def task_bytes(rows: int, width: int) -> int:
    """Memory of a task: the rows of a tile, a step's rows and columns once more where only some are still open, the products of a step,
    its hits (8 bytes of number, 4 of product, held twice while they are handed over), and what was found and is not yet written."""
    return rows * width * 4 + 3 * step_of(width) * width * 4 + 4 * STEP_HITS + 24 * STEP_HITS + (32 << 20)


def step_of(width: int) -> int:
    """The rows, and the columns, that a tile looks at together."""
    return max(1, min(STEP_MOST, STEP // (4 * width)))


def plan_search(
    members: np.ndarray, queries: np.ndarray, width: int, memory_bytes: int = MEMORY, *, triangle: bool = False, work: float = WORK
) -> SearchPlan:
    """Cut the comparison of each pool's `queries` with its `members` into tiles and tasks.

    members, queries  int64 (k,): columns and rows of each pool. width: numbers of a vector.
    memory_bytes      of a task, whatever the largest pool is: it sets the rows of a tile (LEAST_ROWS at least).
    triangle          a pool's rows are the last of its columns, and each is compared with the columns up to itself only.
    work              multiply-adds of a task; more where there would be over MOST_TASKS tasks.

    One pass over arrays of the number of tiles: a billion vectors in 32 k lists take well under a second.
    """
    members, queries = np.asarray(members, np.int64), np.asarray(queries, np.int64)
    fixed = task_bytes(0, width)
    rows = int(np.clip((memory_bytes - fixed) // (4 * width), LEAST_ROWS, ROWS))
    busy = np.flatnonzero((members > 0) & (queries > 0))
    pool, row_first, row_last = _cut(busy, queries[busy], rows)
    columns = members[pool] - queries[pool] + row_last if triangle else members[pool]
    tile, column_first, column_last = _cut(np.arange(len(pool)), columns, COLUMNS)
    pool, row_first, row_last = pool[tile], row_first[tile], row_last[tile]
    cells = (row_last - row_first).astype(np.float64) * (column_last - column_first) * width
    before = np.cumsum(cells) - cells
    each = max(work, float(cells.sum()) / MOST_TASKS)
    task = (before // each).astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(task)) + 1, [len(task)]]) if len(task) else np.zeros(1, np.int64)
    return SearchPlan(pool, row_first, row_last, column_first, column_last, starts.astype(np.int64), rows, width)


def _cut(names: np.ndarray, sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each size in as few pieces as hold `most`, of even size: (name, first, last) of the pieces."""
    pieces = -(-sizes // most)
    name, size, count = np.repeat(names, pieces), np.repeat(sizes, pieces), np.repeat(pieces, pieces)
    number = np.arange(len(name)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return name, size * number // count, size * (number + 1) // count

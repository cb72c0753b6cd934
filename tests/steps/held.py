"""A global step against references, as plain as can be: equal bytes, or a cosine above 0.95 of the first media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.population import Population
from curation.reference import check_references, parse_references, reference_identity
from curation.step import Column, Step


@dataclass(frozen=True, slots=True)
class What:
    """vectors: a wide column, or "". by: a column that orders, of no use to references."""

    reference: tuple[Mapping[str, str], ...] = ()
    vectors: str = ""
    by: str = ""


def _reduce(what: What, population: Population) -> pa.Table:
    table = population.table
    uids, sums = table["uid"].to_pylist(), table["sha256"].to_pylist()
    of: list[str | None] = [None] * population.samples
    references = range(population.samples, table.num_rows)
    known = {tuple(sums[i]): uids[i] for i in references if sums[i] and None not in sums[i]}
    near = np.zeros((population.samples, len(references)))
    if what.vectors:
        vectors = population.vectors[what.vectors]
        values = vectors.take(np.arange(vectors.count))
        assert vectors.rows == table.num_rows
        near = values[: population.samples] @ values[population.samples : table.num_rows].T
    for i in range(population.samples):
        of[i] = known.get(tuple(sums[i]))
        if of[i] is None and len(references) and near[i].max() > 0.95:
            of[i] = uids[population.samples + int(near[i].argmax())]
    return pa.table({"uid": uids[: population.samples], "of": pa.array(of, pa.string())})


STEP = Step(
    version=1,
    shape="global",
    level="sample",
    prefix="held_",
    what=What,
    columns=lambda what: (Column("of", pa.string()),),
    reads=lambda what: ("sha256", *filter(None, (what.vectors, what.by))),
    compares=lambda what: ("sha256", *filter(None, (what.vectors,))),
    reduce=_reduce,
    references=lambda what: parse_references(what.reference),
    identity=lambda what: [what.vectors, what.by, [reference_identity(r) for r in parse_references(what.reference)]],
    check=lambda what: check_references(parse_references(what.reference)),
    implied=lambda what: "{prefix}of is null",
)

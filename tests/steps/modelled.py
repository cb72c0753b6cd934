"""Says which commit of its model it was opened with; a server named in its How has the model instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curation.models import Model, kind_of, local_folder, model_identity
from curation.step import ALL_KINDS, Column, How, Result, Step


@dataclass(frozen=True, slots=True)
class What:
    model: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class ModelledHow(How):
    url: str = ""


def open_modelled(what: What, how: ModelledHow) -> Callable[[Sequence[Any]], Sequence[Result]]:
    folder = "" if how.url else local_folder(what.model, what.revision).name
    return lambda views: [{"folder": folder} for _ in views]


STEP = Step(
    version=1,
    columns=lambda what: (Column("folder", pa.string()),),
    reads=lambda what: ("texts",),
    level="sample",
    applies=ALL_KINDS,
    prefix="modelled_",
    what=What,
    how=ModelledHow,
    open=open_modelled,
    identity=lambda what: model_identity(what.model, what.revision),
    models=lambda what: [Model(what.model, kind_of(what.model), what.revision)],
    served=lambda how: bool(how.url),
)

"""What a step is: the three shapes, its columns, and its two dataclasses of parameters (What is digested, How is not)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from curation.models import Model
from shards.errors import RecipeError, SampleError
from shards.media import Limits
from shards.sample import MediaKind, MediaRef, Sample, Texts, digest_of

if TYPE_CHECKING:
    from curation.population import Population
    from curation.reference import Reference

Row = Mapping[str, Any]
Result = Row | SampleError  # a step answers each of its inputs with a row, or with the error that belongs to that sample

ALL_KINDS = frozenset({"text", "image", "video", "pdf"})
MEDIA_KINDS = frozenset({"image", "video"})  # what has pixels


@dataclass(frozen=True, slots=True)
class Column:
    """A column a step writes. `kinds`: where it applies (elsewhere NULL). `wide` columns lie in side files, not in the view `samples`."""

    name: str
    type: pa.DataType
    kinds: frozenset[str] = ALL_KINDS
    wide: bool = False
    doc: str = ""


@dataclass(frozen=True, slots=True)
class NoParameters:
    """For steps without a What or a How."""


@dataclass(frozen=True, slots=True)
class How:
    """Never changes a result, never digested. Steps with more settings declare a How of their own with these fields too.

    batch     samples (level "sample") or media (level "medium") for each call.
    gpus      of one actor; > 0 gives the step a pool of its own.
    memory    bytes of one actor above which its child process is killed; 0 = the engine's default.
    actors    size of the pool; 0 = as many as fit.
    """

    batch: int = 64
    gpus: float = 0.0
    memory: int = 0
    actors: int = 0


class MediaView(Protocol):
    """One medium inside the child process: opened and decoded at most once, shared by all steps fused there."""

    ref: MediaRef
    limits: Limits

    def data(self) -> bytes:
        """The bytes, within limits. Raises LimitError, SourceError."""

    def sha256(self) -> str: ...

    def image(self) -> np.ndarray:
        """uint8 H×W×3, EXIF orientation applied; a video's first frame. Raises DecodeError."""

    def frames(self, times: Sequence[float]) -> Iterator[np.ndarray]:
        """uint8 H×W×3 each: a video's frames at these seconds, ascending. Raises DecodeError."""


class SampleView(Protocol):
    """One sample inside the child process."""

    sample: Sample
    media: Sequence[MediaView]
    columns: Mapping[str, Any]  # what earlier steps wrote: for medium-level columns a list with one value for each medium


@dataclass(frozen=True, slots=True)
class ChildMedium:
    """One medium that a splitter made.

    name       for people, and for its extension. data: the encoded bytes.
    transform  JSON {operator, version, parameters}: how it was made of the parent's medium number `of`.
    """

    kind: MediaKind
    name: str
    data: bytes
    transform: str
    of: int = 0


@dataclass(frozen=True, slots=True)
class Child:
    """One child of a sample: a page, a clip. Its uid is `shards.sample.child_uid(parent, kind, *place)`, its key `<parent's>#page=3`.

    kind    the word for it, the same for all that one splitter makes: "page", "clip".
    place   where in the parent it lies: (page,), (start ms, end ms). No two children of a sample have the same.
    damage  why it could not be made: then it has neither media nor texts, and is errored, so that it does not vanish.
    """

    kind: str
    place: tuple[int, ...]
    media: tuple[ChildMedium, ...] = ()
    texts: Texts = field(default_factory=Texts)
    damage: SampleError | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One operator. A step file in curation/ ends with `STEP = Step(...)`; its name in a recipe is the module's.

    version    bump when the same What gives another result (golden rows in the tests hold it).
    prefix     of the final column names by default ("" for bare names); `as: x` makes it "x_".
    reads      What -> what it reads: "media", "texts", or names of columns other steps wrote (final names).
    columns    What -> columns, without prefix.
    level      annotators: "medium" = a row for each medium (stored as the first one's columns and `_more`), "sample" = one row.
    applies    kinds of sample it computes anything for; others get no row and their columns are NULL. What a step's columns have no kind of
               is left out of that: so its What may decide (`caption` with `frames` looks at videos, without at pictures).
    open       annotators: (What, How) -> function over a batch of MediaView or SampleView; loads models. Called once in a child process.
               splitters: the function takes SampleViews (level is "sample") and answers {"children": children}, an iterable of Child. It is
               walked once, in order, before the next sample's, and only one child is held at a time: yield them as they are made. It may
               raise a SampleError, which makes the whole sample errored; no child at all does so too. A splitter has no columns.
    reduce     globals: (What, Population) -> table keyed by uid, a row for each sample. A pure function of the samples and of
               what `references` name: neither the order of rows nor the number of workers matters.
    references globals: What -> what the population is held against: its rows come behind those of the samples (`Population.samples`).
    compares   globals with references: What -> those of the columns it reads that what it is held against must have. Default: all of them.
    vectors    globals: What -> those of the columns it reads that hold lists of numbers, and what the numbers are. A recipe that names
               a column of another type there, or one of lists anywhere else, is refused.
    implied    globals: What -> rule that rejects (shown by `plan`; `rule: false` drops it), or None.
               Written over final names with `{prefix}` where the step's own begin: "{prefix}of is null"; the recipe fills it in.
    identity   What -> JSON value that stands for it in the step digest, where fields are paths: the digest of what lies there.
               May read files, so it is called after `check`. Default: the What's own fields.
    check      What -> None; raises RecipeError-worthy ValueError for values that cannot work. Runs before Ray starts.
    models     What -> the models that `open` loads (docs/models.md): shown with their size before a run, and a hub's id is pinned to a
               commit, which goes into the What (`Model.field`) and so into the digest. Called after `check`; downloads nothing.
    served     How -> whether a server that this How names has the models, so that nothing is pinned or loaded here. Default: never.
    """

    version: int
    columns: Callable[[Any], Sequence[Column]]
    reads: Callable[[Any], Sequence[str]]
    shape: Literal["annotator", "global", "splitter"] = "annotator"
    level: Literal["medium", "sample"] = "medium"
    applies: frozenset[str] = MEDIA_KINDS
    prefix: str = ""
    what: type = NoParameters
    how: type = How
    open: Callable[[Any, Any], Callable[[Sequence[Any]], Sequence[Result]]] | None = None
    reduce: Callable[[Any, Population], pa.Table] | None = None
    references: Callable[[Any], Sequence[Reference]] | None = None
    compares: Callable[[Any], Sequence[str]] | None = None
    vectors: Callable[[Any], Mapping[str, Literal["float", "uint32"]]] | None = None
    implied: Callable[[Any], str | None] | None = None
    identity: Callable[[Any], Any] | None = None
    check: Callable[[Any], None] | None = None
    models: Callable[[Any], Sequence[Model]] | None = None
    served: Callable[[Any], bool] | None = None


def find_step(op: str) -> Step:
    """The step of a recipe's operator: `curation.<op>`, or a module of the user's own when `op` has a dot. Raises RecipeError."""
    name = op if "." in op else f"curation.{op}"
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            mend = "; put the folder it lies in into PYTHONPATH" if "." in op else ""
            raise RecipeError(f"no step {op!r}: there is no module {name}{mend}") from error
        raise RecipeError(f"step {op!r}: the module {name} cannot be imported: {error}; install what it needs") from error
    except ImportError as error:
        raise RecipeError(f"step {op!r}: the module {name} cannot be imported: {error}; mend or reinstall what it needs") from error
    step = getattr(module, "STEP", None)
    if not isinstance(step, Step):
        raise RecipeError(f"{name} is no step: it has no STEP")
    return step


def applying(step: Step, columns: Sequence[Column]) -> frozenset[str]:
    """The kinds that a step computes something for, its What being known: those of `applies` that one of its columns is for. A splitter has
    no columns."""
    return step.applies & frozenset().union(*(column.kinds for column in columns)) if columns else step.applies


def column_prefix(step: Step, alias: str | None) -> str:
    """`as: x` gives "x_"; without it the step's own prefix."""
    return step.prefix if alias is None else f"{alias}_"


def step_digest(op: str, step: Step, what: Any, read_digests: Sequence[str]) -> str:
    """Identity of a step's results: operator, version, What, digests of the steps it reads. How and `as` are no part of it."""
    identity = asdict(what) if step.identity is None else step.identity(what)
    return digest_of(op, step.version, identity, sorted(read_digests))

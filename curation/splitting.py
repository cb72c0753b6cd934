"""Runs a splitter over samples: its children become rows, their bytes files of the run that hold many of them.

A child's bytes never leave the process that makes them: they are appended to a file beside their place, and when a chunk is done or the
file is large enough it appears under `derived/<step digest>/`, named by its own sha256. Rows carry references into it, relative to the run.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from curation.answers import bug, message
from curation.listing import CHILDREN, listing_row
from curation.program import BoundStep, StepCost
from curation.rows import fingerprint
from curation.step import Child, Result
from curation.tries import as_infrastructure, tried
from curation.view import Member, Room
from shards.errors import InfrastructureError, SampleError, StepBug
from shards.sample import MediaRef, Sample, child_uid, content_fingerprint, digest_of
from shards.store import Store, open_store

DERIVED = "derived"  # the folder of a run that holds the children's bytes
Function = Callable[[Sequence[Any]], Sequence[Result]]
BLOB_BYTES = 64_000_000  # a file that has grown so large ends with the sample it is at


@dataclass(slots=True)
class _Blob:
    """A file being written. `keep` and `back` let the children of a sample that fails midway disappear again."""

    path: Path
    file: BinaryIO
    size: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def put(self, data: bytes) -> int:
        """Where in the file the data begins."""
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return self.size - len(data)

    def keep(self) -> tuple[int, Any]:
        return self.size, self.sha256.copy()

    def back(self, kept: tuple[int, Any] | None) -> None:
        """As it was at that `keep`; None: empty."""
        self.size, self.sha256 = kept or (0, hashlib.sha256())
        self.file.seek(self.size)
        self.file.truncate()


class Splitting:
    """The children that one splitter makes of one chunk. Use `split` for each sample, then `finish`; `close` in any case."""

    def __init__(self, room: Room, bound: BoundStep, cost: StepCost) -> None:
        self._room, self._bound, self._cost = room, bound, cost
        self._rows: list[dict[str, Any]] = []
        self._open_rows: list[dict[str, Any]] = []  # of the blob that is written: they do not know its name yet
        self._contents: list[dict[str, Any]] = []
        self._blob: _Blob | None = None
        self._store: Store | None = None

    def split(self, member: Member, function: Function) -> Result:
        """{"n": children, "kind": their word}, or the error that belongs to the sample. Raises StepBug, InfrastructureError."""
        self._cost.calls += 1
        begin = time.perf_counter()
        try:
            answer = tried(lambda: self._once(member, function), self._room.pause)
        finally:
            self._cost.seconds += time.perf_counter() - begin
        if self._blob is not None and self._blob.size >= BLOB_BYTES:
            self._publish()
        return answer

    def finish(self) -> tuple[pa.Table, list[dict[str, Any]]]:
        """(rows of CHILDREN, rows of the table `contents`) of all samples that were split; their bytes are durable then."""
        self._publish()
        return pa.Table.from_pylist(self._rows, schema=CHILDREN), self._contents

    def close(self) -> None:
        if self._blob is not None:
            self._blob.file.close()
            self._blob.path.unlink(missing_ok=True)
            self._blob = None

    def _once(self, member: Member, function: Function) -> Result:
        bound = self._bound
        kept = self._blob.keep() if self._blob is not None else None
        rows: list[dict[str, Any]] = []
        contents: list[dict[str, Any]] = []
        kind = ""
        try:
            for child in self._walked(member, function):
                row, known = self._row(member, child, len(rows))
                kind = kind or child.kind
                if child.kind != kind:
                    raise self._bug(member, f"made a {child.kind} after a {kind}")
                rows.append(row)
                contents += known
            if len({row["uid"] for row in rows}) < len(rows):
                raise self._bug(member, f"made {len(rows)} children, and two of them lie in the same place")
            if not rows:
                raise SampleError(f"{bound.call.name} found nothing in it to make a sample of")
        except SampleError as error:  # its children until there go too: half a document is none
            self._undo(kept)
            return error
        except StepBug:
            raise
        except Exception as error:
            self._undo(kept)
            if (found := as_infrastructure(error, f"step {bound.call.name!r}")) is not None:
                raise found from error
            raise self._bug(member, f"raised {type(error).__name__}: {error}\n{traceback.format_exc()}") from error
        finally:
            self._room.begin(1)
        self._open_rows += rows
        self._contents += contents
        return {"n": len(rows), "kind": kind}

    def _walked(self, member: Member, function: Function) -> Iterator[Child]:
        """The children, CPU time counted anew for each: a long document is work, not a hang."""
        self._room.begin(1, member.row)
        answers = function([member.view])
        if len(answers) != 1:
            raise self._bug(member, f"gave {len(answers)} answers to 1 input")
        answer = answers[0]
        if isinstance(answer, SampleError):
            raise answer
        if set(answer) != {"children"}:
            raise self._bug(member, f"answered {sorted(answer)}; a splitter answers children")
        children = iter(answer["children"])
        while True:
            self._room.begin(1, member.row)
            try:
                child = next(children)
            except StopIteration:
                return
            yield child

    def _row(self, member: Member, child: Child, ordinal: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(row of CHILDREN, rows of `contents`) of one child; its bytes are in the blob then."""
        parent = member.view.sample
        uid = child_uid(parent.uid, child.kind, *child.place)
        refs: list[MediaRef] = []
        sums: list[str] = []
        for medium in child.media:
            sha256 = hashlib.sha256(medium.data).hexdigest()
            offset = self._put(medium.data)
            transform, original = _history(member, medium.of, medium.transform)
            stamp = digest_of(sha256, len(medium.data))  # its bytes alone: where they lie may differ from run to run
            refs.append(MediaRef(medium.kind, medium.name, "", offset, len(medium.data), stamp, None, transform, original))
            sums.append(sha256)
        key = f"{parent.key}#{child.kind}={'-'.join(map(str, child.place))}"
        damage = None if child.damage is None else message(child.damage, 0, 1)
        made = Sample(uid, parent.source, key, parent.unit, ordinal, tuple(refs), child.texts, damage, parent.uid)
        row = listing_row(made)
        row["fp"] = fingerprint(self._bound.call.roots, member.content, member.text_fp)
        if not refs:
            return row, []
        content = content_fingerprint([(ref.kind, sha256) for ref, sha256 in zip(refs, sums, strict=True)])
        return row, [{"uid": uid, "stamp": row["media_stamp"], "content": content, "sha256": sums}]

    def _put(self, data: bytes) -> int:
        if self._blob is None:
            if not self._room.derived:
                raise InfrastructureError(f"step {self._bound.call.name!r} splits, but was told no folder for what it makes")
            self._store = self._store or open_store(self._room.derived)
            path = self._store.tmp_path()
            self._blob = _Blob(path, path.open("xb"))
        return self._blob.put(data)

    def _publish(self) -> None:
        """The blob appears under its name, and the rows that refer to it learn it."""
        name = None
        if self._blob is not None and self._blob.size:
            self._blob.file.flush()
            digest = self._blob.sha256.hexdigest()
            inside = f"{self._bound.call.digest}/{digest[:2]}/{digest}"
            assert self._store is not None
            blob, store = self._blob, self._store
            tried(lambda: store.put_new_file(inside, blob.path), self._room.pause)
            name = f"{DERIVED}/{inside}"
        for row in self._open_rows:
            if row["media"]:
                row["blob"] = name
                for ref in row["media"]:
                    ref["path"] = name
        self._rows += self._open_rows
        self._open_rows = []
        self.close()

    def _undo(self, kept: tuple[int, Any] | None) -> None:
        if self._blob is not None:
            self._blob.back(kept)

    def _bug(self, member: Member, what: str) -> StepBug:
        return bug(self._bound, [member.view], what)


def _history(member: Member, number: int, transform: str) -> tuple[str, str]:
    """(transform, sha256 of the original) of what was made of a medium that may itself have been made of another."""
    parent = member.view.media[number]
    if parent.ref.transform is None:
        return transform, parent.sha256()
    chain = {**json.loads(transform), "after": json.loads(parent.ref.transform)}
    return json.dumps(chain, sort_keys=True), parent.ref.original or ""

"""The commit log: numbered JSON entries, each created if absent, with a checkpoint every 64. docs/ledger.md is its contract."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shards.errors import LedgerError
from shards.store import Store

FORMAT = "fovea-ledger/1"
CHECKPOINT_EVERY = 64


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """A live Parquet file of a table."""

    table: str
    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What the rows of one commit cost in one step. seconds: wall time in the step, over all workers; device_seconds: of them on a GPU."""

    digest: str
    name: str
    calls: int = 0
    rows: int = 0
    errors: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    bytes_read: int = 0


@dataclass(slots=True)
class State:
    """The log read up to `seq`: the live files by path, and the costs summed by (digest, name)."""

    seq: int = 0
    commits_since_compaction: int = 0
    changed: int = 0  # newest entry that may have changed a verdict
    verdicts_seq: int = 0  # newest entry that stored verdicts
    verdicts: Mapping[str, Any] = field(default_factory=dict)  # its note: digest of the recipe, populations of the global steps
    files: dict[str, LedgerFile] = field(default_factory=dict)
    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)

    def tables(self) -> dict[str, list[LedgerFile]]:
        found: dict[str, list[LedgerFile]] = {}
        for file in self.files.values():
            found.setdefault(file.table, []).append(file)
        return found


class CommitLog:
    """Reads and appends entries under `log/` of a store. `append` of a number that exists raises LedgerError: another process took it."""

    def __init__(self, store: Store):
        self._store = store
        self.state = State()
        self.refresh()

    def refresh(self) -> None:
        """Read what has been added since the last look; starts from the newest checkpoint."""
        names = self._store.list("log/")
        entries = {_number(n): n for n in names if not n.endswith(".checkpoint.json")}
        checkpoints = {_number(n): n for n in names if n.endswith(".checkpoint.json")}
        newest = max(checkpoints, default=0)
        if newest > self.state.seq:
            self.state = _from_checkpoint(_read(self._store, checkpoints[newest]))
        while self.state.seq + 1 in entries:
            _apply(self.state, _read(self._store, entries[self.state.seq + 1]))
        gap = max(entries, default=0) - self.state.seq
        if gap > 0:
            raise LedgerError(
                f"{self._store.url('log')}: entry {self.state.seq + 1} is missing but later ones exist; restore it from a backup"
            )

    def append(
        self,
        what: str,
        *,
        lease: int,
        add: Sequence[LedgerFile] = (),
        remove: Sequence[str] = (),
        costs: Sequence[Cost] = (),
        note: Mapping[str, Any] | None = None,
    ) -> int:
        """Write the next entry; its number. Files in `add` must already be durable."""
        entry = {
            "format": FORMAT,
            "seq": self.state.seq + 1,
            "lease": lease,
            "what": what,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "add": [asdict(f) for f in add],
            "remove": list(remove),
            "costs": [asdict(c) for c in costs],
            "note": dict(note or {}),
        }
        name = f"log/{entry['seq']:020d}.json"
        if not self._store.put_new(name, json.dumps(entry, separators=(",", ":")).encode()):
            raise LedgerError(f"{self._store.url(name)} exists: another process writes to this run; this one stops (nothing is lost)")
        _apply(self.state, entry)
        if self.state.seq % CHECKPOINT_EVERY == 0:
            self._store.put_new(f"log/{self.state.seq:020d}.checkpoint.json", json.dumps(_to_checkpoint(self.state)).encode())
        return self.state.seq

    def notes(self) -> list[dict[str, Any]]:
        """Every entry that is still in the log, oldest first: for reports."""
        names = [n for n in self._store.list("log/") if not n.endswith(".checkpoint.json")]
        return [_read(self._store, n) for n in names]


def _number(name: str) -> int:
    stem = name.rsplit("/", 1)[-1].split(".", 1)[0]
    if not stem.isdigit():
        raise LedgerError(f"{name} does not belong in a commit log")
    return int(stem)


def _read(store: Store, name: str) -> dict[str, Any]:
    try:
        entry = json.loads(store.read(name))
    except ValueError as error:
        raise LedgerError(f"{store.url(name)} is damaged ({error}); restore it from a backup") from error
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        found = entry.get("format") if isinstance(entry, dict) else type(entry).__name__
        raise LedgerError(f"{store.url(name)} has format {found!r}, this version reads {FORMAT!r}")
    return entry


def _apply(state: State, entry: Mapping[str, Any]) -> None:
    for value in entry["add"]:
        state.files[value["path"]] = LedgerFile(**value)
    for path in entry["remove"]:
        state.files.pop(path, None)
    for value in entry["costs"]:
        cost = Cost(**value)
        old = state.costs.get((cost.digest, cost.name))
        state.costs[(cost.digest, cost.name)] = _sum(old, cost) if old else cost
    state.commits_since_compaction = 0 if entry["what"] == "compact" else state.commits_since_compaction + 1
    if entry["what"] == "verdicts":
        state.verdicts_seq, state.verdicts = entry["seq"], entry["note"]
    elif entry["what"] not in ("dataset", "compact"):
        state.changed = entry["seq"]
    state.seq = entry["seq"]


def _sum(a: Cost, b: Cost) -> Cost:
    counted = ("calls", "rows", "errors", "seconds", "device_seconds", "bytes_read")
    return Cost(a.digest, a.name, **{k: getattr(a, k) + getattr(b, k) for k in counted})


def _to_checkpoint(state: State) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seq": state.seq,
        "commits_since_compaction": state.commits_since_compaction,
        "changed": state.changed,
        "verdicts_seq": state.verdicts_seq,
        "verdicts": dict(state.verdicts),
        "files": [asdict(f) for f in state.files.values()],
        "costs": [asdict(c) for c in state.costs.values()],
    }


def _from_checkpoint(value: Mapping[str, Any]) -> State:
    files = {f["path"]: LedgerFile(**f) for f in value["files"]}
    costs = {(c["digest"], c["name"]): Cost(**c) for c in value["costs"]}
    fixed = {k: value[k] for k in ("seq", "commits_since_compaction", "changed", "verdicts_seq", "verdicts")}
    return State(**fixed, files=files, costs=costs)

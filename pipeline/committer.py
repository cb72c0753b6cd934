"""Gathers answers of workers into commits of at least 100,000 rows or 2 minutes of work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.ledger import Ledger
from pipeline.log import Cost

COMMIT_ROWS = 100_000
COMMIT_SECONDS = 120.0
COMMIT_BYTES = 512 << 20


@dataclass(slots=True)
class Committer:
    """`add` gathers, `flush` commits what has been gathered; nothing is durable before."""

    ledger: Ledger
    rows: int = 0
    size: int = 0
    since: float = field(default_factory=time.monotonic)
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)
    media_opened: int = 0
    crashes: int = 0

    def add(self, header: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> None:
        for name, table in tables.items():
            if table.num_rows:
                self.tables.setdefault(name, []).append(table)
                self.rows += table.num_rows
                self.size += table.nbytes
        for value in header["costs"]:
            self._cost(value)
        self.media_opened += header["media_opened"]
        self.crashes += header["crashes"]
        if self.rows >= COMMIT_ROWS or self.size >= COMMIT_BYTES or time.monotonic() - self.since >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.tables:
            tables = {name: pa.concat_tables(parts) for name, parts in self.tables.items()}
            note = {"media_opened": self.media_opened, "crashes": self.crashes}
            self.ledger.commit("steps", tables, costs=list(self.costs.values()), note=note)
        self.tables, self.costs = {}, {}
        self.rows = self.size = self.media_opened = self.crashes = 0
        self.since = time.monotonic()

    def _cost(self, value: Mapping[str, Any]) -> None:
        key = (value["digest"], value["name"])
        old = self.costs.get(key, Cost(*key))
        counted = {k: getattr(old, k) + value.get(k, 0) for k in ("calls", "rows", "errors", "seconds", "device_seconds", "bytes_read")}
        self.costs[key] = Cost(*key, **counted)

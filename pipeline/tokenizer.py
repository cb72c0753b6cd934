"""Texts of a run for a tokenizer of its own: what the items say, as compose wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.ledger import Ledger
from pipeline.recipe import Recipe, StepOp
from pipeline.segments import wide_table
from shards.chat import train_tokenizer
from shards.errors import LedgerError
from shards.items import items_from_json

ROWS = 10_000


def texts(ledger: Ledger, recipe: Recipe) -> Iterator[str]:
    """Every text part of every item of a sample that is listed now. Raises LedgerError if nothing was composed yet."""
    composed = [op for op in recipe.ops if isinstance(op, StepOp) and op.op == "compose"]
    tables = [wide_table(op) for op in composed if ledger.files(wide_table(op))]
    if not tables:
        raise LedgerError(f"{ledger.store.url('')} has no items yet: run `fovea curate RECIPE --run DIR --until compose` first")
    connection = ledger.connect()
    try:
        query = f"select w.items from {ledger.scan(connection, tables[-1])} w semi join {ledger.scan(connection, 'listing')} l using (uid)"
        cursor = connection.execute(query)
        while rows := cursor.fetchmany(ROWS):
            for (items,) in rows:
                for item in items_from_json(items or "[]"):
                    yield from (part.text for message in item.messages for part in message.content if part.type == "text")
    finally:
        connection.close()


def make_tokenizer(ledger: Ledger, recipe: Recipe, out: Path, vocab_size: int) -> Path:
    """Train a byte-level BPE with Qwen2's special tokens on the run's texts; `out`, whole or not at all. What is there already stays."""
    if (out / "tokenizer.json").is_file():
        return out
    scratch = out.with_name(f".{out.name}.tmp")
    train_tokenizer(texts(ledger, recipe), scratch, vocab_size)
    (scratch / "fovea.json").write_text(json.dumps({"recipe": recipe.digest, "vocab_size": vocab_size}) + "\n")
    scratch.rename(out)
    return out

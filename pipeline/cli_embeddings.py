"""`fovea embeddings`: a run's vectors as a file that other corpora are held against."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.console import AsJson, out, put_line


def embeddings(
    run: Annotated[str, typer.Argument(help="A run: a path or an fsspec URL. It is only read.")],
    path: Annotated[str, typer.Option("--out", help="The Parquet file to write; one that is there is replaced.")],
    column: Annotated[str, typer.Option(help="The column of vectors, as the recipe calls it.")] = "embedding",
    where: Annotated[
        str, typer.Option(help="Whose: a predicate over the view `samples` of `fovea query`; true = all.")
    ] = "verdict = 'kept'",
    as_json: AsJson = False,
) -> None:
    """Write a run's vectors to a file: what `reference: [{name: …, embeddings: FILE}]` of deduplicate reads."""
    from pipeline.embeddings import export
    from pipeline.ledger import open_ledger
    from pipeline.recipe import load_run_recipe

    ledger = open_ledger(run)
    done = export(ledger, load_run_recipe(ledger.store), column, path, where)
    if as_json:
        put_line(asdict(done))
    else:
        out.print(f"{done.path}: {done.vectors:,} vectors of {done.width} numbers, of the step {done.digest}", markup=False)

"""Units for tests of the runner: real files in, work tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation.group import StepCall
from curation.rows import texts_to_json, work_schema
from curation.step import column_prefix, find_step, step_digest
from shards.sample import MediaRef, Texts, media_kind, media_stamp, stamp_of, texts_fingerprint, uid_of


def call(op: str, what: Mapping[str, Any] | None = None, how: Mapping[str, Any] | None = None, reads: Sequence[str] = ()) -> StepCall:
    """A StepCall as the engine makes it; roots are what the step reads itself."""
    step = find_step(op)
    built = step.what(**(what or {}))
    roots = tuple(root for root in ("media", "texts") if root in step.reads(built))
    name = op.rsplit(".", 1)[-1]
    digest = step_digest(op, step, built, [])
    return StepCall(name, op, asdict(built), asdict(step.how(**(how or {}))), digest, column_prefix(step, None), roots, tuple(reads))


def reference(path: Path) -> MediaRef:
    status = path.stat()
    return MediaRef(
        media_kind(path.name) or "image", path.name, str(path), -1, status.st_size, stamp_of(status.st_size, status.st_mtime_ns)
    )


def row(key: str, ordinal: int, media: Sequence[MediaRef] = (), texts: Texts | None = None, **more: Any) -> dict[str, Any]:
    texts = texts or Texts()
    kinds = {medium.kind for medium in media}
    kind = "mixed" if len(kinds) > 1 else next(iter(kinds), "text")
    return {
        "uid": uid_of("test", key),
        "source": "test",
        "key": key,
        "unit": "unit",
        "ordinal": ordinal,
        "kind": kind,
        "media": [medium.to_row() for medium in media],
        "texts": texts_to_json(texts),
        "media_stamp": media_stamp(media),
        "content": None,
        "known": [],
        "text_fp": texts_fingerprint(texts),
        "have": [],
        "failed": [],
        **more,
    }


def unit(rows: Sequence[Mapping[str, Any]], columns: Sequence[pa.Field] = ()) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=work_schema(columns))


def pictures(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> list[Path]:
    """Small PNGs of seeded noise on a gradient, named 000.png …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 64, (size[1], size[0], 3))
        ramp = np.linspace(0, 190, size[0]).astype(int)[None, :, None]
        paths.append(folder / f"{i:03d}.png")
        Image.fromarray((noise + ramp).astype(np.uint8)).save(paths[-1])
    return paths


def picture_unit(paths: Sequence[Path]) -> pa.Table:
    return unit([row(path.name, i, [reference(path)]) for i, path in enumerate(paths)])

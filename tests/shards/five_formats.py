"""One small source of each format, as files below a folder."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.sources import SourceSpec

COUNT = 3  # samples of each
PATHS = {"folder": "folder", "webdataset": "tars", "parquet": "tables", "manifest": "lists", "llava": "talks/talks.json"}
PATTERNS = {"webdataset": "tars/*.tar", "parquet": "tables/p*.parquet", "manifest": "*/m.jsonl", "llava": "talks/t*.json"}


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (70 + number, 70), (40 * number, 90, 200)).save(out, "PNG")
    return out.getvalue()


def files(first: int = 0) -> dict[str, bytes]:
    """name -> content; the pictures are those of the numbers first, first + 1, …"""
    numbers = range(first, first + COUNT)
    found: dict[str, bytes] = {}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        for n in numbers:
            found |= {f"folder/sub/{n}.png": picture(n), f"folder/sub/{n}.txt": f"c {n}".encode()}
            for name, data in ((f"{n:05d}.png", picture(n)), (f"{n:05d}.txt", f"c {n}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
            found |= {f"lists/pictures/{n}.png": picture(n), f"talks/pictures/{n}.png": picture(n)}
    table = io.BytesIO()
    rows = [{"id": n, "image": {"bytes": picture(n), "path": f"{n}.png"}, "caption": f"c {n}"} for n in numbers]
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=2)
    lines = [{"id": n, "files": [f"pictures/{n}.png"], "caption": f"c {n}"} for n in numbers]
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    talks = [{"id": str(n), "image": f"pictures/{n}.png", "conversations": talk, "caption": f"c {n}"} for n in numbers]
    return found | {
        "tars/00000.tar": tar.getvalue(),
        "tables/part.parquet": table.getvalue(),
        "lists/m.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        "talks/talks.json": json.dumps(talks).encode(),
    }


def write(folder: Path, first: int = 0) -> Path:
    for name, data in files(first).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def specs(base: str, paths: dict[str, str] = PATHS) -> list[SourceSpec]:
    return [SourceSpec(form, form, f"{base}/{path}") for form, path in paths.items()]


def recipe_sources(base: str) -> list[dict[str, Any]]:
    return [{"name": s.name, "format": s.format, "path": s.path} for s in specs(base)]

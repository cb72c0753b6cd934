"""Parquet as the Hub's datasets have it: images with bytes, lists of them, conversations of every form, over many row groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import RecipeError
from shards.media import Limits
from shards.read import read_media
from shards.sample import Sample
from shards.sources import SourceSpec, list_containers, scan
from tests.shards.five_formats import picture

LIMITS = Limits()
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def samples(path: Path, **spec: Any) -> list[Sample]:
    source = SourceSpec("hub", "parquet", str(path), **spec)
    return [s for c in list_containers(source) for s in scan(source, c)]


def image(n: int) -> dict[str, Any]:
    return {"bytes": picture(n), "path": f"{n}.png"}


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, group: int = 100) -> Path:
    """With the metadata that `datasets` puts into the schema."""
    told = schema.with_metadata({b"huggingface": b'{"info": {"features": {"image": {"_type": "Image"}}}}'})
    pq.write_table(pa.Table.from_pylist(rows, told), path, row_group_size=group)
    return path


TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
TEXT, TEXTS = pa.string(), pa.list_(pa.string())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.list_(pa.struct([("from", TEXT), ("value", TEXT)])), TALK),
        (pa.large_list(pa.struct([("role", TEXT), ("content", TEXT)])), [{"role": t["from"], "content": t["value"]} for t in TALK]),
        (pa.struct([("from", TEXTS), ("value", TEXTS)]), {"from": [t["from"] for t in TALK], "value": [t["value"] for t in TALK]}),
        (pa.list_(pa.struct([("user", TEXT), ("assistant", TEXT), ("source", TEXT)])), [{"user": "<image>\nWhat?", "assistant": "That."}]),
        (
            pa.list_(pa.struct([("role", TEXT), ("content", pa.list_(pa.struct([("type", TEXT), ("text", TEXT)])))])),
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
            ],
        ),
    ],
)
def test_conversations_of_every_form(tmp_path: Path, kind: pa.DataType, value: Any) -> None:
    schema = pa.schema([("id", pa.int64()), ("images", pa.list_(IMAGE)), ("talk", kind)])
    rows = [{"id": n, "images": [image(n)], "talk": value} for n in range(3)]
    found = samples(write(tmp_path / "a.parquet", rows, schema), fields={"conversations": "talk"})
    assert [s.texts.conversations for s in found] == [tuple(TALK)] * 3
    assert [s.damage for s in found] == [None] * 3
    assert [[read_media(m, LIMITS) for m in s.media] for s in found] == [[picture(n)] for n in range(3)]


@pytest.mark.parametrize(
    "talk",
    [
        [{"role": "user", "content": [{"type": "audio", "text": "x"}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "robot", "content": [{"type": "text", "text": "x"}]}],
    ],
)
def test_a_conversation_that_cannot_be_read_is_the_samples_error(tmp_path: Path, talk: Any) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": 1, "conversations": talk}]), tmp_path / "a.parquet")
    [sample] = samples(tmp_path)
    assert "conversations" in (sample.damage or "")


def test_lists_of_unequal_length_are_no_conversation(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": 1, "conversations": {"from": ["human"], "value": ["a", "b"]}}]), tmp_path / "a.parquet")
    [sample] = samples(tmp_path)
    assert "not a list of messages" in (sample.damage or "")


def test_many_row_groups_and_columns_of_every_width(tmp_path: Path) -> None:
    nested = pa.struct([("tags", pa.list_(TEXT)), ("box", pa.list_(pa.float32(), 4)), ("of", pa.struct([("who", TEXT)]))])
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])),
            ("caption", pa.large_string()),
            ("label", pa.dictionary(pa.int32(), TEXT)),
            ("about", nested),
        ]
    )
    rows = [
        {
            "image": image(n % 30),
            "caption": f"c {n}",
            "label": "ab"[n % 2],
            "about": {"tags": ["x"] * (n % 3), "box": [0, 0, 1, n], "of": {"who": "me"}},
        }
        for n in range(60)
    ]
    write(tmp_path / "a.parquet", rows[:31], schema, group=7)
    write(tmp_path / "b.parquet", rows[31:], schema, group=4)
    found = {s.texts.caption: s for s in samples(tmp_path)}
    assert len(found) == 60
    for n in range(60):
        sample = found[f"c {n}"]
        assert [read_media(m, LIMITS) for m in sample.media] == [picture(n % 30)]
        assert sample.texts.meta == {"label": "ab"[n % 2], "about": rows[n]["about"]}
    units = {s.unit for s in found.values()}
    assert len(units) == 5 + 8
    assert len(samples(tmp_path, fields={"caption": "about.of.who"}, where="label = 'a'")) == 30


def test_pictures_of_other_types(tmp_path: Path) -> None:
    """Columns of bytes and views as other writers make them."""
    for n, kind in enumerate((pa.binary(), pa.large_binary(), pa.binary_view())):
        table = pa.table({"id": ["x"], "image_bytes": pa.array([picture(n)], kind), "caption": pa.array(["c"], pa.string_view())})
        pq.write_table(table, tmp_path / f"{n}.parquet")
        [sample] = samples(tmp_path / f"{n}.parquet")
        assert ([read_media(m, LIMITS) for m in sample.media], sample.texts.caption) == ([picture(n)], "c")


def test_a_picture_deeper_inside_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["x"], "turn": [{"image": image(1), "said": "x"}]}), tmp_path / "a.parquet")
    with pytest.raises(RecipeError, match=r"media columns must hold bytes, paths, structs \{bytes, path\} or lists of them"):
        samples(tmp_path, fields={"image": "turn.image"})

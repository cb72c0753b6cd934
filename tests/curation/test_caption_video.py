"""Captions of videos: one for a clip from several frames, or one for each shot."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation import caption_questions, caption_transformers
from curation.caption import OF_VIDEO, STEP, CaptionHow, What
from curation.caption_request import Request
from curation.group import GroupRunner
from curation.step import step_digest
from curation.view import MediaView
from shards.errors import DecodeError, InfrastructureError
from shards.media import Limits
from tests.curation.chat_server import Action, Ask, ChatServer, say, serving, status
from tests.curation.families import FAMILIES
from tests.curation.stills import film, grey
from tests.curation.units import call, reference, row, unit
from tests.curation.views import media_view

SHOTS = [{"start": 0.0, "end": 1.0}, {"start": 1.0, "end": 2.0}, {"start": 2.0, "end": 3.0}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clip(tmp_path: Path) -> MediaView:
    """Three shots of a second: grey 10, 20, 30."""
    view = media_view(film(tmp_path / "clip.mkv", [(grey(10), 1), (grey(20), 1), (grey(30), 1)]))
    view.columns = {"video_shots": SHOTS}
    return view


def captions(server: ChatServer, views: Sequence[MediaView], **what: Any) -> Sequence[Any]:
    assert STEP.open is not None
    how = CaptionHow(backend="openai", url=server.url, backoff=0.01, retries=1, concurrency=1)
    return STEP.open(What(model="some-model", **what), how)(views)


def greys(ask: Ask) -> list[int]:
    """Of all pictures of a question."""
    data = [part["image_url"]["url"] for part in ask.body["messages"][-1]["content"] if part["type"] == "image_url"]
    return [int(np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))[0, 0, 0]) for url in data]


def test_a_clip_is_asked_about_once_with_its_frames_in_order(clip: MediaView) -> None:
    with serving(lambda ask: say(f"{greys(ask)}")) as server:
        [found] = captions(server, [clip], frames=3)
        assert found == {"text": "[10, 20, 30]", "tokens": 7}
        assert [ask.prompt for ask in server.asks] == [OF_VIDEO]
        assert captions(server, [clip], frames=3, max_chars=99) == [found]  # of the cache
        assert len(server.asks) == 1
        captions(server, [clip], frames=2)
        assert greys(server.asks[1]) == [10, 30]
        captions(server, [clip], frames=1, prompt="What?")
        assert greys(server.asks[2]) == [20]


def test_each_shot_has_a_caption_or_says_why_not(clip: MediaView) -> None:
    def behave(ask: Ask) -> Action:
        return say("I'm sorry, but I cannot describe this image.") if ask.grey == 20 else say(f"grey {ask.grey}")

    with serving(behave) as server:
        [found] = captions(server, [clip], at="video_shots", prompt="What is it?")
        assert [shot["text"] for shot in found["each"]] == ["grey 10", None, "grey 30"]
        assert found["each"][1]["error"].startswith("refusal: the model refuses")
        assert [(shot["start"], shot["end"]) for shot in found["each"]] == [(0, 1), (1, 2), (2, 3)]
        assert (found["text"], found["tokens"], found["n"]) == ("grey 10\ngrey 30", 14, 2)
        for column in STEP.columns(What(model="m", at="video_shots")):
            pa.array([found[column.name]], column.type)
        # the same frames under other bounds, and a film whose every shot is refused
        clip.columns = {"video_shots": [{"start": 0.4, "end": 0.6}, {"start": 1.0, "end": 2.0}]}
        assert captions(server, [clip], at="video_shots", prompt="What is it?")[0]["text"] == "grey 10"
        assert len(server.asks) == 3
        clip.columns = {"video_shots": [SHOTS[1]]}
        [refused] = captions(server, [clip], at="video_shots", prompt="What is it?")
        assert refused.kind == "refusal"


def test_what_waits_for_a_model_is_bounded(clip: MediaView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_questions, "WAVE_BYTES", 2 * 64 * 48 * 3)
    sizes: list[int] = []
    real = caption_questions.Request

    def counted(*values: Any) -> Request:
        sizes.append(len(server.asks))  # answered before this one was made
        return real(*values)

    monkeypatch.setattr(caption_questions, "Request", counted)
    with serving(lambda ask: say(f"grey {ask.grey}")) as server:
        [found] = captions(server, [clip], at="video_shots")
    assert found["text"] == "grey 10\ngrey 20\ngrey 30"
    assert sizes == [0, 0, 2]


def test_a_torn_video_costs_its_own_row_and_twins_are_asked_about_once(clip: MediaView, tmp_path: Path) -> None:
    data = Path(clip.ref.path).read_bytes()
    (tmp_path / "torn.mkv").write_bytes(data[:300])
    (tmp_path / "twin.mkv").write_bytes(data)
    torn, twin = media_view(tmp_path / "torn.mkv"), media_view(tmp_path / "twin.mkv")
    torn.columns = twin.columns = clip.columns
    with serving(lambda ask: say(f"grey {ask.grey}")) as server:
        first, broken, second = captions(server, [clip, torn, twin], at="video_shots")
    assert isinstance(broken, DecodeError)
    assert first == second
    assert sorted(server.count()) == [10, 20, 30]
    assert set(server.count().values()) == {1}


def test_a_server_that_takes_one_picture_ends_the_run_and_blames_no_video(clip: MediaView) -> None:
    def behave(ask: Ask) -> Action:
        return say("a dog") if len(greys(ask)) == 1 else status(400, {"error": {"message": "At most 1 image(s) may be provided"}})

    with serving(behave) as server:
        with pytest.raises(InfrastructureError, match="At most 1 image"):
            captions(server, [clip], frames=3)
        assert captions(server, [clip], frames=1)[0]["text"] == "a dog"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_several_pictures_or_says_that_it_takes_one(family: str, tmp_path: Path) -> None:
    """A padded batch of clips writes what each writes alone; whoever has no chat template is refused, by the recipe already."""
    folder = FAMILIES[family](tmp_path / family)
    what = What(model=str(folder), precision="fp32", max_new_tokens=9, frames=2)
    assert STEP.check is not None
    how = CaptionHow(cache="off", device="cpu")
    if not any(folder.glob("chat_template*")):
        with pytest.raises(ValueError, match=r"frames: .*one picture a question"):
            STEP.check(what)
        with pytest.raises(InfrastructureError, match="one picture a question"):
            caption_transformers.open_backend(what, how)
        return
    STEP.check(what)
    captioner = caption_transformers.load(what, how)
    noise = np.random.default_rng(0).integers(0, 256, (2, 2, 40, 60, 3), np.uint8)
    requests = [Request("u", str(i), prompt, noise[i]) for i, prompt in enumerate(("What is it?", "Describe these pictures, please."))]
    together = caption_transformers.generate(captioner, requests, lambda: None, 9)
    assert together == [caption_transformers.generate(captioner, [request], lambda: None, 9)[0] for request in requests]


def test_in_a_unit_videos_are_captioned_and_pictures_are_not(clip: MediaView, tmp_path: Path) -> None:
    Image.fromarray(grey(40)).save(tmp_path / "still.png")
    path = Path(clip.ref.path)
    still = reference(tmp_path / "still.png")
    work = unit([row("both", 0, [still, reference(path)]), row("still", 1, [still])])
    with serving(lambda ask: say(f"{greys(ask)}")) as server:
        how = {"backend": "openai", "url": server.url}
        step = call("caption", {"model": "some-model", "frames": 2}, how)
        runner = GroupRunner([step], Limits())
        try:
            result = runner.run(work)
        finally:
            runner.close()
    assert len(server.asks) == 1
    found = dict(zip(result.onward["uid"].to_pylist(), result.onward["caption_text"].to_pylist(), strict=True))
    assert sorted(found.values(), key=str) == [None, [None, "[10, 30]"]]


def test_digests_of_pictures_are_what_they_were() -> None:
    """Another one would caption every picture of every run again."""
    assert step_digest("caption", STEP, What(model="org/model"), []) == "b6401b753656c7d3"
    videos: tuple[dict[str, Any], ...] = ({"frames": 4}, {"at": "video_shots"}, {"every": 2.0}, {"frames": 4, "every": 2.0})
    digests = {step_digest("caption", STEP, What(model="org/model", **more), []) for more in videos}
    assert len(digests | {"b6401b753656c7d3"}) == 5

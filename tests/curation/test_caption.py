"""Captions by models of transformers in this process. The small captioner proves wiring; it knows coloured shapes and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation import caption_transformers
from curation.caption import STEP, CaptionHow, What
from curation.caption_reply import ReplyError
from curation.caption_request import Request
from curation.step import step_digest
from curation.view import MediaView, Room
from shards.errors import DecodeError, InfrastructureError, LimitError
from shards.media import Limits
from shards.sample import Texts
from tests.curation.families import FAMILIES
from tests.curation.stills import film
from tests.curation.views import file_ref, media_view, sample_view
from tests.small_models.clip import shapes

HOW = CaptionHow(cache="off", device="cpu", batch=64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Pictures the model has not seen, and what they show."""
    folder = tmp_path_factory.mktemp("shapes")
    found = []
    for number, (pixels, text) in enumerate(shapes([7])[::9]):
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        found.append((folder / f"{number:03d}.png", text))
    return found


def what(folder: Path, **more: Any) -> What:
    return What(**{"model": str(folder), "precision": "fp32", "max_new_tokens": 40, **more})


def captions(step: What, views: Sequence[MediaView], how: CaptionHow = HOW) -> Sequence[Any]:
    assert STEP.open is not None
    return STEP.open(step, how)(views)


def test_it_says_what_it_learned_and_stops(small_captioner: Path, pictures: list[tuple[Path, str]]) -> None:
    views = [media_view(path) for path, _ in pictures]
    rows = captions(what(small_captioner), views)
    colours = [(row["text"].split()[-1], text.split()[-1]) for row, (_, text) in zip(rows, pictures, strict=True)]
    assert sum(said == shown for said, shown in colours) >= 0.8 * len(colours), colours
    assert all(3 <= row["tokens"] <= 12 for row in rows)
    detailed = captions(what(small_captioner, prompt="Describe the picture in detail."), views[:3])
    assert all(len(row["text"]) > 40 for row in detailed)
    [cut] = captions(what(small_captioner, prompt="Describe the picture in detail.", max_new_tokens=4), views[:1])
    assert str(cut).startswith("runaway: no end within max_new_tokens: 4")


def test_a_batch_of_unlike_prompts_and_pictures_says_what_each_says_alone(
    small_captioner: Path, pictures: list[tuple[Path, str]], tmp_path: Path
) -> None:
    step = what(small_captioner, prompt="What is shown? {hint}")
    Image.fromarray(np.full((90, 200, 3), 40, np.uint8)).save(tmp_path / "wide.png")
    paths = [*(path for path, _ in pictures[:5]), tmp_path / "wide.png"]
    views = []
    for number, path in enumerate(paths):
        view = media_view(path)
        view.columns = {"hint": "the figure shows water " * number}
        views.append(view)
    together = captions(step, views)
    assert STEP.open is not None
    alone = STEP.open(step, HOW)
    assert [alone([view])[0] for view in views] == list(together)


def test_draws_follow_the_picture_and_the_prompt_alone(small_captioner: Path, pictures: list[tuple[Path, str]]) -> None:
    views = [media_view(path) for path, _ in pictures[:6]]
    assert STEP.open is not None
    draw = STEP.open(what(small_captioner, temperature=1.5), HOW)
    drawn = [str(row) for row in draw(views)]
    assert [str(draw([view])[0]) for view in views[::-1]] == drawn[::-1]
    assert drawn != [str(row) for row in captions(what(small_captioner), views)]
    assert drawn != [str(row) for row in captions(what(small_captioner, temperature=1.5, prompt="What?"), views)]


def test_a_picture_that_cannot_be_taken_costs_its_own_row(small_captioner: Path, pictures: list[tuple[Path, str]], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((1, 2000, 3), np.uint8)).save(tmp_path / "line.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    long = media_view(pictures[3][0])
    long.columns = {"hint": "x" * 100_000}
    views = [media_view(path) for path in (pictures[0][0], tmp_path / "line.png", pictures[1][0], tmp_path / "bad.png", pictures[2][0])]
    for view in views:
        view.columns = {"hint": ""}
    found = captions(what(small_captioner, prompt="What is shown? {hint}"), [*views, long])
    assert [type(result) for result in found] == [dict, ReplyError, dict, DecodeError, dict, LimitError]
    assert str(found[1]).startswith("failed: the model cannot take this picture")


def test_a_batch_that_does_not_fit_is_halved(
    small_captioner: Path, pictures: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory is told by the device; here by a device of our own that holds so many pictures and no more."""
    import torch

    captioner = caption_transformers.load(what(small_captioner), HOW)
    real, held, sizes = captioner.model.generate, [2], list[int]()

    def generate(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > held[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(**inputs)

    monkeypatch.setattr(captioner.model, "generate", generate)
    requests = [Request(str(i), str(i), "What is shown?", np.asarray(Image.open(path))) for i, (path, _) in enumerate(pictures[:6])]
    steps = [0]
    found = dict(caption_transformers.answers(captioner, requests, lambda: steps.__setitem__(0, steps[0] + 1)))
    assert sorted(found) == list(range(6))
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert steps[0] >= 18  # it says that it lives at every word
    held[0] = 0
    with pytest.raises(InfrastructureError, match="max_pixels"):
        list(caption_transformers.answers(captioner, requests, lambda: None))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_writes_what_transformers_own_example_writes(family: str, tmp_path: Path, pictures: list[tuple[Path, str]]) -> None:
    """One picture at a time, without padding, as the models' documentation does it, against a padded batch."""
    import torch

    folder = FAMILIES[family](tmp_path / family)
    captioner = caption_transformers.load(what(folder), HOW)
    prompts = ["What is it?", "A photo of", "Question: what is this? Answer:"]
    requests = [Request("u", "0", prompt, np.asarray(Image.open(path))) for prompt, (path, _) in zip(prompts, pictures[::4], strict=False)]
    found = caption_transformers.generate(captioner, requests, lambda: None, 9)
    for request, reply in zip(requests, found, strict=True):
        inputs = _alone(captioner.processor, request)
        with torch.inference_mode():
            [row] = captioner.model.generate(**inputs, max_new_tokens=9, do_sample=False, num_beams=1)
        length = inputs["input_ids"].shape[1]
        written = row[1:] if family == "blip2_t5" else row[length:] if torch.equal(row[:length], inputs["input_ids"][0]) else row
        assert 1 <= len(written) <= 9
        assert reply.text == captioner.processor.tokenizer.decode(written, skip_special_tokens=True)
        ended = captioner.processor.tokenizer.eos_token_id in written.tolist()
        assert (reply.finish, reply.tokens) == ("stop" if ended else "length", len(written))
    assert len({reply.text for reply in found}) > (family == "blip2_t5")


def _alone(processor: Any, request: Request) -> Any:
    image = Image.fromarray(request.pixels)
    if not processor.chat_template:
        return processor(images=image, text=request.prompt, return_tensors="pt")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": request.prompt}]}]
    return processor(images=[image], text=[processor.apply_chat_template(talk, add_generation_prompt=True)], return_tensors="pt")


def test_a_directory_stands_for_its_content_and_how_for_nothing(small_captioner: Path, tmp_path: Path) -> None:
    def digest(step: What) -> str:
        return step_digest("caption", STEP, step, [])

    copy = shutil.copytree(small_captioner, tmp_path / "copy")
    first = digest(what(small_captioner))
    assert digest(what(copy)) == first
    changed = [
        replace(what(copy), prompt="Other?"), replace(what(copy), system="s"), replace(what(copy), max_new_tokens=9),
        replace(what(copy), refusals=("no",)), replace(what(copy), max_pixels=2048), replace(what(copy), temperature=0.1),
    ]  # fmt: skip
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert len({first, digest(what(copy)), *map(digest, changed)}) == 8


def test_a_hubs_model_is_known_by_id_and_revision() -> None:
    hub = What(model="org/name", revision="abc")
    assert STEP.models is not None
    assert [(model.id, model.kind, model.revision) for model in STEP.models(hub)] == [("org/name", "hub", "abc")]
    assert step_digest("caption", STEP, hub, []) != step_digest("caption", STEP, replace(hub, revision="abd"), [])
    assert STEP.served is not None
    assert STEP.served(CaptionHow(backend="openai", url="http://x/v1"))
    assert not STEP.served(HOW)


def _without(copy: Path, name: str) -> None:
    (copy / name).unlink()


def _torn(copy: Path, _: str) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _lacking(copy: Path, _: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors.pop(sorted(name for name in tensors if "vision" in name)[0])
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "name", "told"),
    [
        (_without, "model.safetensors", "safetensors"), (_without, "tokenizer.json", "model"),
        (_without, "processor_config.json", "model"), (_torn, "", "cannot be loaded"), (_lacking, "", "lack 1 of the model's tensors"),
    ],
)  # fmt: skip
def test_a_model_with_files_missing_ends_the_run_and_says_which(
    damage: Any, name: str, told: str, small_captioner: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(small_captioner, tmp_path / "copy")
    damage(copy, name)
    with pytest.raises(InfrastructureError, match=told):
        captions(what(copy), [])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer_config.json", "[]", "cannot be loaded"), ("config.json", "[]", "cannot be loaded"),
        ("generation_config.json", '{"eos_token_id": "x"}', "cannot be loaded"),
        ("chat_template.jinja", "{{ messages[0].none.such }}", "grey picture.*UndefinedError"),
        ("chat_template.jinja", "{% for %}", "grey picture.*TemplateSyntaxError"),
        ("chat_template.jinja", "{{ raise_exception('System role not supported') }}", "grey picture.*System role not supported.*messages"),
    ],
)  # fmt: skip
def test_a_model_whose_files_say_odd_things_ends_the_run_with_a_message(
    name: str, content: str, told: str, small_captioner: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(small_captioner, tmp_path / "copy")
    (copy / name).write_text(content)
    with pytest.raises(InfrastructureError, match=told):
        captions(what(copy), [])


def test_a_prompt_that_the_chat_template_refuses_costs_its_own_row(
    small_captioner: Path, pictures: list[tuple[Path, str]], tmp_path: Path
) -> None:
    copy = shutil.copytree(small_captioner, tmp_path / "copy")
    template = (copy / "chat_template.jinja").read_text("utf-8")
    asks = "{% for part in messages[-1]['content'] %}{% if 'refuse' in part.get('text', '') %}{{ raise_exception('not so') }}{% endif %}"
    (copy / "chat_template.jinja").write_text(asks + "{% endfor %}" + template, "utf-8")
    told = what(copy, prompt="{caption}")
    texts = ("refuse this", "Describe this picture.")
    [bad, good] = captions(told, [sample_view([file_ref(pictures[0][0])], Texts(caption=text), key=text).media[0] for text in texts])
    assert isinstance(bad, ReplyError)
    assert "not so" in str(bad)
    assert isinstance(good, dict)


def test_code_of_strangers_is_refused(small_captioner: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(small_captioner, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(InfrastructureError, match="remote_code"):
        captions(what(copy), [])


def test_what_is_no_captioner_is_told_when_it_is_opened(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "text")
    with pytest.raises(InfrastructureError, match=r"cannot be loaded|no processor"):
        captions(what(tmp_path / "text"), [])
    folder = FAMILIES["blip2"](tmp_path / "blip2")
    with pytest.raises(InfrastructureError, match="no chat template"):
        captions(what(folder, system="Be brief."), [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""}, {"prompt": "{a.b}"}, {"prompt": " ", "system": "s"}, {"precision": "int4"}, {"temperature": -1.0},
        {"temperature": 3.0}, {"max_new_tokens": 0}, {"max_pixels": 100}, {"max_chars": 0}, {"refusals": ("(",)},
        {"model": "gpt-5", "revision": "main"}, {"model": "https://x/y"}, {"model": "/nowhere/model.bin"},
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    assert STEP.check is not None
    with pytest.raises(ValueError):
        STEP.check(What(**{"model": "org/name", **wrong}))


def test_long_work_that_gets_on_has_its_time_counted_anew(pictures: list[tuple[Path, str]]) -> None:
    room = Room(Limits())
    view = sample_view([file_ref(pictures[0][0])]).media[0]
    view._room = room
    room.begin(5)
    view.alive()
    assert (room.call, room.inputs) == (2, 5)


def test_the_shots_of_a_film_are_named_by_a_model_of_this_process(small_captioner: Path, tmp_path: Path) -> None:
    pictures = [(pixels, text) for pixels, text in shapes([7])[::11]][:8]
    path = film(tmp_path / "shapes.mkv", [(pixels, 0.5) for pixels, _ in pictures])
    view = media_view(path)
    view.columns = {"video_shots": [{"start": i / 2, "end": (i + 1) / 2} for i in range(8)]}
    assert STEP.open is not None
    what = What(model=str(small_captioner), precision="fp32", max_new_tokens=40, at="video_shots")
    [found] = STEP.open(what, CaptionHow(cache="off", device="cpu"))([view])
    assert isinstance(found, dict), found
    hits = [shot["text"].split()[-1] == text.split()[-1] for shot, (_, text) in zip(found["each"], pictures, strict=True)]
    assert sum(hits) >= 7, found["each"]
    several = What(model=str(small_captioner), precision="fp32", max_new_tokens=40, frames=3)
    [whole] = STEP.open(several, CaptionHow(cache="off", device="cpu"))([view])
    assert isinstance(whole, dict), whole

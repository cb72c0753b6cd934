"""What the loader hands over is what was planned: real shards, real decoders, real tokens; damage costs one item and is told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.chat import load_tokenizer
from shards.errors import ConfigError, ProfileError, ShardError
from shards.image import decode_image
from shards.items import Message, Part, Role
from shards.media import Limits
from shards.preprocess import preprocess_image
from shards.profile import Profile, load_profile
from shards.reader import Dataset
from shards.tokenizer import tokenizer_digest, train_tokenizer
from tests.training import small_dataset
from tests.training.fixtures import Made, real_samples, write_dataset
from training.collate import ItemName, PackBatch
from training.index_source import DatasetIndex
from training.loader import Loader
from training.mixture import Mixture
from training.model import build_tiny
from training.plan import Plan, make_plan
from training.plan_parts import PlanConfig
from training.stages import TinyShape

CONFIG = PlanConfig(profile="tiny", compress=True, packs=4, seq_tokens=256, pack_patches=1024, window_shards=1)


@dataclass(frozen=True)
class Corpus:
    path: Path
    tokenizer: Any
    profile: Profile

    def loader(self, config: PlanConfig = CONFIG, mixture: Mixture | None = None, **settings: Any) -> Loader:
        dataset = Dataset.open(str(self.path))
        plan = make_plan(DatasetIndex(dataset, "train"), mixture or Mixture(), config)
        return Loader(dataset, plan, self.tokenizer, self.profile, **({"workers": 0} | settings))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path, words = small_dataset.write(tmp_path_factory.mktemp("small"))
    return Corpus(path, load_tokenizer(words), load_profile("tiny", tokenizer_digest(words)))


def batches(loader: Loader, **where: Any) -> list[list[PackBatch]]:
    return [step.batches for step in loader.steps(**where)]


def same(one: PackBatch, other: PackBatch) -> bool:
    a, b = one.model_inputs() | {"labels": one.labels}, other.model_inputs() | {"labels": other.labels}
    return one.items == other.items and set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def items(plan: Plan) -> list[dict[str, Any]]:
    return [row for step in plan.steps() for pack in step.packs for row in plan.items_of(pack).to_pylist()]


def planned(plan: Plan) -> Counter[ItemName]:
    return Counter(ItemName(row["uid"], row["task"], row["n"], row["repeat"], row["source"]) for row in items(plan))


def test_every_item_arrives_once_in_its_pack_at_its_size(small: Corpus) -> None:
    loader = small.loader()
    arrived: Counter[ItemName] = Counter()
    for step, loaded in zip(loader.plan.steps(), loader.steps(), strict=True):
        assert (loaded.window, loaded.step, loaded.number, loaded.cursor_after) == (step.window, step.step, step.number, step.after)
        assert sorted(batch.counts.tokens for batch in loaded.batches) == sorted(pack.tokens for pack in step.packs)
        assert sorted(batch.counts.patches for batch in loaded.batches) == sorted(pack.patches for pack in step.packs)
        arrived.update(name for batch in loaded.batches for name in batch.items)
        assert loaded.bytes_read > 0
    assert arrived == planned(loader.plan)
    assert {name.task for name in arrived} == {"short_caption", "document", "vqa", "video", "text"}


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(small: Corpus, workers: int) -> None:
    alone, together = batches(small.loader()), batches(small.loader(workers=workers))
    assert len(alone) == len(together) > 2
    assert all(same(a, b) for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True))


def test_ranks_share_the_packs_of_each_step(small: Corpus) -> None:
    whole = batches(small.loader())
    halves = [batches(small.loader(rank=rank, world=2)) for rank in (0, 1)]
    for step, *parts in zip(whole, *halves, strict=True):
        assert [len(part) for part in parts] == [2, 2]
        both = [batch for part in parts for batch in part]
        assert all(any(same(batch, other) for other in both) for batch in step)


def test_ranks_that_do_not_divide_a_step_are_refused(small: Corpus) -> None:
    with pytest.raises(ConfigError, match="4 packs a step cannot be dealt to 3 ranks"):
        small.loader(world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_cursor_goes_on_with_the_same_tensors(small: Corpus, workers: int) -> None:
    whole = list(small.loader().steps())
    for done in (1, len(whole) - 1, len(whole)):
        rest = list(small.loader(workers=workers).steps(whole[done - 1].cursor_after))
        assert [step.number for step in rest] == list(range(done, len(whole)))
        for a, b in zip(whole[done:], rest, strict=True):
            assert all(same(x, y) for x, y in zip(a.batches, b.batches, strict=True))


def test_pixels_are_those_of_the_one_preprocessing(small: Corpus) -> None:
    key = "picture-00"
    loader = small.loader(mixture=Mixture(where=f"key = '{key}' and task = 'vqa'"))
    batch = batches(loader)[0][0]
    medium = items(loader.plan)[0]["tiny"]["media"][0]
    rgb = decode_image(small_dataset.picture("red", "circle", 0), Limits())
    assert batch.pixel_values is not None
    assert batch.image_grid_thw is not None
    assert np.array_equal(batch.pixel_values.numpy(), preprocess_image(rgb, (medium["h"], medium["w"]), small.profile))
    assert batch.image_grid_thw.tolist() == [[1, medium["h"], medium["w"]]]
    answer = batch.labels[batch.labels != -100].tolist()
    assert small.tokenizer.decode(answer) == "red<|im_end|>"


def made(folder: Path, samples: list[Made], **replaced: bytes) -> Corpus:
    """A dataset of its own, measured at 4 frames a second with a threshold that drops what stands still."""
    tokenizer = train_tokenizer([*(f"{s.question} {s.answer}" for s in samples), "user assistant Time 0.0s:,"], folder / "words", 300)
    profile = replace(load_profile("tiny", tokenizer_digest(folder / "words")), fps=4.0, threshold=4.0)
    return Corpus(write_dataset(folder, samples, profile, tokenizer, replaced=replaced), tokenizer, profile)


def says(role: Role, *parts: str | Part) -> Message:
    return Message(role, tuple(Part("text", text=part) if isinstance(part, str) else part for part in parts))


STREAM = (  # its clip has a fourth frame, at 0.75 s, which is not of the item
    says("user", "Say when it moves."),
    says("stream", Part("video", media=0, until=0.3)),
    says("assistant", "Now."),
    says("user", Part("image", media=1), "Is it this?"),
    says("stream", Part("video", media=0, until=0.5)),
    says("assistant", "No."),
)


def clips_and_pictures() -> list[Made]:
    clips = [("video", f"{c}.mp4", small_dataset.clip(c, True)) for c in small_dataset.COLOURS]
    pictures = [("image", f"{i}.jpg", small_dataset.picture("red", "circle", i)) for i in range(6)]
    return [
        *(Made(f"clip-{i}", "video", "What happens?", "It moves.", (clip,)) for i, clip in enumerate(clips)),
        *(Made(f"p{i}", "vqa", "What is it?", "a red circle", (picture,)) for i, picture in enumerate(pictures)),
        Made("both", "multi_image", "Compare.", "One moves.", (pictures[0], clips[1], pictures[3])),
        Made("words", "text", "What is it?", "It is a text."),
        Made("live", "streaming", "", "", (clips[2], pictures[2]), STREAM),
    ]


@pytest.mark.parametrize("compress", [True, False])
def test_compression_is_the_stored_mask_or_none(tmp_path: Path, compress: bool) -> None:
    corpus = made(tmp_path, clips_and_pictures())
    loader = corpus.loader(replace(CONFIG, compress=compress), Mixture(where="task = 'video'"))
    found = [batch for step in batches(loader) for batch in step if batch.items]
    measured = [row["tiny"] for row in items(loader.plan)]
    visual, kept = (sum(m[name] for m in measured) for name in ("visual_tokens", "kept_tokens"))
    assert 0 < kept < visual
    expected = kept if compress else visual
    assert sum(batch.counts.kept for batch in found) == expected
    assert sum(int(b.video_compression_mask.sum()) for b in found if b.video_compression_mask is not None) == expected
    video_id = corpus.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert sum(int((batch.input_ids == video_id).sum()) for batch in found) == expected


def test_loaded_packs_do_not_leak(tmp_path: Path) -> None:
    """From shards to logits: pictures, compressed clips, both in one item, text, and a stream with a picture, packed and one by one."""
    corpus = made(tmp_path, clips_and_pictures())
    ids = {name: corpus.tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    shape = TinyShape(hidden=64, llm_layers=2, heads=4, kv_heads=2, vision_hidden=64, vision_layers=2, vision_heads=4)
    special = {"image_token_id": ids["image"], "video_token_id": ids["video"], "eos_token_id": 0}
    model: Any = build_tiny(len(corpus.tokenizer), shape, special, 0).eval()

    def logits(batch: PackBatch, **other: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch.model_inputs() | other, use_cache=False).logits[0]

    alone = replace(CONFIG, packs=1)
    [step] = corpus.loader(replace(alone, seq_tokens=4096, pack_patches=100_000, window_shards=9)).steps()
    [pack] = step.batches
    together, item = logits(pack), (pack.position_ids[0] == 0).cumsum(0) - 1
    assert len(pack.items) == len(clips_and_pictures())
    leaking = logits(pack, position_ids=torch.arange(len(item))[None])
    assert (together - leaking).abs().max() > 1e-2  # what the bound below would see
    for number, name in enumerate(pack.items):
        [step] = corpus.loader(alone, Mixture(where=f"uid = '{name.uid}'")).steps()
        expected = logits(step.batches[0])
        assert (together[item == number] - expected).abs().max() <= 1e-5


def test_a_stream_is_decoded_and_counted_once(tmp_path: Path) -> None:
    corpus = made(tmp_path, [one for one in clips_and_pictures() if one.key in ("live", "clip-2")])
    loader = corpus.loader(replace(CONFIG, packs=1), Mixture(where="task = 'streaming'"))
    [step] = loader.steps()
    [row], [pack] = items(loader.plan), step.batches
    clip, picture = row["tiny"]["media"]
    assert [(m["t"], m["times"]) for m in (clip, picture)] == [(3, [0.0, 0.25, 0.5]), (1, [])]
    assert pack.video_grid_thw is not None
    assert pack.video_grid_thw.tolist() == [[3, clip["h"], clip["w"]]]
    assert pack.counts.patches == row["tiny"]["patches"] == clip["h"] * clip["w"] * 3 + picture["h"] * picture["w"]
    assert 0 < pack.counts.kept < pack.counts.visual
    (one,) = [sample for sample in clips_and_pictures() if sample.key == "live"]
    dataset = Dataset.open(str(corpus.path))
    [json_bytes] = [r["json"]["length"] for r in dataset.index(["uid", "json"]).to_pylist() if r["uid"] == one.uid]
    assert step.bytes_used == json_bytes + sum(len(data) for _, _, data in one.media)


def test_repeats_of_a_mixture_are_loaded(small: Corpus) -> None:
    loader = small.loader(mixture=Mixture(tasks={"video": 1, "text": 1}))
    arrived = Counter(name for step in batches(loader) for batch in step for name in batch.items)
    assert arrived == planned(loader.plan)
    assert max(name.repeat for name in arrived) >= 1


def test_leaving_early_ends_the_threads(small: Corpus) -> None:
    steps = small.loader(workers=2).steps()
    next(steps)
    assert isinstance(steps, Iterator)
    steps.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("fovea-loader")]


def copy_of(tmp_path: Path) -> Corpus:
    path, words = small_dataset.write(tmp_path)
    return Corpus(path, load_tokenizer(words), load_profile("tiny", tokenizer_digest(words)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_member_leaves_its_packs_and_nothing_else(small: Corpus, tmp_path: Path, workers: int) -> None:
    corpus = copy_of(tmp_path)
    dataset = Dataset.open(str(corpus.path))
    row = next(r for r in dataset.index(split="train").to_pylist() if r["key"] == "picture-05")
    tar = corpus.path / next(s.path for s in dataset.manifest.shards if s.name == row["shard"])
    with tar.open("r+b") as file:
        file.seek(row["media"][0]["offset"] + 40)
        file.write(b"\0\0\0\0\0\0")
    told: list[tuple[str, str, int, str, str, str, int]] = []
    damaged = list(corpus.loader(workers=workers, skipped=lambda *lost: told.append(lost)).steps())
    whole = list(small.loader().steps())
    assert [(uid, task, n) for uid, task, n, *_ in sorted(told)] == [(row["uid"], t, 0) for t in ("document", "short_caption", "vqa")]
    assert all((source, kind) == ("made", "damaged") and "checksum" in reason for *_, source, kind, reason, _ in told)
    assert len(damaged) == len(whole)
    for step, good in zip(damaged, whole, strict=True):
        for batch, before in zip(step.batches, good.batches, strict=True):
            assert batch.items == tuple(name for name in before.items if name.uid != row["uid"])
            lost = [name for name in before.items if name.uid == row["uid"]]
            assert [s.name for s in batch.skipped] == lost
            assert all((name.uid, name.task, name.n) in {t[:3] for t in told if t[-1] == step.number} for name in lost)
            assert lost or same(batch, before)


def test_a_tar_that_is_gone_or_cut_ends_the_run(tmp_path: Path) -> None:
    corpus = copy_of(tmp_path)
    loader = corpus.loader(workers=1)
    tar = next(corpus.path.rglob("train-000000.tar"))
    whole = tar.read_bytes()
    for damage in (whole[: len(whole) // 2], None):
        tar.unlink()
        if damage is not None:
            tar.write_bytes(damage)
        with pytest.raises(ShardError, match="gone or cut; restore the tar"):
            list(corpus.loader(workers=1).steps())
    tar.write_bytes(whole)
    assert len(list(loader.steps())) == loader.plan.steps_total


def test_another_profile_or_tokenizer_is_refused(small: Corpus, tmp_path: Path) -> None:
    for profile in (load_profile("tiny_video", small.profile.tokenizer), replace(small.profile, threshold=9.0)):
        other = replace(small, profile=profile)
        with pytest.raises(ProfileError, match=f"given '{profile.name}'.*measured with"):
            other.loader()
    loader = replace(small, tokenizer=train_tokenizer(["other words altogether"], tmp_path, 300)).loader(workers=2)
    with pytest.raises(ProfileError, match="planned were"):
        list(loader.steps())


def test_a_picture_that_no_longer_decodes_leaves_its_pack(tmp_path: Path) -> None:
    """Its checksum is right, its bytes are not a whole picture: a decoder that became stricter would do the same."""
    pictures = [one for one in clips_and_pictures() if one.task == "vqa"]
    whole = pictures[2].media[0][2]
    corpus = made(tmp_path, pictures, p2=whole[: len(whole) // 2])
    told: list[tuple[str, str, int, str, str, str, int]] = []
    loader = corpus.loader(skipped=lambda *lost: told.append(lost))
    arrived = {name.uid for step in batches(loader) for batch in step for name in batch.items}
    assert arrived == {p.uid for p in pictures} - {pictures[2].uid}
    assert [(uid, task, n) for uid, task, n, *_ in told] == [(pictures[2].uid, "vqa", 0)]
    assert told[0][3:5] == ("real", "decode")


def test_real_photographs_clips_and_texts(data_dir: Path, qwen_tokenizer_dir: Path, tmp_path: Path) -> None:
    samples = real_samples(data_dir)
    profile = load_profile("tiny", tokenizer_digest(qwen_tokenizer_dir))
    tokenizer = load_tokenizer(qwen_tokenizer_dir)
    path = write_dataset(tmp_path, samples, profile, tokenizer)
    loader = Corpus(path, tokenizer, profile).loader(replace(CONFIG, seq_tokens=1024, packs=2, pack_patches=2048), workers=2)
    found = [batch for step in batches(loader) for batch in step]
    arrived = Counter(name.uid for batch in found for name in batch.items)
    assert arrived == Counter(sample.uid for sample in samples)
    answers = {sample.uid: sample.answer for sample in samples}
    for batch in found:
        for number, name in enumerate(batch.items):
            mine = (batch.position_ids[0] == 0).cumsum(0) - 1 == number
            labels = batch.labels[0][mine]
            assert tokenizer.decode(labels[labels != -100]) == answers[name.uid] + "<|im_end|>"
        image_tokens, video_tokens = (
            int((batch.input_ids == tokenizer.convert_tokens_to_ids(t)).sum()) for t in ("<|image_pad|>", "<|video_pad|>")
        )
        assert image_tokens + video_tokens == batch.counts.kept
        assert batch.pixel_values is None or batch.pixel_values.abs().max() <= 1

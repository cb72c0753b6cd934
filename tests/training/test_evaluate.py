"""A model that was taught a split's answers: its scores can be traced to items, and are the same on every run, rank and layout."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shards.errors import ConfigError, InfrastructureError, ProfileError, ShardError
from shards.media import Limits
from shards.places import PlacesReader
from shards.profile import load_profile
from shards.reader import Dataset
from shards.tokenizer import load_tokenizer, tokenizer_digest
from tests.training import asked, forked, hand_evaluate, handmade
from training import questions
from training.answers import score_answers
from training.evaluate import held_out_loss
from training.evaluation import Evaluation, score_checkpoint
from training.export import export

GOLD = {"short_caption": "captions", "multi_image": "answers"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model that knows the answers of a dataset, as the end of a stage."""
    stage = asked.finished_stage(tmp_path_factory.mktemp("evaluate"), 150)
    assert stage.losses[-1] < 0.05
    return stage


def _scored(made: SimpleNamespace, checkpoint: Path | None = None, **arguments: Any) -> Evaluation:
    return score_checkpoint(checkpoint or made.final, arguments.pop("dataset", made.dataset), **{"packs": 4, "new_tokens": 24} | arguments)


@pytest.fixture(scope="module")
def found(made: SimpleNamespace) -> Evaluation:
    return _scored(made, gold=GOLD, out=made.folder / "answers.jsonl")


def test_a_model_that_knows_the_answers_gives_them(found: Evaluation) -> None:
    values = {task: {name: (score.value, score.n) for name, score in scores.items()} for task, scores in found.scores.items()}
    assert values["vqa"] == {"exact_match": (1.0, 1), "choice": (1.0, 1), "named": (1.0, 1)}
    assert values["multi_image"] == {"exact_match": (1.0, 2)}
    assert values["video"] == values["text"] == {"exact_match": (1.0, 1)}
    assert values["short_caption"]["bleu4"] == (pytest.approx(1.0), 2)
    assert values["short_caption"].keys() == {"bleu4", "rouge_l", "cider_d"}
    assert (found.asked, len(found.answers), found.unasked, found.cut) == (7, 8, 1, 0)


def test_every_number_can_be_traced_to_its_answers(made: SimpleNamespace, found: Evaluation) -> None:
    lines = [json.loads(line) for line in (made.folder / "answers.jsonl").read_text().splitlines()]
    answers = [line for line in lines if "error" not in line]
    assert [tuple(line[k] for k in ("uid", "task", "n", "turn")) for line in answers] == [
        (a.uid, a.task, a.n, a.turn) for a in found.answers
    ]
    for task, scores in found.scores.items():
        for name in set(scores) - {"bleu4"}:
            values = [line["scores"][name] for line in answers if line["task"] == task and name in line["scores"]]
            assert (sum(values) / len(values), len(values)) == (pytest.approx(scores[name].value), scores[name].n)
    by_uid = {(line["uid"], line["turn"]): line for line in answers}
    second = by_uid[made.uid["turns"], 1]
    assert (second["question"], second["gold"], second["source"]) == ("<image>\nAnd now?", ["blue", "navy", "sky"], "made")
    assert by_uid[made.uid["choice"], 0]["options"] == {"A": "a circle", "B": "a bar"}
    assert by_uid[made.uid["caption-0"], 0]["gold"][1:] == ["a square of red", "one red square"]
    assert by_uid[made.uid["caption-0"], 0]["answer"] == "A red square on grey, number 0."
    assert _again(found) == tuple(found.answers)


def _again(found: Evaluation) -> tuple[Any, ...]:
    return tuple(score_answers([replace(a, scores={}) for a in found.answers], ["auto"])[0])


def test_what_cannot_be_decoded_is_told_and_in_no_score(made: SimpleNamespace, found: Evaluation) -> None:
    (lost,) = found.failed
    assert (lost.uid, lost.task, lost.source, lost.kind) == (made.uid["broken"], "vqa", "made", "decode")
    assert found.loss is not None
    assert (found.loss.items, found.loss.skipped) == (8, 1)
    last = json.loads((made.folder / "answers.jsonl").read_text().splitlines()[-1])
    assert (last["uid"], last["error"]) == (lost.uid, "decode")
    assert found.scores["vqa"]["exact_match"].n == 1


def test_the_loss_is_told_of_tasks_and_of_sources(found: Evaluation) -> None:
    loss = found.loss
    assert loss is not None
    assert set(loss.loss_by_task) == {"vqa", "multi_image", "video", "text", "short_caption"}
    assert set(loss.loss_by_source) == {"made", "other"}
    assert loss.loss_by_task["text"] > 10 * loss.loss_by_task["vqa"], "the running text was not taught"
    assert min(loss.loss_by_source.values()) < loss.loss < max(loss.loss_by_source.values())


def test_losses_are_means_over_labelled_tokens_by_whatever_name() -> None:
    model = handmade.model()
    items = [handmade.item(kind, seed, length) for kind, seed, length in (("image", 1, 4), ("text", 2, 9), ("text", 3, 2), ("video", 4, 5))]
    items = [replace(one, name=replace(one.name, source="odd" if seed % 2 else "even")) for seed, one in enumerate(items)]
    whole = held_out_loss(model, [handmade.packed(items[:2]), handmade.packed(items[2:]), handmade.packed([])])
    single = [held_out_loss(model, [handmade.packed([one])]) for one in items]

    def mean(of: list[int]) -> float:
        return sum(single[i].loss * single[i].labelled for i in of) / sum(single[i].labelled for i in of)

    assert (whole.items, whole.labelled) == (4, sum(one.labelled for one in single))
    assert whole.loss == pytest.approx(mean([0, 1, 2, 3]), rel=1e-5)
    assert whole.loss_by_source == {"even": pytest.approx(mean([0, 2]), rel=1e-5), "odd": pytest.approx(mean([1, 3]), rel=1e-5)}
    assert whole.loss_by_task["text"] == pytest.approx(mean([1, 2]), rel=1e-5)
    assert whole.loss_by_task.keys() == {"short_caption", "text", "video"}


def test_two_ranks_give_what_one_gives(made: SimpleNamespace, tmp_path: Path) -> None:
    codes, said = forked.run(hand_evaluate.main, [made.final, made.dataset, tmp_path / "two"], ranks=2)
    assert codes == [0, 0], said[-3000:]
    alone = _scored(made, metrics=hand_evaluate.METRICS, new_tokens=8, batch=2, out=tmp_path / "one.jsonl")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    ranks = [json.loads((tmp_path / f"two.{rank}.json").read_text()) for rank in (0, 1)]
    assert len(ranks[0]["answers"]) == len(alone.answers)
    assert ranks[1] == {**ranks[0], "answers": [], "failed": []}, "they are gathered on rank 0 alone"
    assert ranks[0]["scores"] == {task: {name: asdict(s) for name, s in scores.items()} for task, scores in alone.scores.items()}
    assert alone.loss is not None
    assert ranks[0]["loss"]["loss"] == pytest.approx(alone.loss.loss, rel=1e-5)
    assert (ranks[0]["loss"]["items"], ranks[0]["loss"]["skipped"]) == (8, 1)
    assert alone.cut > 0


def test_some_items_of_each_task_are_always_the_same(made: SimpleNamespace, found: Evaluation) -> None:
    some, again = (_scored(made, metrics=["exact_match"], items=1, gold=GOLD) for _ in range(2))
    assert some == again
    assert {(a.task, a.n) for a in some.answers} >= {("short_caption", 0), ("video", 0), ("multi_image", 0)}
    assert len({a.uid for a in some.answers if a.task == "short_caption"}) == 1
    known = {(a.uid, a.turn): a.answer for a in found.answers}
    assert all(known[a.uid, a.turn] == a.answer for a in some.answers)
    assert some.loss is None
    assert all(set(scores) == {"exact_match"} for scores in some.scores.values())


def test_no_more_than_a_shard_is_held_whatever_the_dataset(
    made: SimpleNamespace, found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the index or the catalogue of all shards was made")

    monkeypatch.setattr(Dataset, "_catalogue", never)
    monkeypatch.setattr(Dataset, "index", never)
    monkeypatch.setattr(questions, "_ROWS", 1)
    tokenizer = load_tokenizer(made.folder / "words")
    profile = load_profile("tiny_video", tokenizer_digest(made.folder / "words"))
    dataset = asked.write(tmp_path, asked.samples(), tokenizer, profile, shards=3)
    with closing(PlacesReader(Dataset.open(dataset), 1)) as reader:
        asker = questions.Asker(reader, profile, tokenizer, True, {}, Limits())
        tables = list(asker.tables(asker.choose("val", None)))
        some = [shard for table in asker.tables(asker.choose("val", 1)) for shard in table["shard"].to_pylist()]
    shards = [info.path for info in reader.dataset.manifest.shards]
    assert [(table["shard"].to_pylist(), len(table)) for table in tables] == [([shard] * 3, 3) for shard in shards]
    assert 1 < len(set(some)) <= len(some) == 5, "one of each task, wherever it lies"
    apart = _scored(made, dataset=str(dataset), metrics=["exact_match"], gold=GOLD)
    assert [(a.uid, a.turn, a.answer, a.gold) for a in apart.answers] == [(a.uid, a.turn, a.answer, a.gold) for a in found.answers]
    assert ([f.uid for f in apart.failed], apart.unasked) == ([f.uid for f in found.failed], found.unasked)
    chosen = [_scored(made, dataset=str(path), metrics=["exact_match"], items=1) for path in (dataset, made.dataset)]
    assert chosen[0].answers == chosen[1].answers


def test_the_loss_alone_asks_nothing(made: SimpleNamespace, found: Evaluation) -> None:
    alone = _scored(made, metrics=["loss"])
    assert (alone.loss, alone.answers, alone.failed, alone.scores) == (found.loss, (), (), {})


def test_an_export_and_a_plain_directory_answer_alike(made: SimpleNamespace, found: Evaluation, tmp_path: Path) -> None:
    out = export(made.final, tmp_path / "export")
    assert _scored(made, out, gold=GOLD).answers == found.answers
    (out / "fovea.json").unlink()
    with pytest.raises(ConfigError, match="--profile"):
        _scored(made, out)
    plain = _scored(made, out, gold=GOLD, profile="tiny_video")
    assert plain.compress, "its processor says so"
    assert plain.answers == found.answers
    assert plain.loss is not None
    assert found.loss is not None
    assert plain.loss.loss == pytest.approx(found.loss.loss, rel=1e-5)
    whole = _scored(made, out, metrics=["loss"], profile="tiny_video", compress=False)
    assert not whole.compress
    assert whole.loss is not None
    assert whole.loss.loss_by_task["video"] != pytest.approx(found.loss.loss_by_task["video"], rel=1e-3)
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        (out / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="--compress or --no-compress"):
        _scored(made, out, profile="tiny_video")


def test_bfloat16_is_evaluated_as_such(made: SimpleNamespace, found: Evaluation) -> None:
    rounded = _scored(made, metrics=["loss"], precision="bf16")
    assert rounded.loss is not None
    assert found.loss is not None
    assert rounded.loss.loss != found.loss.loss
    assert rounded.loss.loss == pytest.approx(found.loss.loss, rel=0.1)


def test_what_cannot_be_evaluated_is_told(made: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ShardError, match="no split 'test'; it has val"):
        _scored(made, split="test")
    with pytest.raises(InfrastructureError, match="no finished stage"):
        _scored(made, made.folder / "words")
    for out in (made.folder / "words", made.folder / "words" / "tokenizer.json" / "answers.jsonl"):
        with pytest.raises(InfrastructureError, match="could not be written"):  # before the model is looked at, not after hours
            _scored(made, made.folder / "words", out=out)
    with pytest.raises(ConfigError, match=r"says itself .* leave out profile, compress"):
        _scored(made, profile="tiny", compress=True)
    with pytest.raises(ConfigError, match="unknown task 'caption'"):
        _scored(made, gold={"caption": "captions"})
    with pytest.raises(ConfigError, match="holds no gold answers for 2 turns"):
        _scored(made, metrics=["anls"], gold={"": "one"})
    caplog.clear()
    assert all(len(a.gold) == 1 for a in _scored(made, metrics=["anls"], gold={"vqa": "aswers"}).answers)
    assert "no record of the items that were asked has a field 'aswers'" in caplog.text
    other = made.folder / "other"
    shutil.copytree(made.final, other)
    facts = json.loads((other / "fovea.json").read_text())
    (other / "fovea.json").write_text(json.dumps({**facts, "profile": {**facts["profile"], "fps": 3.0}}))
    with pytest.raises(ProfileError, match="measure the dataset"):
        _scored(made, other, metrics=["anls"])
    (other / "fovea.json").write_text(json.dumps({"stage": 1}))
    with pytest.raises(InfrastructureError, match="not what this version writes"):
        _scored(made, other)


def test_a_shard_that_is_gone_ends_the_evaluation(made: SimpleNamespace, tmp_path: Path) -> None:
    cut = tmp_path / "dataset"
    shutil.copytree(made.dataset, cut)
    tar = next(cut.glob("v-*/*.tar"))
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(ShardError, match="gone or cut"):
        _scored(made, dataset=str(cut), metrics=["exact_match"])


def test_one_damaged_byte_costs_one_item(made: SimpleNamespace, found: Evaluation, tmp_path: Path) -> None:
    damaged = tmp_path / "dataset"
    shutil.copytree(made.dataset, damaged)
    row = next(r for r in Dataset.open(damaged).index(split="val").to_pylist() if r["uid"] == made.uid["colour"])
    tar = next(damaged.glob("v-*/*.tar"))
    content = bytearray(tar.read_bytes())
    content[row["media"][0]["offset"] + 20] ^= 0xFF
    tar.write_bytes(bytes(content))
    left = _scored(made, dataset=str(damaged), metrics=["exact_match"], gold=GOLD)
    assert {(f.uid, f.kind) for f in left.failed} == {(made.uid["colour"], "shard"), (made.uid["broken"], "decode")}
    assert [a.uid for a in left.answers] == [a.uid for a in found.answers if a.uid != made.uid["colour"]]
    assert torch.distributed.is_initialized()

"""Runs the stages in order: in one process, or in each of those that torchrun, deepspeed or Ray Train start. Safe to repeat; a process that
is alone imports torch when there is work."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, FoveaError
from shards.profile import Profile, load_profile
from shards.sample import digest_of
from training.agreement import first_works
from training.checkpoint import final_dir, latest_state, save_final, stage_dir
from training.config_text import load_training_config
from training.durable import replace_text
from training.preflight import plan_stages, refuse_unshared
from training.rank_group import StopRequest, agreed, from_first, one_run, refuse_different
from training.run_mark import only_run
from training.skips import join_skips
from training.stage_chain import (
    StageReport,
    TrainReport,
    as_report,
    chosen_stages,
    finished_before,
    finished_stages,
    forget_leftovers,
    stage_before,
)
from training.stages import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from shards.reader import Dataset
    from training.engine import Ranks
    from training.evaluate import HeldOut
    from training.feed import DatasetFeed
    from training.metrics import Metrics

log = logging.getLogger("fovea")


def train(
    config: TrainingConfig | str | Path,
    dataset: str | None,
    out_dir: str | Path,
    *,
    tokenizer: str | None = None,
    stages: Sequence[int] | None = None,
    resume: bool = True,
) -> TrainReport:
    """Trains the stages of `config` (all, or those named) that are not finished under `out_dir`, each from the weights of the one before.

    dataset    folder or URL; default config.dataset. tokenizer: directory; default config.tokenizer.
    resume     continue from checkpoints; False refuses to start where a stage has some.
    Ranks of a launcher (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT in the environment) all call this alike, with one `out_dir`
    on a file system that they share. Writes checkpoints/stage<k>/, metrics.jsonl, tensorboard/ and skipped.jsonl under it.
    Raises ConfigError, ProfileError, ShardError, InfrastructureError and training.engine.TrainingStopped, all with what to do. Of several
    ranks one raises it, the others training.rank_group.EndedElsewhere; where one died without a word, another raises InfrastructureError.
    A SIGTERM in a step is answered after it with a checkpoint and training.rank_group.Preempted.
    """
    out = Path(out_dir)
    with one_run(out) as ranks, StopRequest().listening() as stop:
        settings = agreed(ranks, lambda: config if isinstance(config, TrainingConfig) else load_training_config(config))
        chosen = agreed(ranks, lambda: chosen_stages(settings, stages))
        refuse_different(ranks, "config and stages", digest_of(settings.model_dump(mode="json"), chosen))
        reports = from_first(ranks, lambda: finished_stages(settings, out, chosen))
        from_first(ranks, partial(forget_leftovers, out, tuple(reports)))
        pending = [number for number in chosen if number not in reports]
        if pending:
            going_on = resume or _started_again()
            work = agreed(ranks, lambda: _Work.prepare(settings, dataset, tokenizer, out, pending, going_on, ranks, stop))
            refuse_different(ranks, "dataset and tokenizer", work.data_version)
            if ranks is not None:
                first_works(ranks, partial(plan_stages, settings, pending, work.dataset, work.tokenizer, work.digest, out, ranks.world))
            with ExitStack() as running:
                from_first(work.ranks, lambda: running.enter_context(only_run(out)))
                for number in pending:
                    reports[number] = work.train_stage(number)
                work.metrics.close()
        else:
            log.info("all is done: stages %s under %s", ", ".join(map(str, chosen)), out)
    return TrainReport(tuple(reports[number] for number in chosen))


@dataclass(frozen=True, slots=True)
class _Work:
    """What all stages share."""

    config: TrainingConfig
    out: Path
    dataset: Dataset
    tokenizer: Any
    tokenizer_dir: Path
    ranks: Ranks
    metrics: Metrics
    stop: StopRequest
    digest: str

    @property
    def data_version(self) -> str:
        return f"{self.dataset.manifest.version}, tokenizer {self.digest}"

    @staticmethod
    def prepare(
        config: TrainingConfig,
        dataset: str | None,
        tokenizer: str | None,
        out: Path,
        pending: Sequence[int],
        resume: bool,
        ranks: Ranks | None,
        stop: StopRequest,
    ) -> _Work:
        for number in pending:
            if not resume and latest_state(stage_dir(out, number)) is not None:
                raise ConfigError(f"{stage_dir(out, number)} has checkpoints; resume, or give another output directory, or delete it")
            refuse_unshared(number, config.stages[number].step.packs, 1 if ranks is None else ranks.world)
        where, words = dataset or config.dataset, tokenizer or config.tokenizer
        if where is None:
            raise ConfigError(f"{config.name}: no dataset; name its folder on the command line, or set `dataset:` in the config")
        if words is None:
            raise ConfigError(f"{config.name}: no tokenizer; name its directory on the command line, or set `tokenizer:` in the config")
        from transformers.utils.logging import disable_progress_bar

        from shards.reader import Dataset
        from shards.tokenizer import load_tokenizer, tokenizer_digest
        from training.engine import start_ranks
        from training.metrics import Metrics
        from training.preflight import refuse_other_tokenizer

        disable_progress_bar()  # transformers' own, at every saving and loading
        opened, loaded, digest = Dataset.open(where), load_tokenizer(Path(words)), tokenizer_digest(words)
        before = stage_before(config, pending[0])
        if before is not None:
            refuse_other_tokenizer(final_dir(out, before), finished_before(config, out, pending[0], before), digest)
        if ranks is None:
            plan_stages(config, pending, opened, loaded, digest, out, 1)
            ranks = start_ranks()
            out.mkdir(parents=True, exist_ok=True)
        return _Work(config, out, opened, loaded, Path(words), ranks, Metrics(out, ranks.rank == 0, config.wandb), stop, digest)

    def train_stage(self, number: int) -> StageReport:
        from shards.tokenizer import tokenizer_digest
        from training.loop import run_stage
        from training.preflight import refuse_other_patch

        stage = self.config.stages[number]
        profile = load_profile(stage.profile, tokenizer_digest(self.tokenizer_dir))
        model: Any = self._starting_model(number)
        if stage.adapters:
            from training.adapters import add_adapters, merge_adapters

            add_adapters(model, stage.adapters, self.config.seed + number)
        refuse_other_patch(model.config.vision_config.patch_size, profile)
        feed = self._feed(number, profile)
        log.info("stage %d: %d steps a pass over %s", number, feed.steps(0), self.dataset.manifest.version)
        before = self._before(number, model, profile)
        with self._skips_joined(number):
            steps = run_stage(model, number, self.config, feed, self.out, self.ranks, self.metrics, self.stop)
        skipped = from_first(self.ranks, partial(join_skips, self.out, number))
        if skipped and self.ranks.rank == 0:
            told = ", ".join(f"{kind} {count:,}" for kind, count in skipped.items())
            log.warning("stage %d: items that left their packs: %s; %s lists them", number, told, self.out / "skipped.jsonl")
        if stage.adapters:
            written = stage_dir(self.out, number) / "adapters" if self.ranks.rank == 0 else None
            agreed(self.ranks, lambda: merge_adapters(model, written))
        after = self._held_out(number, model, profile)
        self._write(number, steps, after)
        facts = {
            "name": self.config.name,
            "stage": number,
            "stage_digest": self.config.stage_digest(number),
            "steps": steps,
            "dataset": self.dataset.manifest.version,
            "profile": asdict(profile),
            "compress": stage.compress,
            "block": stage.model_dump(mode="json"),
            "before": before,
            "after": None if after is None else asdict(after),
            "skipped": skipped,
        }
        save_final(model, self.out, number, facts, self.ranks, beside=tokenizer_files(self.tokenizer_dir))
        return as_report(self.out, number, facts, done_before=False)

    @contextmanager
    def _skips_joined(self, number: int) -> Iterator[None]:
        """A stage that ends before it is done leaves the list of what it skipped, too."""
        try:
            yield
        except FoveaError:
            if self.ranks.rank == 0:
                join_skips(self.out, number)
            raise

    def _starting_model(self, number: int) -> nn.Module:
        from training.model import DTYPES, build_model, from_hf

        before = stage_before(self.config, number)
        if before is None:
            model = build_model(self.config.model, self.tokenizer, self.config.seed)
        else:
            finished_before(self.config, self.out, number, before)
            model = from_hf(final_dir(self.out, before), DTYPES[self.config.model.precision])
        return _placed(model, self.config)

    def _feed(self, number: int, profile: Profile) -> DatasetFeed:
        from training.feed import DatasetFeed
        from training.stage_plan import TRAIN_SPLIT, mixture_of, plan_config, stage_cost

        stage = self.config.stages[number]
        return DatasetFeed(
            self.dataset,
            TRAIN_SPLIT,
            mixture_of(stage.mixture),
            plan_config(stage, self.config.seed, profile.name),
            profile,
            self.tokenizer,
            self.ranks,
            workers=self.config.workers,
            cost=partial(stage_cost, self.config, number, len(self.tokenizer)),
            begun=latest_state(stage_dir(self.out, number)) is not None,
            stage=number,
            skips=self.out / f"skipped-{self.ranks.rank}.jsonl",
            plans=self.out / "plans",
            cache=self.config.cache,
            limit=self.config.skipped,
        )

    def _before(self, number: int, model: nn.Module, profile: Profile) -> float | None:
        """Held-out loss at the start of the stage; noted, for a stage that is continued tells it no more."""
        note = stage_dir(self.out, number) / "before.json"

        def noted() -> tuple[bool, dict[str, float | None] | None]:
            begun = latest_state(stage_dir(self.out, number)) is not None
            return begun, _loss_noted(note) if begun else None

        begun, found = from_first(self.ranks, noted)
        if found is not None:
            return found["loss"]
        if not begun:
            self.metrics.forget_after(number, -1)
        held_out = self._held_out(number, model, profile)
        if not begun:
            self._write(number, 0, held_out)
        loss = None if held_out is None else held_out.loss
        agreed(self.ranks, lambda: replace_text(note, json.dumps({"loss": loss})) if self.ranks.rank == 0 else None)
        return loss

    def _held_out(self, number: int, model: nn.Module, profile: Profile) -> HeldOut | None:
        from training.evaluate import evaluate
        from training.preflight import has_items

        stage, config = self.config.stages[number], self.config
        if not has_items(self.dataset, config.held_out):
            log.warning("the dataset has no items in split %r: no loss is measured on unseen items", config.held_out)
            return None
        held_out = evaluate(model, self.dataset, self.tokenizer, profile, stage, config.held_out, config.held_out_packs, self.ranks)
        log.info("stage %d held-out loss %.4f", number, held_out.loss)
        return held_out if held_out.labelled else None

    def _write(self, number: int, step: int, held_out: HeldOut | None) -> None:
        if held_out is not None and math.isfinite(held_out.loss):
            self.metrics.write({"kind": "held_out", "stage": number, "step": step, **asdict(held_out)})


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer's directory that are kept beside weights."""
    return sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".jinja") and p.is_file() and p.name != "config.json")


def _loss_noted(note: Path) -> dict[str, float | None] | None:
    """None where there is no note, or a damaged one: it is measured again then."""
    try:
        found: dict[str, float | None] = json.loads(note.read_text("utf-8"))
        return {"loss": found["loss"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: damaged (%s); the loss before the stage is measured again", note, error)
        return None


def _started_again() -> bool:
    """Whether a launcher started these ranks a second time, after one of them died: then their own checkpoints are what they go on from."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _placed(model: nn.Module, config: TrainingConfig) -> nn.Module:
    """On this rank's device, in the precision and by the attention of training, so that losses before and after are of one kind."""
    from training.attention import chosen_attention, use_attention
    from training.engine import rank_device
    from training.model import cast_weights

    device = rank_device()
    use_attention(model, chosen_attention(config.model.attn, device, config.model.precision))
    return cast_weights(model, config.model.precision).to(device)

"""What is refused before the first step of the first stage: a stage that could not begin must not be found out days later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shards.errors import ConfigError, FoveaError, ProfileError
from shards.profile import Profile, load_profile
from training.census import in_order
from training.checkpoint import latest_state, stage_dir

if TYPE_CHECKING:
    from pathlib import Path

    from shards.reader import Dataset
    from training.candidates import Bounds
    from training.index_source import IndexSource
    from training.plan import Plan
    from training.stages import TrainingConfig


def refuse_unfit(
    config: TrainingConfig, stages: Sequence[int], dataset: Dataset, tokenizer: Any, tokenizer_digest: str, plans: Path | None = None
) -> dict[int, Plan]:
    """The plan of the first pass of each of `stages` over the dataset's index, made without a model and without reading a sample.

    Those that are kept in the folder `plans` are read; nothing is written.

    Raises ProfileError (a profile that the dataset does not carry, or carries otherwise; items that are not measured), ConfigError (shares
    that cannot hold, DeepSpeed settings that are not there, a `where` that cannot run, items too long for the budgets, another patch size
    than the model's), each with its stage.
    """
    from training.index_source import DatasetIndex
    from training.stage_plan import TRAIN_SPLIT, kept_plan, mixture_of, plan_config, plan_path, stage_cost
    from training.stages import deepspeed_json

    deepspeed_json(config.deepspeed)
    found = {}
    for number in stages:
        stage = config.stages[number]
        try:
            profile = load_profile(stage.profile, tokenizer_digest)
            _refuse_other_profile(profile, dataset.manifest.profiles)
            if config.model.preset == "tiny":
                refuse_other_patch(config.model.tiny.patch, profile)
            asked, cost = plan_config(stage, config.seed, profile.name), partial(stage_cost, config, number, len(tokenizer))
            source = DatasetIndex(dataset, TRAIN_SPLIT)
            path = None if plans is None else plan_path(plans, number, 0)
            found[number] = kept_plan(path, source, mixture_of(stage.mixture), asked, cost)
            if has_items(dataset, config.held_out):
                _refuse_unmeasured(DatasetIndex(dataset, config.held_out), asked.bounds)
        except FoveaError as error:
            raise type(error)(f"stage {number}: {error}") from error
    return found


def plan_stages(
    config: TrainingConfig, pending: Sequence[int], dataset: Dataset, tokenizer: Any, digest: str, out: Path, world: int
) -> None:
    """Plans the first pass of each stage over the index, and keeps the plans once nothing was refused. On one rank."""
    from training.stage_plan import keep_plan, plan_path

    plans = refuse_unfit(config, pending, dataset, tokenizer, digest, out / "plans")
    for number, plan in plans.items():
        refuse_unshared(number, plan.packs_per_step, world)
    for number, plan in plans.items():
        if latest_state(stage_dir(out, number)) is None:  # else its checkpoint names the one that is there
            keep_plan(plan_path(out / "plans", number, 0), plan)


def refuse_unshared(number: int, packs: int | None, world: int) -> None:
    """`packs` of a step, where they are known, must be a multiple of `world` ranks. Raises ConfigError."""
    if packs is not None and packs % world:
        fitting = ", ".join(str(n) for n in range(1, packs + 1) if packs % n == 0)
        raise ConfigError(
            f"stage {number}: a step of {packs} packs cannot be shared by {world} ranks; start {fitting}, or change the stage's `step`"
        )


def _refuse_unmeasured(source: IndexSource, bounds: Bounds) -> None:
    from training.candidates import candidates
    from training.stage_plan import THREADS

    for _ in in_order(partial(candidates, source, bounds=bounds, where=None), source.shards, THREADS):
        pass


def has_items(dataset: Dataset, split: str) -> bool:
    return bool(dataset.manifest.splits.get(split, {}).get("items"))


def refuse_other_patch(patch: int, profile: Profile) -> None:
    """`patch`: side of the model's patches, pixels."""
    if patch != profile.patch:
        raise ConfigError(
            f"the model has patches of {patch} pixels, profile {profile.name!r} measures with {profile.patch}; "
            "use a profile of the model's patch size, and a dataset measured under it"
        )


def refuse_other_tokenizer(weights: Path, facts: Mapping[str, Any], tokenizer_digest: str) -> None:
    """`facts`: what a finished stage noted. Its weights know the tokens of one tokenizer only."""
    trained = facts.get("profile", {}).get("tokenizer")
    if trained is not None and trained != tokenizer_digest:
        raise ConfigError(
            f"{weights} was trained with another tokenizer (digest {trained}, the one given has {tokenizer_digest}); "
            f"give --tokenizer {weights}, or train all stages again in another output directory"
        )


def _refuse_other_profile(profile: Profile, held: Mapping[str, Mapping[str, Any]]) -> None:
    found = held.get(profile.name)
    if found is None:
        raise ProfileError(
            f"the dataset has no counts under profile {profile.name!r} (it has {', '.join(sorted(held)) or 'none'}); "
            f"add `- measure: {{profile: {profile.name}}}` to its recipe and run it again"
        )
    if found.get("digest") == profile.digest:
        return
    if found.get("tokenizer") != profile.tokenizer:
        raise ProfileError(
            f"the dataset was measured under {profile.name!r} with another tokenizer (digest {found.get('tokenizer')}, the one given has "
            f"{profile.tokenizer}); give the one its recipe names, or measure the dataset again with this one"
        )
    raise ProfileError(
        f"the dataset's profile {profile.name!r} (digest {found.get('digest')}) is not today's of that name (digest {profile.digest}); "
        "measure the dataset again"
    )

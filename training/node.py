"""Which ranks share a machine, and which shards they read so much of that the whole tar is worth having there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shards.places import PlacesReader
from training.packing import deal
from training.plan import Plan

WHOLE = 0.5  # a tar is fetched whole where so much of its bytes is read within a window


@dataclass(frozen=True, slots=True)
class Node:
    """The ranks on one machine."""

    ranks: tuple[int, ...]

    @staticmethod
    def here(rank: int, world: int, environment: Mapping[str, str] = os.environ) -> Node:
        """This machine, as its launcher says (torchrun, the deepspeed launcher, Ray Train): ranks are numbered machine by machine.

        Where it does not say so, or numbers them otherwise, the rank counts as alone: then it shares less, and reads the same.
        """
        place = environment.get("LOCAL_RANK", "")
        size = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE", "")
        if not (place.isdecimal() and size.isdecimal()):
            return Node((rank,))
        ranks = range(rank - int(place), rank - int(place) + int(size))
        return Node(tuple(ranks)) if rank in ranks and ranks[0] >= 0 and ranks[-1] < world else Node((rank,))


def whole_shards(plan: Plan, window: int, node: Node, world: int, reader: PlacesReader) -> list[int]:
    """Shards (places in the manifest) of which the node's packs of a window's steps take at least half of the bytes; first needed first.

    A sample counts as often as packs read it. Raises ShardError as PlacesReader.find does.
    """
    shards: list[str] = []
    rows: list[int] = []
    packs: list[int] = []
    for step in plan.window(window).steps:
        hands = deal([pack.cost for pack in step.packs], world)
        for rank in node.ranks:
            for pack in (step.packs[p] for p in hands[rank]):
                reads = plan.reads_of(pack)
                shards += [shard for shard, _ in reads]
                rows += [row for _, row in reads]
                packs += [(packs[-1] if packs else 0) + 1] * len(reads)
    if not shards:
        return []
    shard, sample = reader.find(shards, np.array(rows))
    _, first = np.unique(np.stack([np.array(packs), shard, sample]), axis=1, return_index=True)
    first.sort()
    shard, sample = shard[first], sample[first]
    found = []
    for number in dict.fromkeys(shard.tolist()):
        members = reader.members({number})[number]
        if members.bytes[sample[shard == number]].sum() >= WHOLE * reader.dataset.manifest.shards[number].bytes:
            found.append(number)
    return found

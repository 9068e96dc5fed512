"""Independently trained networks of one architecture: the null of every claim of kinship."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.types import Spec
from stemma.zoo import data
from stemma.zoo.cache import VERSION, recall
from stemma.zoo.kinds import Schedule, kind_of
from stemma.zoo.memory import model_of
from stemma.zoo.training import Arrays, initial, seed_for, train

GROUP = 32
"""Networks that are trained at once."""


def independents(
    kind: str,
    count: int,
    seed: int = 0,
    *,
    part: str = "a",
    untrained: bool = False,
    config: Mapping[str, Any] | None = None,
    steps: int | None = None,
    keep: bool = True,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> list[Model]:
    """Networks of one architecture on the same data, each with its own random start and order of examples.

    Network `i` depends on `seed` and `i` alone (to rounding: batches of another size sum in another order), so that
    more of them are the first ones and others. Cost on one core: about 0.1 s per perceptron, 0.25 s per CNN, 3 s per
    vision transformer or language model; nothing once they are in the cache.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        count: How many.
        seed: Of the whole set; other seeds share no start.
        part: Which half of the data they learn, `a` or `b`.
        untrained: Leave them at their random start.
        config: Another architecture of the kind.
        steps: Updates, unless the kind's own number.
        keep: Use the cache.
        progress: Called with what happens, how many networks are done, and of how many.

    Returns:
        `count` models named `KIND-SEED-INDEX`.
    """
    own = kind_of(kind)
    config = dict(own.config if config is None else config)
    schedule = own.schedule if steps is None else Schedule(steps, own.schedule.batch, own.schedule.rate)
    models = []
    for start in range(0, count, GROUP):
        indices = range(start, min(start + GROUP, count))
        if progress is not None:
            progress(f"training {kind} networks", start, count)
        if untrained:
            group = [initial(config, seed_for(seed, i)) for i in indices]
        else:
            group = _group(kind, config, seed, indices, part, schedule, keep=keep)
        label = f"{kind}-untrained" if untrained else kind
        models += [model_of(f"{label}-{seed}-{i}", a, config) for i, a in zip(indices, group, strict=True)]
    return models


def _group(
    kind: str, config: Mapping[str, Any], seed: int, indices: range, part: str, schedule: Schedule, *, keep: bool
) -> list[Arrays]:
    def make() -> tuple[Arrays, Mapping[str, Any]]:
        starts = [initial(config, seed_for(seed, i)) for i in indices]
        seeds = [seed_for(seed, i, 1) for i in indices]
        ends = [kept[-1] for kept in train(config, starts, data.examples(kind, part), schedule, seeds)]
        return {n: np.stack([e[n] for e in ends]) for n in ends[0]}, config

    params = {"kind": kind, "config": config, "seed": seed, "first": indices[0], "count": len(indices), "part": part}
    stacked, _ = recall(Spec("independents", VERSION, {**params, "schedule": schedule}).digest, make, keep=keep)
    return [{n: t[i] for n, t in stacked.items()} for i in range(len(indices))]

"""Zoo families for training direction and parent models: trees of fine-tuned models, and families of all operations.

In a tree every child has a fine-tuning recipe of its own: an optimiser with or without weight decay, and rate, length
and strength of decay drawn anew. In every other tree they are those of usual fine-tuning, in the others anything from
a change that hardly shows to one larger than the weights. Siblings in a tree may learn the same. In a mixed family all
children have tasks of their own, and besides fine-tunings there are adapters, few examples, rare classes, long
trainings, pruned and quantised copies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stemma.training.histories import Family, Member
from stemma.types import RelationKind
from stemma.zoo.collection import Zoo
from stemma.zoo.lineages import FinetuningRecipe, as_zoo, mixed, tree
from stemma.zoo.optimizers import RATE_FACTOR
from stemma.zoo.recipe import Recipe

RECIPES: Mapping[str, tuple[str, tuple[float, float] | None]] = {
    "adam": ("adam", None),
    "adam-l2": ("adam", (1e-4, 3e-3)),
    "adamw": ("adamw", (1e-2, 0.5)),
    "sgd": ("sgd", None),
    "sgd-l2": ("sgd", (1e-4, 3e-3)),
    "momentum": ("momentum", None),
    "momentum-l2": ("momentum", (1e-4, 5e-3)),
}
"""Optimiser, and the range of its weight decay."""

TASKS = {
    "image": ("digit", "shuffled", "shuffled", "inverted", "rotated", "rotated+shuffled", "inverted+shuffled"),
    "text": ("digit", "shuffled", "shuffled"),
}
"""Tasks of children: what the parent knows on other examples, in another view, or under labels of their own. Two
siblings may learn the same."""

SHAPES = ((4, 4), (3, 2, 2), (8,), (2, 3), (5, 2))
"""Children of each model, generation by generation."""

SCHEDULES = ((1.0, "cosine"), (2.0, "constant"), (4.0, "cosine"))
"""Updates relative to the kind's own fine-tuning, and decay of the rate: few, so that many train together."""

USUAL_RATES, ANY_RATES = (1.5, 4.0), (0.4, 4.0)
"""Rates relative to the usual one of the optimiser; usual fine-tuning also takes the longer two of `SCHEDULES`."""

FAMILIES_AT_ONCE = 32
"""Families whose networks are trained together."""

INITIALISERS = ("torch", "torch", "orthogonal", "normal", "xavier")


def tunings(
    seed: int, recipes: Sequence[str] = tuple(RECIPES), *, usual: bool, each: int = 4
) -> list[FinetuningRecipe]:
    """Fine-tuning recipes, `each` of every name in `RECIPES`, drawn at random within each optimiser."""
    rng = np.random.default_rng([seed, 31])

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    out = []
    for name in recipes:
        rule, decay = RECIPES[name]
        for i in range(each):
            strength = 0.0 if decay is None else round(log_uniform(*decay), 6)
            steps, schedule = SCHEDULES[int(rng.integers(usual, len(SCHEDULES)))]
            rate = RATE_FACTOR[rule] * log_uniform(*(USUAL_RATES if usual else ANY_RATES))
            out.append(FinetuningRecipe(f"{name}-{i}", rule, rate, steps, strength, schedule))
    return out


@dataclass(frozen=True)
class Pedigree:
    """One family; `usual` says whether changes are as strong as in usual fine-tuning."""

    kind: str
    seed: int
    zoo: Zoo
    usual: bool

    @cached_property
    def family(self) -> Family:
        """The models with their ancestors."""
        members = tuple(
            Member(m.name, m.model, tuple(self.zoo.ancestors(m.name)), m.relation is RelationKind.QUANTIZED)
            for m in self.zoo.members
        )
        return Family(self.kind, self.seed, members)


def pedigrees(
    kind: str,
    seeds: Sequence[int],
    *,
    recipes: Sequence[str] = tuple(RECIPES),
    data: Sequence[str | None] = (None,),
    shapes: Sequence[Sequence[int]] = SHAPES,
    tasks: Sequence[str] | None = None,
    usual: bool | None = None,
    mixtures: bool = False,
    keep: bool = True,
) -> Iterator[Pedigree]:
    """Families that share nothing, one per seed, trained together.

    Cost on one core, first time: 1 to 3 s per family of perceptrons, five times as much for the other kinds.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seeds: One per family.
        recipes: Names in `RECIPES`.
        data: Data sets that children draw from; None is the kind's own.
        shapes: Children of each model, generation by generation; one is drawn per family.
        tasks: What children draw from; `TASKS` unless given.
        usual: Whether strengths are those of usual fine-tuning; in trees of odd seed unless given.
        mixtures: Mixed families instead of trees.
        keep: Use the zoo's cache.

    Yields:
        The families, in order.
    """
    tasks = tasks or TASKS["text" if kind == "lm" else "image"]
    for start in range(0, len(seeds), FAMILIES_AT_ONCE):
        batch = seeds[start : start + FAMILIES_AT_ONCE]
        usual_strength = [mixtures or (bool(seed % 2) if usual is None else usual) for seed in batch]
        recipe_sets = [
            _mixed_recipes(kind, seed, data)
            if mixtures
            else _tree_recipes(kind, seed, recipes, data, shapes, tasks, usual=u)
            for seed, u in zip(batch, usual_strength, strict=True)
        ]
        whole = as_zoo({n: r for plan in recipe_sets for n, r in plan.items()}, keep=keep)
        for seed, u, plan in zip(batch, usual_strength, recipe_sets, strict=True):
            members = tuple(whole[n] for n in plan)
            yield Pedigree(kind, seed, Zoo(members, {n: whole.history[n] for n in plan}), u)


def _mixed_recipes(kind: str, seed: int, data: Sequence[str | None]) -> Mapping[str, Recipe]:
    rng = np.random.default_rng([seed, 35])
    init = INITIALISERS[int(rng.integers(len(INITIALISERS)))]
    return mixed(kind, seed, int(rng.integers(4, 15)), data=data, init=init)


def _tree_recipes(
    kind: str,
    seed: int,
    recipes: Sequence[str],
    data: Sequence[str | None],
    shapes: Sequence[Sequence[int]],
    tasks: Sequence[str],
    *,
    usual: bool,
) -> Mapping[str, Recipe]:
    rng = np.random.default_rng([seed, 32])
    shape, init = shapes[int(rng.integers(len(shapes)))], INITIALISERS[int(rng.integers(len(INITIALISERS)))]
    ways = tunings(seed, recipes, usual=usual)
    return tree(kind, seed, shape, tunings=ways, tasks=tasks, data=data, init=init)

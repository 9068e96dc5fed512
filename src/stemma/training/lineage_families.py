"""Families to learn direction and parenthood from: trees of fine-tuned models, and families of all operations.

In a tree every child is tuned in a way of its own. A recipe is a rule of optimisation with or without weight decay;
within a recipe rate, length and strength of decay are drawn anew for each child. In every other tree they are those of
usual fine-tuning, in the rest anything from so small a change that it hardly shows to one larger than the weights.
Siblings in a tree may learn the same. In a mixed family all children have tasks of their own, and beside fine-tunings
there are adapters, few examples, rare classes, long trainings, cuts and quantised copies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stemma.training.histories import Family, Member
from stemma.types import RelationKind
from stemma.zoo.collection import Zoo
from stemma.zoo.lineages import Tuning, as_zoo, mixed, tree
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
"""Rule of optimisation, and the range of its weight decay."""

TASKS = {
    "image": ("digit", "shuffled", "shuffled", "inverted", "rotated", "rotated+shuffled", "inverted+shuffled"),
    "text": ("digit", "shuffled", "shuffled"),
}
"""What children learn: what the parent knows on other examples, in another view, or under labels of their own. Two
siblings may learn the same."""

SHAPES = ((4, 4), (3, 2, 2), (8,), (2, 3), (5, 2))
"""Children of each model, generation by generation."""

LENGTHS = ((1.0, "cosine"), (2.0, "constant"), (4.0, "cosine"))
"""Updates relative to the kind's own fine-tuning, and the course of the rate: few, so that many train together."""

USUAL, ANY = (1.5, 4.0), (0.4, 4.0)
"""Rates relative to the usual one of the rule; usual fine-tuning also takes the longer two of `LENGTHS`."""

TOGETHER = 32
"""Families whose networks are trained in one go."""

INITIALISERS = ("torch", "torch", "orthogonal", "normal", "xavier")


def recipe_of(recipe: Recipe) -> str:
    """The name in `RECIPES` of what a child was tuned by, the operation's where it was not.

    Returns:
        The name.
    """
    if recipe.operation != "finetune":
        return recipe.operation
    rule = str(recipe.parameters.get("optimizer", "adam"))
    decays = float(recipe.parameters.get("weight_decay", 0.0)) > 0
    return next(n for n, (r, decay) in RECIPES.items() if r == rule and (decay is not None) == decays)


def tunings(seed: int, recipes: Sequence[str] = tuple(RECIPES), *, usual: bool, each: int = 4) -> list[Tuning]:
    """Ways of tuning, drawn at random within each recipe.

    Args:
        seed: Of the draw.
        recipes: Names in `RECIPES`.
        usual: Only as strong as fine-tuning usually is.
        each: Ways per recipe.

    Returns:
        `each` ways of every recipe.
    """
    rng = np.random.default_rng([seed, 31])

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    out = []
    for name in recipes:
        rule, decay = RECIPES[name]
        for i in range(each):
            strength = 0.0 if decay is None else round(between(*decay), 6)
            steps, course = LENGTHS[int(rng.integers(usual, len(LENGTHS)))]
            rate = RATE_FACTOR[rule] * between(*(USUAL if usual else ANY))
            out.append(Tuning(f"{name}-{i}", rule, rate, steps, strength, course))
    return out


@dataclass(frozen=True)
class Pedigree:
    """One family.

    Attributes:
        kind: Of network.
        seed: Of the family.
        zoo: Its models.
        usual: Whether children were made as they usually are, neither much weaker nor much stronger.
    """

    kind: str
    seed: int
    zoo: Zoo
    usual: bool

    @cached_property
    def family(self) -> Family:
        """The models with who came from whom."""
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
    for start in range(0, len(seeds), TOGETHER):
        now = seeds[start : start + TOGETHER]
        often = [mixtures or (bool(seed % 2) if usual is None else usual) for seed in now]
        plans = [
            _mixture(kind, seed, data) if mixtures else _plan(kind, seed, recipes, data, shapes, tasks, usual=u)
            for seed, u in zip(now, often, strict=True)
        ]
        whole = as_zoo({n: r for plan in plans for n, r in plan.items()}, keep=keep)
        for seed, u, plan in zip(now, often, plans, strict=True):
            members = tuple(whole[n] for n in plan)
            yield Pedigree(kind, seed, Zoo(members, {n: whole.history[n] for n in plan}), u)


def _mixture(kind: str, seed: int, data: Sequence[str | None]) -> Mapping[str, Recipe]:
    rng = np.random.default_rng([seed, 35])
    init = INITIALISERS[int(rng.integers(len(INITIALISERS)))]
    return mixed(kind, seed, int(rng.integers(4, 15)), data=data, init=init)


def _plan(
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

"""How a zoo model is made: its recipe, with the recipes of its parents, and a digest of the whole history."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np

from stemma.errors import UnknownNameError
from stemma.models.model import Model
from stemma.types import Digest, RelationKind, Spec
from stemma.zoo.cache import VERSION, recall
from stemma.zoo.kinds import kind_of
from stemma.zoo.memory import model_of

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """One model's making.

    Attributes:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        operation: What was done to the parents, one of `OPERATIONS`; `train` has none.
        relation: What that makes of it; None for a model trained from scratch.
        parents: Recipes of the models it was made from.
        parameters: Of the operation.
        seed: Of everything random in the operation.
        part: Which half of the data it learns from, if it learns.
    """

    kind: str
    operation: str
    relation: RelationKind | None = None
    parents: tuple["Recipe", ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    part: str = "a"

    @property
    def digest(self) -> Digest:
        """Identity of the model's whole history, architecture and schedules included."""
        kind = kind_of(self.kind)
        given = {
            "operation": self.operation,
            "relation": self.relation,
            "parents": [p.digest for p in self.parents],
            "parameters": self.parameters,
            "seed": self.seed,
            "part": self.part,
            "kind": kind,
        }
        return Spec("recipe", VERSION, given).digest


LEARNING = ("train", "finetune", "replace-head", "inherit-part", "lora", "unlearn", "distill")
"""Operations that train: they take time, so what they make is cached."""

CHANGES = (
    "copy", "half", "rename", "transpose", "fuse-projections", "permute", "rescale", "fold-norms", "rotate",
    "grow-vocabulary", "prune-weights", "prune-units", "prune-layers", "zero-layers", "int8", "int4", "merge",
)  # fmt: skip
"""Operations that only compute."""

OPERATIONS = LEARNING + CHANGES
"""What can be done: functions of the same name in `learning` and `changes`, which take the recipe and its parents'
configurations and weights."""


def _operation(name: str) -> Callable[["Recipe", list[tuple[dict[str, Any], Arrays]]], tuple[dict[str, Any], Arrays]]:
    if name not in OPERATIONS:
        raise UnknownNameError(f"no operation is called {name!r}. There are: {', '.join(OPERATIONS)}.")
    home = import_module(f"stemma.zoo.{'learning' if name in LEARNING else 'changes'}")
    return getattr(home, "train_from_scratch" if name == "train" else name.replace("-", "_"))


def build(recipe: Recipe, name: str = "", *, keep: bool = True, made: dict[str, Any] | None = None) -> Model:
    """Make a model, and first whatever it comes from.

    Cost: a second or two per training on one core; nothing for what is in the cache.

    Args:
        recipe: The history.
        name: What to call it; the recipe's digest unless given.
        keep: Use the cache.
        made: Weights made before, by recipe digest; filled with those made now, so that a family shares its root.

    Returns:
        The model, deterministic given the recipe (to rounding, across versions of torch).

    Raises:
        UnknownNameError: If there is no such operation.
    """
    config, arrays = _make(recipe, keep, {} if made is None else made)
    return model_of(name or str(recipe.digest), arrays, config)


def _make(recipe: Recipe, keep: bool, made: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
    digest = recipe.digest
    if digest in made:
        return made[digest]
    operation = _operation(recipe.operation)
    run = replace(recipe, parameters={k: v for k, v in recipe.parameters.items() if k != "quarter"})

    def make() -> tuple[Arrays, dict[str, Any]]:
        parents = [_make(p, keep, made) for p in recipe.parents]
        config, arrays = operation(run, parents)
        return arrays, config

    arrays, config = recall(run.digest, make, keep=keep and recipe.operation in LEARNING)
    if recipe.operation == "train":
        quarter = int(recipe.parameters.get("quarter", 4))
        arrays = {n: a[quarter - 1] for n, a in arrays.items()}
    made[digest] = config, arrays
    return config, arrays

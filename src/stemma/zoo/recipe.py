"""The recipe of a zoo model, with the recipes of its parents, and a digest of the whole history."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stemma.types import Digest, RelationKind, Spec
from stemma.zoo.cache import VERSION
from stemma.zoo.kinds import kind_of

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        operation: What was done to the parents, one of `OPERATIONS`; `train` has none.
        relation: Relation to the parents; None for a model trained from scratch.
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

    @cached_property
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


TRAINING_OPERATIONS = ("train", "finetune", "replace-head", "inherit-part", "lora", "unlearn", "distill")
"""Operations that train: they take time, so what they make is cached."""

MODULES: Mapping[str, tuple[str, ...]] = {
    "trained_operations": TRAINING_OPERATIONS,
    "function_preserving": (
        "copy", "half", "rename", "transpose", "fuse-projections", "permute", "rescale", "fold-norms", "rotate",
        "grow-vocabulary",
    ),
    "pruned_operations": ("prune-weights", "prune-units", "prune-layers", "zero-layers"),
    "quantized_operations": ("int8", "int4", "quantize"),
    "merged_operations": ("merge", "task-arithmetic", "ties", "dare", "slerp", "layerwise", "franken"),
}  # fmt: skip
"""The module of each operation."""

OPERATIONS = tuple(name for names in MODULES.values() for name in names)
"""Operations: functions of the same name, which take the recipe and its parents' configurations and weights. Those in
`trained_operations` return a training job; the others compute."""

Made = tuple[dict[str, Any], Arrays]

Progress = Callable[[str, int, int | None], None]
"""Called with what happens, how many steps are done, and of how many where that is known."""

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""As the builtin `map`; one of a cluster calls the function on other machines."""

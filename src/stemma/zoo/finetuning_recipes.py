"""Fine-tuning recipes and the other operations by which children of a lineage are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from stemma.errors import UnknownNameError
from stemma.types import RelationKind as R
from stemma.zoo.kinds import kind_of


@dataclass(frozen=True)
class FinetuningRecipe:
    """A fine-tuning recipe, relative to its kind's own fine-tuning with Adam.

    Attributes:
        name: Of the recipe.
        optimizer: One of `stemma.zoo.optimizers.OPTIMIZERS`.
        rate: Factor on the kind's rate with Adam.
        steps: Factor on the kind's steps, besides `STEP_FACTOR`.
        weight_decay: As the optimiser takes it.
        decay: `cosine` or `constant`.
    """

    name: str
    optimizer: str = "adam"
    rate: float = 1.0
    steps: float = 1.0
    weight_decay: float = 0.0
    decay: str = "cosine"

    def parameters(self, kind: str) -> dict[str, Any]:
        """Parameters of a learning operation for a network of this kind."""
        schedule = kind_of(kind).tuning
        return {
            "optimizer": self.optimizer,
            "rate": schedule.rate * self.rate,
            "steps": round(schedule.steps * STEP_FACTOR[kind] * self.steps),
            "weight_decay": self.weight_decay,
            "decay": self.decay,
        }


STEP_FACTOR: Mapping[str, float] = {"mlp": 2, "cnn": 1, "vit": 1, "lm": 1}
"""How much longer than its kind's fine-tuning a child of a lineage learns, because its task is new."""

FINETUNING_RECIPES: Mapping[str, FinetuningRecipe] = {
    t.name: t
    for t in (
        FinetuningRecipe("adam", rate=3.0),
        FinetuningRecipe("adam-long", rate=2.0, steps=2),
        FinetuningRecipe("adam-decayed", rate=3.0, weight_decay=1e-3),
        FinetuningRecipe("adamw", "adamw", rate=3.0, weight_decay=0.05),
        FinetuningRecipe("momentum", "momentum", rate=15.0),
        FinetuningRecipe("sgd", "sgd", rate=200.0, decay="constant"),
    )
}
"""Fine-tuning recipes that the children of a tree are drawn from."""

TASKS: Mapping[str, tuple[str, ...]] = {
    "image": ("shuffled", "inverted+shuffled", "rotated+shuffled"),
    "text": ("shuffled",),
}
"""Tasks of the children of a tree: classes under other labels, of the picture as it is, its negative, or turned;
a text under other letters. Each child's labels are drawn anew."""


def with_label_seed(task: str, seed: int) -> str:
    """A task with labels of its own: `shuffled` gets a seed derived from that of the model."""
    return "+".join(f"{s}:{seed % 10**6}" if s == "shuffled" else s for s in task.split("+"))


def with_dataset(parameters: dict[str, Any], data: str | None) -> dict[str, Any]:
    """Parameters of a learning operation on another data set; None leaves everything as it is.

    Negatives of averaged pictures are nearly white, and a perceptron does not learn them in the time of a fine-tuning.

    Returns:
        Parameters with the data set, and `rotated` for `inverted`.
    """
    if data is None:
        return parameters
    return {**parameters, "data": data, "task": parameters["task"].replace("inverted", "rotated")}


def finetuning_recipe(name_or_recipe: str | FinetuningRecipe) -> FinetuningRecipe:
    """A fine-tuning recipe by its name, or as given."""
    if isinstance(name_or_recipe, FinetuningRecipe):
        return name_or_recipe
    if name_or_recipe not in FINETUNING_RECIPES:
        known = ", ".join(FINETUNING_RECIPES)
        raise UnknownNameError(f"no fine-tuning recipe is called {name_or_recipe!r}. There are: {known}.")
    return FINETUNING_RECIPES[name_or_recipe]


def _finetune(**more: Any) -> Callable[[str, int, int], tuple[str, R, dict[str, Any]]]:
    """Fine-tuning on a task of the child's own: makes operation, relation and parameters from kind, seed and index."""

    def make(kind: str, seed: int, index: int) -> tuple[str, R, dict[str, Any]]:
        tasks = TASKS["text" if kind == "lm" else "image"]
        finetuning = list(FINETUNING_RECIPES.values())[index % len(FINETUNING_RECIPES)]
        given = {**finetuning.parameters(kind), "task": with_label_seed(tasks[index % len(tasks)], seed)}
        overrides = {k: v(kind) if callable(v) else v for k, v in more.items()}
        return "finetune", R.FINETUNED, {**given, **overrides}

    return make


def _lora(kind: str, seed: int, index: int) -> tuple[str, R, dict[str, Any]]:
    _, _, given = _finetune()(kind, seed, 0)
    longer = {"rate": 2 * given["rate"], "steps": 2 * given["steps"]}
    return "lora", R.LORA, {**given, **longer, "rank": (2, 4, 8)[index % 3]}


def _prune(kind: str, seed: int, index: int) -> tuple[str, R, dict[str, Any]]:
    by = ("magnitude", "random")[index % 2]
    rng = np.random.default_rng(seed)
    high = 0.8 if by == "magnitude" else 0.5
    return "prune-weights", R.PRUNED, {"ratio": round(float(rng.uniform(0.1, high)), 3), "by": by}


def _quantize(bits: int) -> Callable[[str, int, int], tuple[str, R, dict[str, Any]]]:
    def make(kind: str, seed: int, index: int) -> tuple[str, R, dict[str, Any]]:
        grids = list(product((8, 16, 32, 0, -1), (True, False)))
        block, symmetric = grids[index % len(grids)]
        return "quantize", R.QUANTIZED, {"bits": bits, "block": block, "symmetric": symmetric}

    return make


CHILD_OPERATIONS: Mapping[str, Callable[[str, int, int], tuple[str, R, dict[str, Any]]]] = {
    "finetune": _finetune(),
    "lora": _lora,
    "prune": _prune,
    "int8": _quantize(8),
    "int4": _quantize(4),
    "longer": _finetune(optimizer="adam", weight_decay=0, decay="cosine",
                     steps=lambda kind: 2 * kind_of(kind).schedule.steps),
    "few-shot": _finetune(shots=5),
    "imbalanced": _finetune(imbalance=50),
}  # fmt: skip
"""Operations of flat families, with the parameters of each child of a root. `prune` draws ratios from .1 to .8 by
magnitude and to .5 at random; `int8` and `int4` go through ten grids, so that more than ten children of a root repeat.
"""

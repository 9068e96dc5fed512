"""How children of a lineage are made: by which tuning, on which task, by which operation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from stemma.errors import UnknownNameError
from stemma.types import RelationKind as R
from stemma.zoo.kinds import kind_of


@dataclass(frozen=True)
class Tuning:
    """How a child is fine-tuned, relative to its kind's own fine-tuning with Adam.

    Attributes:
        name: Of the tuning.
        optimizer: One of `stemma.zoo.optimizers.OPTIMIZERS`.
        rate: Times the rate that the kind has with Adam.
        steps: Times the kind's steps, and times `PACE`.
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
        """What a recipe of a kind says of it.

        Returns:
            Parameters of an operation that learns.
        """
        own = kind_of(kind).tuning
        return {
            "optimizer": self.optimizer,
            "rate": own.rate * self.rate,
            "steps": round(own.steps * PACE[kind] * self.steps),
            "weight_decay": self.weight_decay,
            "decay": self.decay,
        }


PACE: Mapping[str, float] = {"mlp": 2, "cnn": 1, "vit": 1, "lm": 1}
"""How much longer than its kind's fine-tuning a child of a lineage learns, because its task is a new one."""

TUNINGS: Mapping[str, Tuning] = {
    t.name: t
    for t in (
        Tuning("adam", rate=3.0),
        Tuning("adam-long", rate=2.0, steps=2),
        Tuning("adam-decayed", rate=3.0, weight_decay=1e-3),
        Tuning("adamw", "adamw", rate=3.0, weight_decay=0.05),
        Tuning("momentum", "momentum", rate=15.0),
        Tuning("sgd", "sgd", rate=200.0, decay="constant"),
    )
}
"""What children of a tree are drawn from."""

TASKS: Mapping[str, tuple[str, ...]] = {
    "image": ("shuffled", "inverted+shuffled", "rotated+shuffled"),
    "text": ("shuffled",),
}
"""What children of a tree learn: classes under other labels, of the picture as it is, its negative, or turned;
a text under other letters. Each child's labels are drawn anew."""


def labelled(task: str, own: int) -> str:
    """A task with labels of its own.

    Args:
        task: As in `stemma.zoo.data.TASKS`, `shuffled` without a seed.
        own: Seed of the model that learns it.

    Returns:
        The task with the seed of its labels.
    """
    return "+".join(f"{s}:{own % 10**6}" if s == "shuffled" else s for s in task.split("+"))


def of_data(parameters: dict[str, Any], data: str | None) -> dict[str, Any]:
    """What an operation learns, on another data set than the kind's own.

    Negatives of averaged pictures are nearly white, and a perceptron does not learn them in the time of a fine-tuning.

    Args:
        parameters: Of an operation that learns.
        data: The data set; None leaves everything as it is.

    Returns:
        Parameters with the data set, and `rotated` for `inverted`.
    """
    if data is None:
        return parameters
    return {**parameters, "data": data, "task": parameters["task"].replace("inverted", "rotated")}


def tuning(given: str | Tuning) -> Tuning:
    """A tuning, or the one of this name.

    Returns:
        The tuning.

    Raises:
        UnknownNameError: If there is none.
    """
    if isinstance(given, Tuning):
        return given
    if given not in TUNINGS:
        raise UnknownNameError(f"no tuning is called {given!r}. There are: {', '.join(TUNINGS)}.")
    return TUNINGS[given]


def _tuned(**more: Any) -> Callable[[str, int, int], tuple[str, R, dict[str, Any]]]:
    """Fine-tuning on a task of the child's own.

    Returns:
        What makes operation, relation and parameters from kind, seed and index.
    """

    def make(kind: str, own: int, index: int) -> tuple[str, R, dict[str, Any]]:
        tasks = TASKS["text" if kind == "lm" else "image"]
        way = list(TUNINGS.values())[index % len(TUNINGS)]
        given = {**way.parameters(kind), "task": labelled(tasks[index % len(tasks)], own)}
        fixed = {k: v(kind) if callable(v) else v for k, v in more.items()}
        return "finetune", R.FINETUNED, {**given, **fixed}

    return make


def _adapted(kind: str, own: int, index: int) -> tuple[str, R, dict[str, Any]]:
    _, _, given = _tuned()(kind, own, 0)
    longer = {"rate": 2 * given["rate"], "steps": 2 * given["steps"]}
    return "lora", R.LORA, {**given, **longer, "rank": (2, 4, 8)[index % 3]}


def _pruned(kind: str, own: int, index: int) -> tuple[str, R, dict[str, Any]]:
    by = ("magnitude", "random")[index % 2]
    rng = np.random.default_rng(own)
    high = 0.8 if by == "magnitude" else 0.5
    return "prune-weights", R.PRUNED, {"ratio": round(float(rng.uniform(0.1, high)), 3), "by": by}


def _quantized(bits: int) -> Callable[[str, int, int], tuple[str, R, dict[str, Any]]]:
    def make(kind: str, own: int, index: int) -> tuple[str, R, dict[str, Any]]:
        grids = list(product((8, 16, 32, 0, -1), (True, False)))
        block, symmetric = grids[index % len(grids)]
        return "quantize", R.QUANTIZED, {"bits": bits, "block": block, "symmetric": symmetric}

    return make


FLAT: Mapping[str, Callable[[str, int, int], tuple[str, R, dict[str, Any]]]] = {
    "finetune": _tuned(),
    "lora": _adapted,
    "prune": _pruned,
    "int8": _quantized(8),
    "int4": _quantized(4),
    "longer": _tuned(optimizer="adam", weight_decay=0, decay="cosine",
                     steps=lambda kind: 2 * kind_of(kind).schedule.steps),
    "few-shot": _tuned(shots=5),
    "imbalanced": _tuned(imbalance=50),
}  # fmt: skip
"""Operations of flat families, with what each child of a root gets. `prune` draws ratios from .1 to .8 by magnitude
and to .5 at random; `int8` and `int4` go through ten grids, so that more than ten children of a root repeat."""

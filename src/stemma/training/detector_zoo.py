"""The zoo that a detector is trained on by default: families of many optimisers, tasks and depths."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.training.relatives import Relative, of_zoo
from stemma.types import RelationKind as R
from stemma.zoo.kinds import KINDS, kind_of
from stemma.zoo.lineages import TUNINGS, Recipes, Tuning, as_zoo, tree
from stemma.zoo.recipe import Recipe

Progress = Callable[[str, int, int | None], None]

_HERE = 41

BRANCHINGS = ((4, 4), (3, 2, 2), (2, 2, 1, 1), (8, 1), (12,), (1, 2, 3))
"""Children of each model, generation by generation, one of these drawn per family."""

SLIGHT = (Tuning("slight", rate=0.5), Tuning("slight-sgd", "sgd", rate=20.0, decay="constant"))
"""Fine-tuning that changes little, beside the zoo's own tunings."""

STARTS = ("torch", "torch", "xavier", "orthogonal", "normal")

LEAVES: tuple[tuple[str, R, dict[str, Any]], ...] = (
    ("half", R.REFORMATTED, {}),
    ("int8", R.QUANTIZED, {}),
    ("int4", R.QUANTIZED, {"block": 32}),
    ("prune-weights", R.PRUNED, {"ratio": 0.3}),
    ("prune-weights", R.PRUNED, {"ratio": 0.6}),
    ("lora", R.LORA, {"rank": 2}),
    ("lora", R.LORA, {"rank": 4}),
)
"""What is done to some models of a family once, without anything that follows."""


def family(kind: str, seed: int, leaves: int = 5) -> Recipes:
    """A tree whose shape, start, tunings and tasks are drawn, with further children made in other ways.

    Args:
        kind: `mlp`, `cnn`, `vit` or `lm`.
        seed: Other seeds give other families, which share nothing.
        leaves: How many further children.

    Returns:
        Recipes by name, parents first: 10 to 27 models.
    """
    rng = np.random.default_rng([seed, _HERE])
    image = kind != "lm"
    tasks = ("digit", "shuffled", "inverted+shuffled", "rotated+shuffled") if image else ("shuffled",)
    own = int(rng.integers(2**31))
    shape = BRANCHINGS[int(rng.integers(len(BRANCHINGS)))]
    start = STARTS[int(rng.integers(len(STARTS)))] if image else "torch"
    ways: list[str | Tuning] = [*TUNINGS, *SLIGHT]
    made = tree(kind, own, shape, tunings=ways, tasks=tasks, init=start, name=f"{kind}-{seed}")
    names, done = list(made), set()
    for i in range(leaves):
        parent = names[int(rng.integers(len(names)))]
        operation, relation, parameters = LEAVES[int(rng.integers(len(LEAVES)))]
        if operation == "lora":
            tuned = TUNINGS["adam"].parameters(kind)
            parameters = {**parameters, **tuned, "task": f"shuffled:{int(rng.integers(10**6))}"}
        drawn = int(rng.integers(2**31))
        if operation == "lora" or f"{parent}/{operation}-{parameters}" not in done:  # the same twice would be a copy
            made[f"{parent}/{operation}-{i}"] = Recipe(
                kind, operation, relation, (made[parent],), parameters, drawn, "ab"[i % 2]
            )
        done.add(f"{parent}/{operation}-{parameters}")
    return made


def parsed(text: str) -> tuple[tuple[str, ...], int, int]:
    """A zoo by name: `mlp+cnn:n=48,seed=1` is 48 families of each kind.

    Args:
        text: Kinds joined by `+`, then after a colon the number of families and the seed.

    Returns:
        Kinds, families of each, seed.

    Raises:
        MisuseError: If it is written otherwise.
    """
    found = re.fullmatch(r"([a-z+]+)(?::(.*))?", text)
    given = dict(re.findall(r"(\w+)=(\d+)", found[2] or "")) if found else {}
    rest = re.sub(r"(n|seed)=\d+,?", "", (found[2] or "")) if found else "?"
    kinds = tuple(dict.fromkeys(found[1].split("+"))) if found else ()
    if rest or not kinds or any(k not in KINDS for k in kinds):
        raise MisuseError(
            f"'{text}' is neither a folder with truth.json nor a zoo by name: write for example mlp+cnn:n=48,seed=1, "
            f"of the kinds {', '.join(KINDS)}"
        )
    return kinds, int(given.get("n", 24)), int(given.get("seed", 0))


def made(
    kinds: Sequence[str], count: int, seed: int = 0, *, keep: bool = True, progress: Progress | None = None
) -> list[Relative]:
    """Families of each kind, trained many at once.

    Cost on one core, first time: about 2 s per family of perceptrons, 5 s of CNNs, 15 s of transformers.

    Args:
        kinds: Kinds of networks.
        count: Families of each.
        seed: Other seeds give other families.
        keep: Use the cache.
        progress: Told how many models are made.

    Returns:
        One relative per model.
    """
    found: list[Relative] = []
    for kind in kinds:
        kind_of(kind)
        families = {f"{kind}-{seed}-{i}": family(kind, 1000 * seed + i) for i in range(count)}
        found += relatives(families, keep=keep, progress=progress)
    return found


def relatives(
    families: Mapping[str, Recipes], *, keep: bool = True, progress: Progress | None = None
) -> list[Relative]:  # fmt: skip
    """The models of families given as recipes, trained many at once.

    Args:
        families: Recipes by family.
        keep: Use the cache.
        progress: Told how many models are made.

    Returns:
        One relative per model.
    """
    weights: dict[str, Any] = {}
    as_zoo({n: r for recipes in families.values() for n, r in recipes.items()}, keep=keep, progress=progress,
           made=weights)  # fmt: skip
    return [r for name, recipes in families.items() for r in of_zoo(as_zoo(recipes, keep=keep, made=weights), name)]


def probes_for(model: Model, count: int = 64, part: str = "a") -> Probes | None:
    """What a zoo's models are asked: examples of the part of the data that they learn from.

    Args:
        model: One of the zoo's.
        count: How many.
        part: Of the data.

    Returns:
        Probes; None for a model that is none of the zoo's kinds.
    """
    from stemma.zoo.data import examples

    claimed = (model.config or {}).get("model_type")
    kind = next((k for k, known in KINDS.items() if known.config["model_type"] == claimed), None)
    return None if kind is None else Probes.of(examples(kind, part).inputs[:count])

"""The zoo that a detector is trained on by default: families of many optimisers, tasks and depths."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.training.relatives import Relative, relatives_from_zoo
from stemma.types import RelationKind as R
from stemma.zoo.kinds import KINDS, kind_of
from stemma.zoo.lineages import FINETUNING_RECIPES, FinetuningRecipe, Recipes, as_zoo, tree
from stemma.zoo.recipe import Recipe

Progress = Callable[[str, int, int | None], None]

_STREAM = 41

BRANCHINGS = ((4, 4), (3, 2, 2), (2, 2, 1, 1), (8, 1), (12,), (1, 2, 3))
"""Children of each model, generation by generation, one of these drawn per family."""

SLIGHT_FINETUNING = (
    FinetuningRecipe("slight", rate=0.5),
    FinetuningRecipe("slight-sgd", "sgd", rate=20.0, decay="constant"),
)
"""Fine-tuning that changes little, besides the zoo's own recipes."""

INITIALISERS = ("torch", "torch", "xavier", "orthogonal", "normal")

LEAF_OPERATIONS: tuple[tuple[str, R, dict[str, Any]], ...] = (
    ("half", R.REFORMATTED, {}),
    ("int8", R.QUANTIZED, {}),
    ("int4", R.QUANTIZED, {"block": 32}),
    ("prune-weights", R.PRUNED, {"ratio": 0.3}),
    ("prune-weights", R.PRUNED, {"ratio": 0.6}),
    ("lora", R.LORA, {"rank": 2}),
    ("lora", R.LORA, {"rank": 4}),
)
"""Operations applied once to some models of a family; nothing is made from the results."""


def random_family(kind: str, seed: int, leaves: int = 5) -> Recipes:
    """A tree with random shape, start, fine-tuning recipes and tasks, and further leaves: 10 to 27 recipes by name."""
    rng = np.random.default_rng([seed, _STREAM])
    image = kind != "lm"
    tasks = ("digit", "shuffled", "inverted+shuffled", "rotated+shuffled") if image else ("shuffled",)
    tree_seed = int(rng.integers(2**31))
    shape = BRANCHINGS[int(rng.integers(len(BRANCHINGS)))]
    start = INITIALISERS[int(rng.integers(len(INITIALISERS)))] if image else "torch"
    finetuning_recipes: list[str | FinetuningRecipe] = [*FINETUNING_RECIPES, *SLIGHT_FINETUNING]
    recipes = tree(kind, tree_seed, shape, tunings=finetuning_recipes, tasks=tasks, init=start, name=f"{kind}-{seed}")
    names, done = list(recipes), set()
    for i in range(leaves):
        parent = names[int(rng.integers(len(names)))]
        operation, relation, parameters = LEAF_OPERATIONS[int(rng.integers(len(LEAF_OPERATIONS)))]
        if operation == "lora":
            finetuning = FINETUNING_RECIPES["adam"].parameters(kind)
            parameters = {**parameters, **finetuning, "task": f"shuffled:{int(rng.integers(10**6))}"}
        leaf_seed = int(rng.integers(2**31))
        if operation == "lora" or f"{parent}/{operation}-{parameters}" not in done:  # the same twice would be a copy
            recipes[f"{parent}/{operation}-{i}"] = Recipe(
                kind, operation, relation, (recipes[parent],), parameters, leaf_seed, "ab"[i % 2]
            )
        done.add(f"{parent}/{operation}-{parameters}")
    return recipes


def parse_zoo(text: str) -> tuple[tuple[str, ...], int, int]:
    """Kinds, families of each, and seed of a zoo by name: `mlp+cnn:n=48,seed=1` is 48 families of each kind."""
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


def build_families(
    kinds: Sequence[str], count: int, seed: int = 0, *, keep: bool = True, progress: Progress | None = None
) -> list[Relative]:
    """Families of each kind, trained many at once.

    Cost on one core, first time: about 2 s per family of perceptrons, 5 s of CNNs, 15 s of transformers.

    Returns:
        One relative per model.
    """
    found: list[Relative] = []
    for kind in kinds:
        kind_of(kind)
        families = {f"{kind}-{seed}-{i}": random_family(kind, 1000 * seed + i) for i in range(count)}
        found += build_relatives(families, keep=keep, progress=progress)
    return found


def build_relatives(
    families: Mapping[str, Recipes], *, keep: bool = True, progress: Progress | None = None
) -> list[Relative]:  # fmt: skip
    """The models of families given as recipes, trained many at once."""
    weights: dict[str, Any] = {}
    as_zoo({n: r for recipes in families.values() for n, r in recipes.items()}, keep=keep, progress=progress,
           made=weights)  # fmt: skip
    return [
        r
        for name, recipes in families.items()
        for r in relatives_from_zoo(as_zoo(recipes, keep=keep, made=weights), name)
    ]


def probes_for(model: Model, count: int = 64, part: str = "a") -> Probes | None:
    """Examples of a part of the training data of a zoo model; None for a model that is none of the zoo's kinds."""
    from stemma.zoo.data import examples

    claimed = (model.config or {}).get("model_type")
    kind = next((k for k, known in KINDS.items() if known.config["model_type"] == claimed), None)
    return None if kind is None else Probes.of(examples(kind, part).inputs[:count])

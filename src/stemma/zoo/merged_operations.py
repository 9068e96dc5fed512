"""Operations that merge several models: averages, sums of task vectors, and layers of different parents.

Every operation takes the recipe and its parents' configurations and weights, and returns those of the new model.
Operations in `OVER_A_BASE` take the base that their parents were fine-tuned from as the first of the recipe's parents.
All parents must have the same tensors.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.errors import MisuseError
from stemma.zoo.pruned_operations import LAYER
from stemma.zoo.symmetries import Arrays

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]

OVER_A_BASE = ("task-arithmetic", "ties", "dare")
"""Those whose first parent in the recipe is the base, which the truth does not list among the parents."""


def experts(recipe: "Recipe") -> tuple["Recipe", ...]:
    """The parents that were merged, without the base."""
    return recipe.parents[1:] if recipe.operation in OVER_A_BASE else recipe.parents


def coefficients(recipe: "Recipe") -> np.ndarray | None:
    """Weight of each expert's difference from the base, for `merge`, `task-arithmetic` and `dare`; else None."""
    count = len(experts(recipe))
    match recipe.operation:
        case "merge":
            return _numbers(recipe, "weights", count, 1 / count)
        case "task-arithmetic":
            return _numbers(recipe, "scales", count, 1 / count)
        case "dare":
            return _numbers(recipe, "weights", count, 1 / count)
    return None


def merge(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The average of the parents, with `weights` where they are not equal.

    Source: Wortsman et al. 2022, arXiv:2203.05482.

    Returns:
        Configuration and weights.
    """
    shares = _numbers(recipe, "weights", len(parents), 1 / len(parents))
    return _merge_tensors(parents, lambda name, stack: np.tensordot(shares, stack, 1))


def task_arithmetic(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The base and the experts' differences from it, times `scales` (one number, or one per expert).

    Source: Ilharco et al. 2023, arXiv:2212.04089.

    Returns:
        Configuration and weights.
    """
    scales = _numbers(recipe, "scales", len(parents) - 1, 1 / (len(parents) - 1))
    return _merge_tensors(parents, lambda name, stack: stack[0] + np.tensordot(scales, stack[1:] - stack[0], 1))


def ties(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Of each difference the largest share `density` is kept; entry by entry the heavier sign wins, and the mean of
    those that agree with it, times `scale`, is added to the base.

    Source: Yadav et al. 2023, arXiv:2306.01708; the largest entries are taken tensor by tensor.

    Returns:
        Configuration and weights.
    """  # noqa: D205
    density, scale = _share(recipe, "density", 0.2), float(recipe.parameters.get("scale", 1.0))

    def merge_tensor(name: str, stack: np.ndarray) -> np.ndarray:
        changes = stack[1:] - stack[0]
        sizes = np.abs(changes).reshape(len(changes), -1)
        least = np.quantile(sizes, 1 - density, axis=1).reshape(-1, *[1] * (changes.ndim - 1))
        changes = np.where(np.abs(changes) >= least, changes, 0)
        agree = (np.sign(changes) == np.sign(changes.sum(0))) & (changes != 0)
        return stack[0] + scale * (changes * agree).sum(0) / np.maximum(agree.sum(0), 1)

    return _merge_tensors(parents, merge_tensor)


def dare(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Of each difference a random share `drop` is set to zero and the rest divided by 1 - `drop`, then as averages.

    `weights` as for `merge`.

    Source: Yu et al. 2024, arXiv:2311.03099.

    Returns:
        Configuration and weights.

    Raises:
        MisuseError: If everything is dropped.
    """
    drop, count = _share(recipe, "drop", 0.5), len(parents) - 1
    shares = _numbers(recipe, "weights", count, 1 / count)
    rng = np.random.default_rng([recipe.seed, 13])
    if drop == 1:
        raise MisuseError("a share of 1 dropped leaves nothing of the parents. Give 'drop' below 1.")

    def merge_tensor(name: str, stack: np.ndarray) -> np.ndarray:
        changes = stack[1:] - stack[0]
        return stack[0] + np.tensordot(shares, changes * (rng.random(changes.shape) >= drop) / (1 - drop), 1)

    return _merge_tensors(parents, merge_tensor)


def slerp(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The point `t` of the way on the arc from the first of two parents to the second, tensor by tensor.

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; where two tensors are nearly parallel, a line.

    Returns:
        Configuration and weights.

    Raises:
        MisuseError: If there are not two parents.
    """
    t = _share(recipe, "t", 0.5)
    if len(parents) != 2:
        raise MisuseError(f"slerp takes two parents, not {len(parents)}. Merge more of them by another operation.")

    def merge_tensor(name: str, stack: np.ndarray) -> np.ndarray:
        a, b = stack
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        angle = np.arccos(np.clip((a * b).sum() / norms, -1, 1)) if norms else 0.0
        if np.sin(angle) < 1e-6:
            return (1 - t) * a + t * b
        return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)

    return _merge_tensors(parents, merge_tensor)


def layerwise(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """An average with other weights in each layer, drawn uniformly by the seed from all that are not negative."""
    layers = _layers(recipe, parents)
    rng = np.random.default_rng([recipe.seed, 14])
    shares = {layer: rng.dirichlet(np.ones(len(parents))) for layer in layers}
    return _merge_tensors(parents, lambda name, stack: np.tensordot(shares[_layer(recipe, name)], stack, 1))


def franken(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Each layer from one parent: `layers` says from which, in the order of layers, else the seed draws it.

    Every parent gives at least one layer where the seed draws.

    Returns:
        Configuration and weights.

    Raises:
        MisuseError: If `layers` does not name a parent for each layer.
    """
    layers, count = _layers(recipe, parents), len(parents)
    rng = np.random.default_rng([recipe.seed, 15])
    drawn = rng.permutation(np.concatenate([np.arange(count), rng.integers(count, size=max(0, len(layers) - count))]))
    chosen = list(recipe.parameters.get("layers", drawn[: len(layers)]))
    if len(chosen) != len(layers) or not set(chosen) <= set(range(count)):
        raise MisuseError(
            f"'layers' is {chosen}: name one of the parents 0 to {count - 1} for each of {', '.join(layers)}."
        )
    source = {layer: int(i) for layer, i in zip(layers, chosen, strict=True)}
    config, out = dict(parents[0][0]), {}
    for name in parents[0][1]:
        out[name] = parents[source[_layer(recipe, name)]][1][name]
    return config, out


def _merge_tensors(parents: Sequence[Made], merge_tensor: Callable[[str, np.ndarray], np.ndarray]) -> Made:
    """Merge tensor by tensor in float64; integers are the first parent's, and variances are not negative."""
    config, first = parents[0]
    for _, other in parents[1:]:
        if {n: a.shape for n, a in other.items()} != {n: a.shape for n, a in first.items()}:
            raise MisuseError("merged models must have tensors of the same names and shapes, and these do not.")
    out = {}
    for name, a in first.items():
        if a.dtype.kind == "f":
            merged = merge_tensor(name, np.stack([arrays[name].astype(np.float64) for _, arrays in parents]))
            out[name] = np.asarray(np.maximum(merged, 0) if name.endswith("running_var") else merged).astype(a.dtype)
        else:
            out[name] = a
    return dict(config), out


def _numbers(recipe: "Recipe", name: str, count: int, default: float) -> np.ndarray:
    given = np.asarray(recipe.parameters.get(name, default), np.float64)
    if given.ndim > 1 or (given.ndim == 1 and len(given) != count):
        raise MisuseError(f"{name!r} is {given.tolist()}: give one number, or one for each of the {count} parents.")
    return np.broadcast_to(given, (count,)).copy()


def _share(recipe: "Recipe", name: str, default: float) -> float:
    given = float(recipe.parameters.get(name, default))
    if not 0 <= given <= 1:
        raise MisuseError(f"{name!r} is {given}, and should be from 0 to 1.")
    return given


def _layer(recipe: "Recipe", tensor: str) -> str:
    found = re.match(re.escape(LAYER[recipe.kind][0]) + r"\d+|model\.\w+|\w+", tensor)
    return found[0] if found else tensor


def _layers(recipe: "Recipe", parents: Sequence[Made]) -> list[str]:
    """Prefixes of the tensor names of each layer, from input to output."""

    def place(layer: str) -> tuple[int, int, str]:
        number = re.search(r"\d+$", layer)
        first = any(word in layer for word in ("stem", "embed", "token"))
        return (1 if number else 0 if first else 2, int(number[0]) if number else 0, layer)

    return sorted({_layer(recipe, name) for name in parents[0][1]}, key=place)

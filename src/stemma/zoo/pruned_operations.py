"""Pruning operations: weights, units, layers.

Every operation takes the recipe and its parents' configurations and weights, and returns those of the new model.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.errors import MisuseError
from stemma.zoo.symmetries import Arrays, unit_groups

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]

LAYER = {"mlp": ("layers.", 1), "cnn": ("blocks.", 2), "vit": ("blocks.", 1), "lm": ("model.layers.", 1)}
"""How layers are named, and which one `prune_layers` removes (its input and output have one width)."""


def prune_weights(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A share `ratio` of every matrix set to zero: the smallest, or with `by` `random` a random one."""
    config, arrays = parents[0]
    ratio, out = float(recipe.parameters["ratio"]), dict(arrays)
    by, rng = recipe.parameters.get("by", "magnitude"), np.random.default_rng([recipe.seed, 9])
    if by not in ("magnitude", "random") or not 0 <= ratio <= 1:
        raise MisuseError(
            f"weights are pruned by 'magnitude' or 'random' at a ratio from 0 to 1, not by {by!r} at {ratio}."
        )
    for name, a in arrays.items():
        if a.ndim >= 2 and name.endswith("weight") and "embed" not in name:
            strength = rng.random(a.shape) if by == "random" else np.abs(a)
            out[name] = np.where(strength < np.quantile(strength, ratio), 0, a).astype(a.dtype)
    return dict(config), out


def prune_units(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The weakest share `ratio` of the units inside each layer removed, so that tensors are smaller.

    Hidden layers of a perceptron, inner channels of residual blocks, inner units of feed-forward layers.

    Returns:
        Configuration and weights.

    Raises:
        MisuseError: If the ratio is invalid.
    """
    config, arrays = parents[0]
    ratio, sizes = float(recipe.parameters["ratio"]), []
    if not 0 <= ratio < 1:
        raise MisuseError(f"the ratio of pruned units must be from 0 to below 1, but is {ratio}.")
    for group in unit_groups(config, arrays):
        if recipe.kind == "cnn" and not group.name.endswith("conv1"):
            continue
        if recipe.kind in ("vit", "lm") and not group.name.endswith("mlp"):
            continue
        size = group.size - int(group.size * ratio)
        strength = np.zeros(group.size)
        for place in group.places:
            moved = np.moveaxis(arrays[place.tensor], place.axis, 0).astype(np.float64)
            if "running" not in place.tensor and moved.ndim > 1:
                strength += np.square(moved.reshape(group.size, -1)).sum(1)
        kept = np.sort(np.argsort(-strength, kind="stable")[:size])
        for place in group.places:
            arrays = {**arrays, place.tensor: np.take(arrays[place.tensor], kept, axis=place.axis)}
        sizes.append(size)
    key = {"mlp": "hidden", "cnn": "inner", "vit": "inner", "lm": "intermediate_size"}[recipe.kind]
    return {**config, key: sizes if recipe.kind in ("mlp", "cnn") else sizes[0]}, arrays


def prune_layers(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """One layer removed, those after it moved up."""
    config, arrays = parents[0]
    prefix, removed = LAYER[recipe.kind]
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.(.*)")
    out: Arrays = {}
    for name, array in arrays.items():
        found = pattern.fullmatch(name)
        index = int(found[1]) if found else -1
        if found and index > removed:
            out[f"{prefix}{index - 1}.{found[2]}"] = array
        elif index != removed:
            out[name] = array
    config = dict(config)
    if recipe.kind in ("vit", "lm"):
        config["depth" if recipe.kind == "vit" else "num_hidden_layers"] -= 1
    for key in ("hidden",) if recipe.kind == "mlp" else ("widths", "strides") if recipe.kind == "cnn" else ():
        config[key] = [entry for i, entry in enumerate(config[key]) if i != removed]
    return config, out


def zero_layers(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """One residual layer set to zero instead of removed: the function is that of `prune_layers`."""
    config, arrays = parents[0]
    prefix, removed = LAYER[recipe.kind]
    layer_prefix = f"{prefix}{removed}."
    kept = ("running_mean", "running_var", "num_batches_tracked")
    zeroed = {n for n in arrays if n.startswith(layer_prefix) and not n.endswith(kept)}
    return dict(config), {n: np.zeros_like(a) if n in zeroed else a for n, a in arrays.items()}

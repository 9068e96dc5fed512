"""What is done to zoo models that keeps their function: stored differently, put in other coordinates.

Every operation takes the recipe and its parents' configurations and weights, and returns those of the new model.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.zoo import reparametrizations
from stemma.zoo.disguises import new_names, rescaled
from stemma.zoo.symmetries import Arrays, groups, permuted

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]


def copy(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The same weights.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    return dict(config), dict(arrays)


def half(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every float in 16 bits.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    return dict(config), {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def rename(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every tensor under another name.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    names = new_names(list(arrays), np.random.default_rng([recipe.seed, 4]))
    return dict(config), {new: arrays[old] for new, old in names.items()}


def transpose(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix and kernel stored with its first two axes swapped, as other frameworks do.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    return dict(config), {n: np.ascontiguousarray(a.swapaxes(0, 1)) if a.ndim >= 2 else a for n, a in arrays.items()}


def fuse_projections(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Queries, keys and values of a vision transformer in one tensor.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    out = {n: a for n, a in arrays.items() if not re.search(r"\.attn\.[qkv]\.", n)}
    for i in range(config["depth"]):
        for kind in ("weight", "bias"):
            out[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate([arrays[f"blocks.{i}.attn.{s}.{kind}"] for s in "qkv"])
    return {**config, "fused": True}, out


def permute(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every group of hidden units in a random order: units, heads, channels, residual stream.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    rng = np.random.default_rng([recipe.seed, 5])
    for group in groups(config, arrays, within_heads=bool(recipe.parameters.get("within_heads"))):
        arrays = permuted(arrays, group, rng.permutation(group.size))
    return dict(config), arrays


def rescale(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every positive rescaling that leaves the function as it is, with random factors.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    return rescaled(dict(config), arrays, np.random.default_rng([recipe.seed, 6]))


def fold_norms(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Batch norm folded into the convolutions, or norm gains into the matrices that read them.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    if recipe.kind == "cnn":
        return reparametrizations.batch_norms_folded(config, arrays)
    config, arrays = reparametrizations.untied(config, arrays)
    return config, reparametrizations.norms_scaled(config, arrays, None)


def rotate(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A language model's residual stream turned at random.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    return reparametrizations.rotated(config, arrays, np.random.default_rng([recipe.seed, 7]))


def grow_vocabulary(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A language model with `added` more tokens.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    rng = np.random.default_rng([recipe.seed, 8])
    return reparametrizations.vocabulary_grown(config, arrays, int(recipe.parameters["added"]), rng)

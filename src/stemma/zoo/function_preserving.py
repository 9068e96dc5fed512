"""Operations that keep a network's function: stored differently, or in other coordinates.

Every operation takes the recipe and its parents' configurations and weights, and returns those of the new model.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.zoo import reparametrizations
from stemma.zoo.disguises import random_names, rescale_units
from stemma.zoo.symmetries import Arrays, permute_units, unit_groups

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]


def copy(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The same weights."""
    config, arrays = parents[0]
    return dict(config), dict(arrays)


def half(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every float in 16 bits."""
    config, arrays = parents[0]
    return dict(config), {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def rename(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every tensor under another name."""
    config, arrays = parents[0]
    names = random_names(list(arrays), np.random.default_rng([recipe.seed, 4]))
    return dict(config), {new: arrays[old] for new, old in names.items()}


def transpose(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix and kernel stored with its first two axes swapped, as other frameworks do."""
    config, arrays = parents[0]
    return dict(config), {n: np.ascontiguousarray(a.swapaxes(0, 1)) if a.ndim >= 2 else a for n, a in arrays.items()}


def fuse_projections(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Queries, keys and values of a vision transformer in one tensor."""
    config, arrays = parents[0]
    out = {n: a for n, a in arrays.items() if not re.search(r"\.attn\.[qkv]\.", n)}
    for i in range(config["depth"]):
        for kind in ("weight", "bias"):
            out[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate([arrays[f"blocks.{i}.attn.{s}.{kind}"] for s in "qkv"])
    return {**config, "fused": True}, out


def permute(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every group of hidden units in a random order: units, heads, channels, residual stream."""
    config, arrays = parents[0]
    rng = np.random.default_rng([recipe.seed, 5])
    for group in unit_groups(config, arrays, within_heads=bool(recipe.parameters.get("within_heads"))):
        arrays = permute_units(arrays, group, rng.permutation(group.size))
    return dict(config), arrays


def rescale(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every positive rescaling that keeps the function, with random factors."""
    config, arrays = parents[0]
    return rescale_units(dict(config), arrays, np.random.default_rng([recipe.seed, 6]))


def fold_norms(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Batch norm folded into the convolutions, or norm gains into the matrices that read them."""
    config, arrays = parents[0]
    if recipe.kind == "cnn":
        return reparametrizations.fold_batch_norms(config, arrays)
    config, arrays = reparametrizations.untie_head(config, arrays)
    return config, reparametrizations.scale_norms(config, arrays, None)


def rotate(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The residual stream of a language model rotated at random."""
    config, arrays = parents[0]
    return reparametrizations.rotate_residual_stream(config, arrays, np.random.default_rng([recipe.seed, 7]))


def grow_vocabulary(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A language model with `added` more tokens."""
    config, arrays = parents[0]
    rng = np.random.default_rng([recipe.seed, 8])
    return reparametrizations.append_tokens(config, arrays, int(recipe.parameters["added"]), rng)

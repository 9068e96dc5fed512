"""What is done to zoo models without training: stored differently, put in other coordinates, cut, quantised, merged.

Every operation takes the recipe and its parents' configurations and weights, and returns those of the new model.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.zoo import gauges
from stemma.zoo.disguises import new_names, rescaled
from stemma.zoo.symmetries import Arrays, groups, permuted

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]

LAYER = {"mlp": ("layers.", 1), "cnn": ("blocks.", 2), "vit": ("blocks.", 1), "lm": ("model.layers.", 1)}
"""How layers are named, and which one `prune_layers` removes (its input and output have one width)."""


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
        return gauges.batch_norms_folded(config, arrays)
    config, arrays = gauges.untied(config, arrays)
    return config, gauges.norms_scaled(config, arrays, None)


def rotate(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A language model's residual stream turned at random.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    return gauges.rotated(config, arrays, np.random.default_rng([recipe.seed, 7]))


def grow_vocabulary(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A language model with `added` more tokens.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    rng = np.random.default_rng([recipe.seed, 8])
    return gauges.vocabulary_grown(config, arrays, int(recipe.parameters["added"]), rng)


def prune_weights(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The smallest share `ratio` of every matrix set to zero.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    ratio, out = float(recipe.parameters["ratio"]), dict(arrays)
    for name, a in arrays.items():
        if a.ndim >= 2 and name.endswith("weight") and "embed" not in name:
            out[name] = np.where(np.abs(a) < np.quantile(np.abs(a), ratio), 0, a).astype(a.dtype)
    return dict(config), out


def prune_units(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The weakest share `ratio` of the units inside each layer cut out, so that tensors are smaller.

    Hidden layers of a perceptron, inner channels of residual blocks, inner units of feed-forward layers.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    sizes = []
    for group in groups(config, arrays):
        if recipe.kind == "cnn" and not group.name.endswith("conv1"):
            continue
        if recipe.kind in ("vit", "lm") and not group.name.endswith("mlp"):
            continue
        size = group.size - int(group.size * float(recipe.parameters["ratio"]))
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
    """One layer taken out, those after it moved up.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    prefix, gone = LAYER[recipe.kind]
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.(.*)")
    out: Arrays = {}
    for name, array in arrays.items():
        found = pattern.fullmatch(name)
        index = int(found[1]) if found else -1
        if found and index > gone:
            out[f"{prefix}{index - 1}.{found[2]}"] = array
        elif index != gone:
            out[name] = array
    config = dict(config)
    if recipe.kind in ("vit", "lm"):
        config["depth" if recipe.kind == "vit" else "num_hidden_layers"] -= 1
    for key in ("hidden",) if recipe.kind == "mlp" else ("widths", "strides") if recipe.kind == "cnn" else ():
        config[key] = [entry for i, entry in enumerate(config[key]) if i != gone]
    return config, out


def zero_layers(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """One residual layer set to zero instead of taken out: the function is that of `prune_layers`.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    prefix, gone = LAYER[recipe.kind]
    ours = f"{prefix}{gone}."
    kept = ("running_mean", "running_var", "num_batches_tracked")
    silent = {n for n in arrays if n.startswith(ours) and not n.endswith(kept)}
    return dict(config), {n: np.zeros_like(a) if n in silent else a for n, a in arrays.items()}


def int8(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix as 8-bit codes per output row, with `NAME::scale` and `NAME::zero_point` beside it.

    The weight is (code - zero point) times scale.

    Returns:
        Configuration and tensors.
    """
    config, arrays = parents[0]
    out = dict(arrays)
    for name, a in arrays.items():
        if a.ndim < 2 or not name.endswith("weight"):
            continue
        rows = a.reshape(len(a), -1).astype(np.float64)
        low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
        scale = np.where(high > low, (high - low) / 255, 1.0).astype(np.float32)
        zero = np.clip(np.round(-128 - low / scale), -128, 127).astype(np.int64)
        codes = np.clip(np.round(rows / scale[:, None]) + zero[:, None], -128, 127)
        out[name] = codes.astype(np.int8).reshape(a.shape)
        out[f"{name}::scale"], out[f"{name}::zero_point"] = scale, zero
    return dict(config), out


def int4(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Every matrix rounded to 15 levels per block of `block` entries of a row, and stored as floats again.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    block, out = int(recipe.parameters["block"]), dict(arrays)
    for name, a in arrays.items():
        if a.ndim < 2 or not name.endswith("weight"):
            continue
        rows = a.reshape(len(a), -1)
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(a), -1, block).astype(np.float64)
        scale = np.abs(padded).max(-1, keepdims=True) / 7
        levels = np.round(padded / np.where(scale == 0, 1, scale)) * scale
        out[name] = levels.reshape(len(a), -1)[:, : rows.shape[1]].reshape(a.shape).astype(a.dtype)
    return dict(config), out


def merge(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The average of the parents, with `weights` where they are not equal.

    Source: Wortsman et al. 2022, arXiv:2203.05482.

    Returns:
        Configuration and weights.
    """
    config = dict(parents[0][0])
    shares = np.asarray(recipe.parameters.get("weights", [1 / len(parents)] * len(parents)), np.float64)
    out = {}
    for name, first in parents[0][1].items():
        mean = sum(s * arrays[name].astype(np.float64) for s, (_, arrays) in zip(shares, parents, strict=True))
        out[name] = np.asarray(mean).astype(first.dtype)
    return config, out

"""Changes of coordinates that keep a zoo network's function.

Written for the four kinds alone and without any other part of Stemma, so that it is an independent truth for the
unit groups and tests that are meant to undo these. All arithmetic is in float64; one rounding at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """One axis of one tensor that carries a group's units, `block` rows each, from row `offset` on."""

    tensor: str
    axis: int
    block: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Group:
    """Hidden units that can be permuted.

    Attributes:
        name: Of the layer that holds them.
        size: How many.
        rows: Axes that only move with the units.
        gains: Axes that also scale with a unit.
        readers: Axes that scale inversely with it.
        scales: Whether a positive factor per unit keeps the function.
    """

    name: str
    size: int
    rows: tuple[Place, ...]
    gains: tuple[Place, ...]
    readers: tuple[Place, ...]
    scales: bool = True

    @property
    def places(self) -> tuple[Place, ...]:
        """All axes."""
        return self.rows + self.gains + self.readers


def unit_groups(
    config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, within_heads: bool = False
) -> list[Group]:
    """The unit groups of a network in forward order, also inside attention heads if wanted and exact."""
    match config["model_type"]:
        case "stemma-mlp":
            found = _mlp(config)
        case "stemma-cnn":
            found = _cnn(config, arrays)
        case "stemma-vit":
            found = _vit(config, within_heads)
        case _:
            found = _language_model(config, within_heads)
    return [replace(g, **{k: tuple(p for p in getattr(g, k) if p.tensor in arrays) for k in _AXES}) for g in found]


_AXES = ("rows", "gains", "readers")


def permute_units(arrays: Mapping[str, np.ndarray], group: Group, order: np.ndarray) -> Arrays:
    """The same network (to the bit) with one group's units in another order: new unit `u` is old unit `order[u]`."""
    out = dict(arrays)
    for p in group.places:
        rows = np.arange(out[p.tensor].shape[p.axis])
        moved = (order[:, None] * p.block + np.arange(p.block)).reshape(-1) + p.offset
        rows[p.offset : p.offset + len(moved)] = moved
        out[p.tensor] = np.take(out[p.tensor], rows, axis=p.axis)
    return out


def scale_units(arrays: Mapping[str, np.ndarray], group: Group, factors: np.ndarray) -> Arrays:
    """The same network with each unit's output multiplied by its positive factor, and divided where it is read."""
    out = dict(arrays)
    for places, vector in ((group.gains, factors), (group.readers, 1 / factors)):
        for p in places:
            whole = np.ones(out[p.tensor].shape[p.axis])
            whole[p.offset : p.offset + len(vector) * p.block] = np.repeat(vector, p.block)
            out[p.tensor] = multiply_along(out[p.tensor], p.axis, whole)
    return out


def multiply_along(array: np.ndarray, axis: int, vector: np.ndarray) -> np.ndarray:
    """Multiply along one axis, in float64, rounded once to the given dtype."""
    shape = [1] * array.ndim
    shape[axis] = -1
    return (array.astype(np.float64) * np.reshape(vector, shape)).astype(array.dtype)


def _weight_and_bias(name: str, axis: int, block: int = 1, offset: int = 0) -> tuple[Place, ...]:
    """Weight rows and bias of a layer that writes the units."""
    return (Place(f"{name}.weight", axis, block, offset), Place(f"{name}.bias", 0, block, offset))


def _mlp(config: Mapping[str, Any]) -> list[Group]:
    names = [f"layers.{i}" for i in range(len(config["hidden"]))] + ["head"]
    return [
        Group(names[i], size, (), _weight_and_bias(names[i], 0), (Place(f"{names[i + 1]}.weight", 1),))
        for i, size in enumerate(config["hidden"])
    ]


def _convolution_places(conv: str, norm: str, has_norm: bool) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """Rows and gains of a convolution with its norm."""
    if not has_norm:
        return (), _weight_and_bias(conv, 0)
    stats = (Place(f"{norm}.running_mean", 0), Place(f"{norm}.running_var", 0))
    return (*_weight_and_bias(conv, 0), *stats), _weight_and_bias(norm, 0)


def _cnn(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Group]:
    has_norm = bool(config.get("batch_norm", True))
    found: list[Group] = []
    name, size = "stem", config["stem"]
    rows, gains = _convolution_places("stem.conv", "stem.bn", has_norm)
    readers: tuple[Place, ...] = ()
    for i, outputs in enumerate(config["widths"]):
        b = f"blocks.{i}"
        readers += (Place(f"{b}.conv1.weight", 1),)
        inner = config.get("inner", config["widths"])[i]
        inside = Group(
            f"{b}.conv1",
            inner,
            *_convolution_places(f"{b}.conv1", f"{b}.bn1", has_norm),
            (Place(f"{b}.conv2.weight", 1),),
        )
        new_rows, new_gains = _convolution_places(f"{b}.conv2", f"{b}.bn2", has_norm)
        if f"{b}.shortcut.conv.weight" in arrays:
            readers += (Place(f"{b}.shortcut.conv.weight", 1),)
            found.append(Group(name, size, rows, gains, readers))
            name, size, readers = b, outputs, ()
            rows, gains = _convolution_places(f"{b}.shortcut.conv", f"{b}.shortcut.bn", has_norm)
        rows, gains = rows + new_rows, gains + new_gains
        found.append(inside)
    found.append(Group(name, size, rows, gains, (*readers, Place("head.weight", 1))))
    return found


def _vit(config: Mapping[str, Any], within_heads: bool) -> list[Group]:
    heads, fused = config["heads"], bool(config.get("fused"))
    size = config.get("head_dim", config["width"] // heads)
    writers = (*_weight_and_bias("patch_embed.proj", 0), Place("class_token", 2), Place("position_embed", 2))
    readers: tuple[Place, ...] = ()
    found = []
    for i in range(config["depth"]):
        b = f"blocks.{i}"
        names = {s: (f"{b}.attn.qkv", j * heads * size) if fused else (f"{b}.attn.{s}", 0) for j, s in enumerate("qkv")}
        q, k, v = (_weight_and_bias(n, 0, size, at) for n, at in names.values())
        found.append(Group(f"{b}.attn", heads, q + k + v, (), (Place(f"{b}.attn.o.weight", 1, size),), scales=False))
        for h in range(heads if within_heads else 0):
            at = {s: (n, offset + h * size) for s, (n, offset) in names.items()}
            q, k, v = (_weight_and_bias(n, 0, 1, offset) for n, offset in at.values())
            found.append(Group(f"{b}.attn.qk.{h}", size, (), q, k))
            found.append(Group(f"{b}.attn.v.{h}", size, (), v, (Place(f"{b}.attn.o.weight", 1, 1, h * size),)))
        hidden = (Place(f"{b}.mlp.fc2.weight", 1),)
        found.append(Group(f"{b}.mlp", config["inner"], _weight_and_bias(f"{b}.mlp.fc1", 0), (), hidden, scales=False))
        writers += (
            _weight_and_bias(f"{b}.norm1", 0)
            + _weight_and_bias(f"{b}.norm2", 0)
            + _weight_and_bias(f"{b}.attn.o", 0)
            + _weight_and_bias(f"{b}.mlp.fc2", 0)
        )
        inputs = [f"{b}.attn.qkv"] if fused else [f"{b}.attn.{s}" for s in "qkv"]
        readers += tuple(Place(f"{n}.weight", 1) for n in [*inputs, f"{b}.mlp.fc1"])
    writers += _weight_and_bias("norm", 0)
    found.append(Group("residual", config["width"], writers, (), (*readers, Place("head.weight", 1)), scales=False))
    return found


def _language_model(config: Mapping[str, Any], within_heads: bool) -> list[Group]:
    heads, shared, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    repeat = heads // shared
    every = (Place("model.embed_tokens.weight", 1), Place("lm_head.weight", 1), Place("model.norm.weight", 0))
    found = []
    for i in range(config["num_hidden_layers"]):
        b, a = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        q, k, v, o = (f"{a}.{s}_proj.weight" for s in "qkvo")
        whole = (Place(q, 0, repeat * size), Place(k, 0, size), Place(v, 0, size), Place(o, 1, repeat * size))
        found.append(Group(f"{a}.kv", shared, whole, (), (), scales=False))
        for g in range(shared):
            at = g * repeat * size
            found.append(
                Group(f"{a}.q.{g}", repeat, (Place(q, 0, size, at), Place(o, 1, size, at)), (), (), scales=False)
            )
            if within_heads:
                outs = tuple(Place(o, 1, 1, at + j * size) for j in range(repeat))
                found.append(Group(f"{a}.v.{g}", size, (), (Place(v, 0, 1, g * size),), outs))
        gate, up, down = (f"{b}.mlp.{s}_proj.weight" for s in ("gate", "up", "down"))
        found.append(
            Group(f"{b}.mlp", config["intermediate_size"], (Place(gate, 0),), (Place(up, 0),), (Place(down, 1),))
        )
        norms = (Place(f"{b}.input_layernorm.weight", 0), Place(f"{b}.post_attention_layernorm.weight", 0))
        every += (*norms, *(Place(n, 1) for n in (q, k, v, gate, up)), Place(o, 0), Place(down, 0))
    found.append(Group("residual", config["hidden_size"], every, (), (), scales=False))
    return found

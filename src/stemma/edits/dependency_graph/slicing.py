"""Removing units from a network by slicing its weights, or masking them where they are read."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph

HEADS = ("num_heads", "num_attention_heads", "n_head", "n_heads", "heads", "num_key_value_heads", "num_kv_heads")
"""Attributes in which modules store their number of heads."""

WIDTHS = ("all_head_size", "inner_dim", "split_size")
"""Attributes in which modules store the width of all heads together."""


def kept_rows(graph: DependencyGraph, kept: Mapping[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """The sorted rows that are kept, by weight and axis; only of axes that lose some. Groups not named stay whole."""
    removed: dict[tuple[str, int], list[np.ndarray]] = {}
    for g in graph.groups:
        if g.name in kept and len(kept[g.name]) < g.size:
            out = np.setdiff1d(np.arange(g.size), kept[g.name])
            for r in g.rows:
                removed.setdefault((r.tensor, r.axis), []).append(r.index[out].reshape(-1))
    found: dict[str, dict[int, np.ndarray]] = {}
    for (tensor, axis), rows in removed.items():
        whole = np.arange(graph.shapes[tensor][axis])
        found.setdefault(tensor, {})[axis] = np.setdiff1d(whole, np.concatenate(rows))
    return found


def slice_units(
    module: torch.nn.Module, rows: Mapping[str, Mapping[int, np.ndarray]], heads: Collection[str] = ()
) -> None:  # fmt: skip
    """Slice a network's weights to these rows in place, and update the sizes that its modules store."""
    places = _places(module)
    before: dict[str, tuple[int, ...]] = {}
    for tensor, axes in rows.items():
        owners = places[tensor]
        old = getattr(owners[0][0], owners[0][1])
        new = old.detach()
        for axis, keep in axes.items():
            new = new.index_select(axis, torch.from_numpy(np.ascontiguousarray(keep)).to(new.device))
        new = new.contiguous()
        before[tensor] = tuple(old.shape)
        resized = torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
        for owner, name in owners:
            setattr(owner, name, resized)
    for owner in {id(o): o for t in rows for o, _ in places[t]}.values():
        _resize(owner)
    _fewer_heads(module, {t: r for t, r in rows.items() if t in heads}, before)


def mask_units(module: torch.nn.Module, graph: DependencyGraph, kept: Mapping[str, np.ndarray]) -> None:
    """Set the weights that read removed units to zero in place: the outputs are those of the smaller network."""
    state = dict(module.named_parameters())
    with torch.no_grad():
        for g in graph.groups:
            if g.name not in kept:
                continue
            out = np.setdiff1d(np.arange(g.size), kept[g.name])
            for reader in g.readers:
                index = next(r.index for r in g.rows if r.tensor == reader.weight and r.axis == reader.input_axis)
                weight = state[reader.weight]
                weight.index_fill_(reader.input_axis, torch.from_numpy(index[out].reshape(-1)).to(weight.device), 0.0)


def _places(module: torch.nn.Module) -> dict[str, list[tuple[torch.nn.Module, str]]]:
    """Every module and attribute that holds a tensor, by its first name; tied ones several times."""
    first: dict[int, str] = {}
    out: dict[str, list[tuple[torch.nn.Module, str]]] = {}
    for prefix, owner in module.named_modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                full = first.setdefault(id(tensor), f"{prefix}.{name}" if prefix else name)
                out.setdefault(full, []).append((owner, name))
    return out


def _resize(owner: Any) -> None:
    """Update the sizes that a module stores to those of its weight."""
    if isinstance(owner, torch.nn.RNNBase):
        owner.input_size, owner.hidden_size = owner.weight_ih_l0.shape[1], owner.weight_hh_l0.shape[1]
        return
    weight = getattr(owner, "weight", None)
    if weight is None:
        return
    match type(owner).__name__:
        case "Linear" | "NonDynamicallyQuantizableLinear":
            owner.out_features, owner.in_features = weight.shape
        case "Conv1D":
            owner.nx, owner.nf = weight.shape
        case "Conv1d" | "Conv2d" | "Conv3d":
            owner.groups = owner.groups * len(weight) // owner.out_channels if owner.groups > 1 else 1
            owner.out_channels, owner.in_channels = len(weight), weight.shape[1] * owner.groups
        case "ConvTranspose1d" | "ConvTranspose2d" | "ConvTranspose3d":
            owner.groups = owner.groups * len(weight) // owner.in_channels if owner.groups > 1 else 1
            owner.in_channels, owner.out_channels = len(weight), weight.shape[1] * owner.groups
        case "PReLU":
            owner.num_parameters = len(weight)
        case "GroupNorm":
            owner.num_groups = owner.num_groups * len(weight) // owner.num_channels
            owner.num_channels = len(weight)
        case (
            "InstanceNorm1d"
            | "InstanceNorm2d"
            | "InstanceNorm3d"
            | "BatchNorm1d"
            | "BatchNorm2d"
            | "BatchNorm3d"
            | "SyncBatchNorm"
        ):
            owner.num_features = len(weight)


def _fewer_heads(module: torch.nn.Module, rows: Mapping[str, Mapping[int, np.ndarray]], before: Any) -> None:
    """Scale stored numbers of heads and widths in modules whose projections lost whole heads."""
    for prefix, owner in module.named_modules():
        labels = {n: getattr(owner, n) for n in HEADS if isinstance(getattr(owner, n, None), int)}
        depth = len(prefix.split(".")) + 2 if prefix else 2  # its own projections, not those of modules inside
        own_weights = [t for t in rows if t.startswith(f"{prefix}." if prefix else "") and len(t.split(".")) == depth]
        shares = {len(rows[t][0]) / before[t][0] for t in own_weights if 0 in rows[t] and len(before[t]) == 2}
        if not labels or len(shares) != 1:
            continue
        share, sizes = shares.pop(), {before[t][0] for t in own_weights}
        for name, value in labels.items():
            if float(value * share).is_integer():
                setattr(owner, name, int(value * share))
        for name in WIDTHS:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value in sizes:
                setattr(owner, name, round(value * share))

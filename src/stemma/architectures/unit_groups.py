"""Which tensor axes carry the same hidden units, for any checkpoint.

A family (an architecture as data) answers where the tensors' names and shapes fit one; otherwise the answer is
inferred from names, otherwise from shapes alone, and then says no more than is sure.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from stemma.architectures.families import Fit, fits
from stemma.architectures.from_names import from_names
from stemma.architectures.from_shapes import from_shapes
from stemma.architectures.recurrent import recurrent
from stemma.architectures.structure import (
    AxisLabel,
    GroupRule,
    MisfitError,
    Structure,
    assemble,
    collect_groups,
    prefixed,
    unknown,
)
from stemma.types import UnitGroup

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model


def structure(model: "Model") -> Structure:
    """Which axes of a model's tensors carry which hidden units.

    Cost: names and shapes only; no weight is read.

    Args:
        model: Any model.

    Returns:
        Labels for every tensor of `model.weights`, the groups in causal order, and how far to trust them.
    """
    shapes = tuple((name, tuple(t.shape)) for name, t in model.weights.items())
    return _remembered(shapes, json.dumps(model.config, sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _remembered(shapes: tuple[tuple[str, tuple[int, ...]], ...], config: str) -> Structure:
    return structure_of(dict(shapes), json.loads(config))


def structure_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object] | None = None) -> Structure:
    """As `structure`, from names and shapes.

    Args:
        shapes: Shape by tensor name.
        config: The configuration claimed beside the weights, if any.

    Returns:
        The structure.
    """
    whole = {n: s for n, s in shapes.items() if all(s)}
    found = _from_families(whole, config) or recurrent(whole) or from_names(whole) or from_shapes(whole)
    return replace(found, axes={n: found.axes.get(n) or unknown(s) for n, s in shapes.items()})


def axes(model: "Model") -> Mapping[str, tuple[AxisLabel, ...]]:
    """One label per axis, for every tensor.

    Args:
        model: Any model.

    Returns:
        Labels by tensor name.
    """
    return structure(model).axes


def unit_groups(model: "Model") -> tuple[UnitGroup, ...]:
    """The groups of hidden units, in causal order.

    Args:
        model: Any model.

    Returns:
        The groups; empty where only single axes are known.
    """
    return structure(model).groups


def understood(known: Structure) -> bool:
    """Whether a structure says which symmetries a network has: a family does, and so do names that make a chain.

    Args:
        known: A structure.

    Returns:
        False where only shapes, or nothing, is known.
    """
    return bool(known.groups) and known.source != "inferred:shapes"


def _from_families(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object] | None) -> Structure | None:
    """Lay families on the tensors: the best fit, then others on what it leaves (towers of a composed model).

    Returns:
        The structure, None if no family fits.
    """
    chosen: list[tuple[Fit, dict[str, tuple[AxisLabel, ...]], dict[str, GroupRule]]] = []
    covered: set[str] = set()
    for fit in fits(shapes, config):
        if covered & set(fit.draft) or not fit.draft:
            continue
        mine = {n: shapes[n] for n in fit.draft}
        named = _with_prefix(fit)
        try:
            labels, _ = assemble(mine, named.draft, named.rules, named.sizes)
        except MisfitError:
            continue
        rules = {g: prefixed(r, len(chosen)) for g, r in named.rules.items()}
        chosen.append((fit, labels, rules))
        covered |= set(fit.draft)
    matrices = [n for n, s in shapes.items() if len(s) > 1]
    if not chosen or sum(n in covered for n in matrices) < 0.5 * len(matrices):
        return None
    labels = {n: unknown(s) for n, s in shapes.items()} | {n: a for _, part, _ in chosen for n, a in part.items()}
    rules = {g: r for _, _, part in chosen for g, r in part.items()}
    source = "+".join(dict.fromkeys(f"family:{f.family.name}" for f, _, _ in chosen))
    groups = collect_groups(labels, rules)
    return Structure(source, all(_distinct(f, groups) for f, _, _ in chosen), labels, groups)


def _distinct(fit: Fit, groups: tuple[UnitGroup, ...]) -> bool:
    """Whether groups of a family are surely disjoint: names as plain as `layers.0.weight` may hide shortcuts.

    Returns:
        True for a family whose names say it, one that the config names, and groups that all differ in size.
    """
    sizes = [g.size for g in groups if g.name in {p.name for a in fit.draft.values() for parts in a for p in parts}]
    return fit.family.explicit or fit.claimed or len(set(sizes)) == len(sizes)


def _with_prefix(fit: Fit) -> Fit:
    """The fit with group names that say which tower they belong to.

    Returns:
        The same fit where the prefix is empty.
    """
    tower = fit.prefix.removeprefix("module.").removeprefix("model.")
    if not tower:
        return fit
    draft = {
        n: [[p if p.fixed else replace(p, name=tower + p.name) for p in parts] for parts in labels]
        for n, labels in fit.draft.items()
    }
    rules = {tower + g: r for g, r in fit.rules.items()}
    return replace(fit, draft=draft, rules=rules, sizes={tower + g: n for g, n in fit.sizes.items()})


def permute(
    arrays: Mapping[str, np.ndarray], structure: Structure, permutations: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Put the units of some groups in another order, on every axis that carries them.

    Args:
        arrays: Weights by tensor name; tensors that the structure does not know pass unchanged.
        structure: The structure of the model that they come from.
        permutations: Per group name, which old unit stands at each new place, `[units]`.

    Returns:
        New arrays (those without a permuted axis are the given ones).
    """
    out = dict(arrays)
    for tensor, labels in structure.axes.items():
        if tensor not in out:
            continue
        for axis, label in enumerate(labels):
            order = np.arange(out[tensor].shape[axis])
            for s in label.segments:
                if s.group in permutations:
                    index = s.index()
                    order[index] = index[np.asarray(permutations[s.group])]
            if not np.array_equal(order, np.arange(len(order))):
                out[tensor] = np.take(out[tensor], order, axis=axis)
    return out


def check_by_permutation(
    model: "Model", network: Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray],
    group: UnitGroup | str, inputs: np.ndarray, seed: int = 0, structure: Structure | None = None,
) -> float:  # fmt: skip
    """How far the outputs move when all members of a group are permuted: 0 (to rounding) if the group is right.

    It proves the symmetry, not exchangeability under training.

    Args:
        model: A model whose network can be run.
        network: Weights by tensor name and inputs → outputs.
        group: The group, or its name.
        inputs: What the network is run on.
        seed: Of the permutation.
        structure: The model's structure, where it is at hand.

    Returns:
        Largest absolute difference of any output.
    """
    known = structure if structure is not None else structure_of(
        {n: tuple(t.shape) for n, t in model.weights.items()}, model.config
    )  # fmt: skip
    target = known.group(group) if isinstance(group, str) else group
    arrays = {name: t.array() for name, t in model.weights.items()}
    order = np.random.default_rng(seed).permutation(target.size)
    before = np.asarray(network(arrays, inputs))
    after = np.asarray(network(permute(arrays, known, {target.name: order}), inputs))
    return float(np.abs(after - before).max())

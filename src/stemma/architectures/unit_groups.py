"""Which tensor axes carry the same hidden units, for any checkpoint.

A family (an architecture as data) is used where names and shapes of the tensors match one; otherwise the groups are
inferred from names, otherwise from shapes alone (then only what is certain).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from stemma.architectures.families import FamilyMatch, match_families
from stemma.architectures.from_names import from_names
from stemma.architectures.from_shapes import from_shapes
from stemma.architectures.recurrent import from_recurrent_names
from stemma.architectures.structure import (
    AxisLabel,
    GroupRule,
    MisfitError,
    Structure,
    assemble,
    collect_groups,
    unknown_axes,
    with_position_prefix,
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
        Labels for every tensor of `model.weights`, the groups in causal order, and whether they are certain.
    """
    shapes = tuple((name, tuple(t.shape)) for name, t in model.weights.items())
    return _cached_structure(shapes, json.dumps(model.config, sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _cached_structure(shapes: tuple[tuple[str, tuple[int, ...]], ...], config: str) -> Structure:
    return structure_of(dict(shapes), json.loads(config))


def structure_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object] | None = None) -> Structure:
    """As `structure`, from the shape by tensor name and the claimed config."""
    nonempty = {n: s for n, s in shapes.items() if all(s)}
    found = (
        _from_families(nonempty, config)
        or from_recurrent_names(nonempty)
        or from_names(nonempty)
        or from_shapes(nonempty)
    )
    return replace(found, axes={n: found.axes.get(n) or unknown_axes(s) for n, s in shapes.items()})


def axes(model: "Model") -> Mapping[str, tuple[AxisLabel, ...]]:
    """One label per axis, for every tensor of a model."""
    return structure(model).axes


def unit_groups(model: "Model") -> tuple[UnitGroup, ...]:
    """Groups of hidden units in causal order; empty where only single axes are known."""
    return structure(model).groups


def has_known_symmetries(known: Structure) -> bool:
    """Whether the symmetries of the network are known: from a family, or from names that form a chain."""
    return bool(known.groups) and known.source != "inferred:shapes"


def _from_families(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object] | None) -> Structure | None:
    """Match families: the best one, then others on the remaining tensors (towers); None if none fits."""
    chosen: list[tuple[FamilyMatch, dict[str, tuple[AxisLabel, ...]], dict[str, GroupRule]]] = []
    covered: set[str] = set()
    for fit in match_families(shapes, config):
        if covered & set(fit.draft) or not fit.draft:
            continue
        covered_shapes = {n: shapes[n] for n in fit.draft}
        named = _with_prefix(fit)
        try:
            labels, _ = assemble(covered_shapes, named.draft, named.rules, named.sizes)
        except MisfitError:
            continue
        rules = {g: with_position_prefix(r, len(chosen)) for g, r in named.rules.items()}
        chosen.append((fit, labels, rules))
        covered |= set(fit.draft)
    matrices = [n for n, s in shapes.items() if len(s) > 1]
    if not chosen or sum(n in covered for n in matrices) < 0.5 * len(matrices):
        return None
    labels = {n: unknown_axes(s) for n, s in shapes.items()} | {n: a for _, part, _ in chosen for n, a in part.items()}
    rules = {g: r for _, _, part in chosen for g, r in part.items()}
    source = "+".join(dict.fromkeys(f"family:{f.family.name}" for f, _, _ in chosen))
    groups = collect_groups(labels, rules)
    return Structure(source, all(_groups_are_distinct(f, groups) for f, _, _ in chosen), labels, groups)


def _groups_are_distinct(fit: FamilyMatch, groups: tuple[UnitGroup, ...]) -> bool:
    """Whether the groups of a family are certainly disjoint; names like `layers.0.weight` may hide shortcuts."""
    sizes = [g.size for g in groups if g.name in {p.name for a in fit.draft.values() for parts in a for p in parts}]
    return fit.family.explicit or fit.claimed or len(set(sizes)) == len(sizes)


def _with_prefix(fit: FamilyMatch) -> FamilyMatch:
    """The match with the tower in its group names."""
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
    """Reorder the units of groups on every axis; a permutation gives the old index at each new position."""
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

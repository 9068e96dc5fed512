"""Whether a map of units that reproduces all matrices preserves the function: biases and gains must agree with it."""

from collections.abc import Mapping

import numpy as np

from stemma.checkpoints.model import Model
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.relation.reformatted import Reformatted
from stemma.kinship.relation.remapped_model import remap
from stemma.kinship.relation.scaled import Scaled
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.units_matched import EvaluatedMap

LARGEST = 1 << 22
"""Largest size of a tensor, in entries, whose factors are computed."""

NOISE = 0.02
"""Largest log factor that counts as rounding, and largest deviation from one factor per unit of each axis."""


def preserves_function(a: Model, b: Model, matched: EvaluatedMap) -> bool:
    """Whether biases and gains follow an exact map of units, and rescaling factors cancel."""
    found = matched.found.map
    if matched.found.gains_folded or any(m.rotation is not None for p in found.parts.values() for m in p.maps):
        return True  # folded gains leave nothing to compare; rotations are found only for constant gains
    reference, target = (b, a) if matched.reference_is_b else (a, b)
    remapped = remap(reference, target, found)
    if remapped is None:
        return True
    pair = Pair.of(remapped, target, by_name(remapped, target))
    vectors = {n for n, t in target.weights.items() if t.is_float and sum(s > 1 for s in t.shape) == 1}
    if vectors - set(remapped.weights):  # vectors of other names: unknown which of them cancel factors
        return Scaled().fit(pair) is None
    return pair_preserves_function(pair, rescaled="units rescaled" in matched.evidence.details["steps"])


def pair_preserves_function(pair: Pair, *, rescaled: bool) -> bool:
    """Whether vectors follow the matrices, and rescaling factors of units cancel."""
    if any(any(layer.not_finite) for layer in pair.layers) or Scaled().fit(pair) is not None:
        return False
    vectors = [v for v in pair.layers if not v.matrix and not v.statistic and v.measured is not None]
    if not rescaled and pair.parent.tensors.keys() == pair.child.tensors.keys() and not _folded(vectors):
        return Reformatted().fit(pair) is not None and all(v.is_explained for v in vectors)
    return _folded(vectors) or (all(_same_signs(v) for v in vectors) and _cancel(pair))


def _folded(vectors: list[Layer]) -> bool:
    """Whether the gains of a normalisation are all 1 in one model only, because they are folded into matrices."""
    ones = [(v.sums.rows[i] == 1).all() for v in vectors for i in (0, 1) if v.sums.rows.shape[1] > 1]
    return any(x != y for x, y in zip(ones[::2], ones[1::2], strict=True))


def _same_signs(v: Layer) -> bool:
    a, b, product, _ = v.sums.rows
    return bool((product[(a > 0) | (b > 0)] > 0).all())


def _cancel(pair: Pair) -> bool:
    """Whether the log factors of every hidden unit sum to zero over its incoming and outgoing matrices."""
    factors: dict[str, list[np.ndarray]] = {}
    normed = {label.group for v in pair.layers if v.statistic for label in pair.structure_of_parent.axes.get(v.a, ())}
    for m in pair.matrices:
        found = [np.zeros(n) for n in pair.parent.weights[m.a].shape] if m.is_explained else _factors(pair, m)
        if found is None:
            return True
        for label, f in zip(pair.structure_of_parent.axes[m.a], found, strict=True):
            if label.kind == "unit" and label.group and label.segments[0].block == 1 and label.group not in normed:
                factors.setdefault(label.group, []).append(f)
    whole = {g: f for g, f in factors.items() if len(f) > 1 and len({len(x) for x in f}) == 1}
    sums = [np.sum(f, axis=0) for f in whole.values()]
    return all(float(np.abs(s).max(initial=0.0)) <= NOISE for s in sums) and _biases_follow(pair, whole)


def _biases_follow(pair: Pair, factors: Mapping[str, list[np.ndarray]]) -> bool:
    """Whether the bias of every hidden unit has the factor of one of its matrices."""
    for v in pair.layers:
        known = factors.get(
            next((label.group for label in pair.structure_of_parent.axes.get(v.a, ()) if label.group), "")
        )
        if v.matrix or v.statistic or known is None or v.measured is None:
            continue
        a, b, *_ = v.sums.rows
        alive = (a > 0) & (b > 0)
        own = 0.5 * np.log(np.where(alive, b, 1) / np.where(alive, a, 1))
        apart = [np.ptp((own - f)[alive]) for f in known if len(f) == len(own)]
        if alive.any() and apart and min(apart) > 2 * NOISE:
            return False
    return True


def _factors(pair: Pair, layer: Layer) -> list[np.ndarray] | None:
    """Log factors along every axis of a matrix, of mean zero; None where factors do not explain the matrix."""
    x, y = pair.parent.weights[layer.a], pair.child.weights[layer.b]
    if x.shape != y.shape or x.size > LARGEST:
        return None
    a, b = (t.array().astype(np.float64) for t in (x, y))
    nonzero = (a != 0) & (b != 0)
    if nonzero.mean() < 0.5 or (a * b < 0).any():
        return None
    ratio = np.where(nonzero, np.log(np.abs(np.where(nonzero, b, 1) / np.where(nonzero, a, 1))), np.nan)
    mean = float(np.nanmean(ratio))
    out, residuals = [], ratio - mean
    for axis in range(a.ndim):
        others = tuple(i for i in range(a.ndim) if i != axis)
        if np.isnan(ratio).all(axis=others).any():
            return None
        f = np.nanmean(ratio, axis=others) - mean
        residuals = residuals - f.reshape([-1 if i == axis else 1 for i in range(a.ndim)])
        out.append(f)
    return out if float(np.nanmedian(np.abs(residuals))) <= NOISE else None

"""Whether a map of units that explains every matrix can leave the function as it is: biases and factors must follow."""

from collections.abc import Mapping

import numpy as np

from stemma.checkpoints.model import Model
from stemma.kinship.relation.aligned_pair import remapped
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.relation.reformatted import Reformatted
from stemma.kinship.relation.scaled import Scaled
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.matched import Matched

LARGEST = 1 << 22
"""Entries of a tensor up to which its factors are looked at."""

NOISE = 0.02
"""Logarithm of a factor that rounding may leave, and how far factors may be from one number per unit of each axis."""


def maps_function(a: Model, b: Model, matched: Matched) -> bool:
    """Whether the map of units that covers all matrices covers the rest too.

    Args:
        a: One model.
        b: The other one.
        matched: An exact map between the two.

    Returns:
        False where biases or gains do not follow the map, or factors do not cancel.
    """
    found = matched.found.map
    if matched.found.folded or any(m.rotation is not None for p in found.parts.values() for m in p.maps):
        return True  # gains that were folded away leave nothing to compare; a rotation was found as they are constant
    reference, target = (b, a) if matched.turned else (a, b)
    moved = remapped(reference, target, found)
    if moved is None:
        return True
    pair = Pair.of(moved, target, by_name(moved, target))
    vectors = {n for n, t in target.weights.items() if t.is_float and sum(s > 1 for s in t.shape) == 1}
    if vectors - set(moved.weights):  # of other names, so that nothing tells which of them take factors back
        return Scaled().explain(pair) is None
    return keeps_function(pair, rescaled="units rescaled" in matched.evidence.details["steps"])


def keeps_function(pair: Pair, *, rescaled: bool) -> bool:
    """Whether vectors follow the matrices, and factors of units cancel, as far as it shows.

    One factor for a whole tensor is no rescaling of units; nor is one that no other tensor takes back. Factors are
    looked at in groups that no normalisation stands in, whose statistics could take them up.

    Args:
        pair: Two models whose matrices agree up to positive factors per unit, in one order of units.
        rescaled: Whether there are such factors; otherwise biases and gains must be the same.

    Returns:
        False where the function cannot be the same.
    """
    if any(any(layer.holes) for layer in pair.layers) or Scaled().explain(pair) is not None:
        return False
    vectors = [v for v in pair.layers if not v.matrix and not v.statistic and v.measured is not None]
    if not rescaled and pair.parent.tensors.keys() == pair.child.tensors.keys() and not _folded(vectors):
        return Reformatted().explain(pair) is not None and all(v.settled for v in vectors)
    return _folded(vectors) or (all(_same_signs(v) for v in vectors) and _cancel(pair))


def _folded(vectors: list[Layer]) -> bool:
    """Whether the gains of a normalisation are all one on one side alone: they are in the matrices, with the shifts."""
    ones = [(v.sums.rows[i] == 1).all() for v in vectors for i in (0, 1) if v.sums.rows.shape[1] > 1]
    return any(x != y for x, y in zip(ones[::2], ones[1::2], strict=True))


def _same_signs(v: Layer) -> bool:
    a, b, product, _ = v.sums.rows
    return bool((product[(a > 0) | (b > 0)] > 0).all())


def _cancel(pair: Pair) -> bool:
    """Whether the factors of every hidden unit add up to nothing over the matrices that it has a row or column in."""
    factors: dict[str, list[np.ndarray]] = {}
    normed = {label.group for v in pair.layers if v.statistic for label in pair.known.axes.get(v.a, ())}
    for m in pair.matrices:
        found = [np.zeros(n) for n in pair.parent.weights[m.a].shape] if m.settled else _factors(pair, m)
        if found is None:
            return True
        for label, f in zip(pair.known.axes[m.a], found, strict=True):
            if label.kind == "unit" and label.group and label.segments[0].block == 1 and label.group not in normed:
                factors.setdefault(label.group, []).append(f)
    whole = {g: f for g, f in factors.items() if len(f) > 1 and len({len(x) for x in f}) == 1}
    sums = [np.sum(f, axis=0) for f in whole.values()]
    return all(float(np.abs(s).max(initial=0.0)) <= NOISE for s in sums) and _biases_follow(pair, whole)


def _biases_follow(pair: Pair, factors: Mapping[str, list[np.ndarray]]) -> bool:
    """Whether the bias of every hidden unit has the factor of one of its matrices."""
    for v in pair.layers:
        known = factors.get(next((label.group for label in pair.known.axes.get(v.a, ()) if label.group), ""))
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
    """Logarithms of the factors along every axis of a matrix, each with mean zero.

    Returns:
        One array per axis; None where the layouts differ, or factors per unit do not explain the matrix.
    """
    x, y = pair.parent.weights[layer.a], pair.child.weights[layer.b]
    if x.shape != y.shape or x.size > LARGEST:
        return None
    a, b = (t.array().astype(np.float64) for t in (x, y))
    told = (a != 0) & (b != 0)
    if told.mean() < 0.5 or (a * b < 0).any():
        return None
    ratio = np.where(told, np.log(np.abs(np.where(told, b, 1) / np.where(told, a, 1))), np.nan)
    mean = float(np.nanmean(ratio))
    out, rest = [], ratio - mean
    for axis in range(a.ndim):
        others = tuple(i for i in range(a.ndim) if i != axis)
        if np.isnan(ratio).all(axis=others).any():
            return None
        f = np.nanmean(ratio, axis=others) - mean
        rest = rest - f.reshape([-1 if i == axis else 1 for i in range(a.ndim)])
        out.append(f)
    return out if float(np.nanmedian(np.abs(rest))) <= NOISE else None

"""Merging rules with the same weights for every entry of a tensor, fitted to a child and tested entry by entry.

The rule that was used reproduces the child down to the rounding of its number format at (almost) every entry. No wrong
rule does, for rounding is thousands of times finer than the differences of parents. Each function fits one rule to
given parents and returns the child that it predicts. `stemma.ancestry.merges.trimming_rules` has the rules that choose
among entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stemma.ancestry.merges.task_vectors import TaskVectors


@dataclass(frozen=True, eq=False)
class Fit:
    """A rule fitted to some parents.

    Attributes:
        rule: Name of the rule.
        parents: Positions of the candidates.
        coefficients: Effective weight of each parent's task vector: what it adds on average, before trimming.
        predicted: `float64 [k]`, the child's task vector according to the rule; NaN where too few entries were left to
            test it.
        details: Further parameters of the rule.
    """

    rule: str
    parents: tuple[int, ...]
    coefficients: tuple[float, ...]
    predicted: np.ndarray
    details: Mapping[str, Any] = field(default_factory=dict)


def linear(vectors: TaskVectors, parents: Sequence[int], rows: np.ndarray | None = None) -> Fit:
    """One weight per parent; `linear` where they sum to 1, `task-arithmetic` otherwise; fitted on all rows by default.

    Returns:
        The fit.

    Source: Wortsman et al., ICML 2022 (arXiv:2203.05482); Ilharco et al., ICLR 2023 (arXiv:2212.04089).
    """
    x = vectors.of(parents)
    w = weights(vectors, parents, slice(None) if rows is None else rows)
    rule = "linear" if abs(w.sum() - 1) < 1e-3 else "task-arithmetic"
    return Fit(rule, tuple(parents), tuple(w.tolist()), w @ x)


def weights(vectors: TaskVectors, parents: Sequence[int], rows: np.ndarray | slice) -> np.ndarray:
    """Non-negative least squares of the child on some parents, `[parents]`; they sum to 1 where the base is unknown."""
    scale = vectors.scale[rows]
    a, b = vectors.of(parents, rows) / scale, vectors.child[rows] / scale
    if not len(b) or not len(a):
        return np.zeros(len(parents))
    r, target = _triangular_system(a, b)
    if not vectors.has_base:
        heavy = 1e4 * max(1e-12, float(np.abs(r).max(initial=0.0)))
        r, target = np.vstack([r, np.full(r.shape[1], heavy)]), np.append(target, heavy)
        return _non_negative(r, target)
    w = _non_negative(r, target)
    used = w > 0
    if used.any():  # one step of refinement: the triangle was made from products, which halve the digits
        step = np.linalg.lstsq(r[:, used].T @ r[:, used], a[used] @ (b - w @ a), rcond=None)[0]
        w[used] = np.maximum(w[used] + step, 0)
    return w


def _triangular_system(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangle R and target t such that the squares of `b - w @ a` are those of `t - R @ w` and a constant."""
    try:
        lower = np.linalg.cholesky(a @ a.T)
        if np.diag(lower).min() > 1e-6 * np.diag(lower).max():
            return lower.T, np.linalg.solve(lower, a @ b)
    except np.linalg.LinAlgError:
        pass
    whole = np.asarray(np.linalg.qr(np.vstack([a, b]).T, mode="r"))
    return whole[:, :-1], whole[:, -1]


def _non_negative(r: np.ndarray, target: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    try:
        return nnls(r, target)[0]
    except RuntimeError:  # it cycles on collinear columns
        return np.maximum(np.linalg.lstsq(r, target, rcond=None)[0], 0)


def layer_wise(vectors: TaskVectors, parents: Sequence[int], rows: np.ndarray | None = None) -> Fit:
    """Separate weights in each layer (by number in `details`); `franken` where each layer is one parent's."""
    fitted = np.zeros(len(vectors.child), bool)
    fitted[slice(None) if rows is None else rows] = True
    predicted, table, sizes = np.zeros_like(vectors.child), {}, []
    for layer in np.unique(vectors.layer):
        here = vectors.layer == layer
        w = weights(vectors, parents, np.flatnonzero(here & fitted))
        predicted[here] = w @ vectors.of(parents, here) if here.sum() >= 4 * len(parents) else np.nan
        table[int(layer)] = w.tolist()
        sizes.append(here.sum())
    rows_ = np.array(list(table.values()))
    owned = np.isclose(rows_, 1, atol=1e-3).sum(1) == 1
    none = (rows_ < 1e-3).sum(1)
    franken = bool((owned & (none == len(parents) - 1) | (vectors.has_base & (none == len(parents)))).all())
    mean = np.average(rows_, axis=0, weights=sizes)
    details = {"layers": table}
    return Fit("franken" if franken else "layer-wise", tuple(parents), tuple(mean.tolist()), predicted, details)


def slerp(vectors: TaskVectors, parents: Sequence[int]) -> Fit | None:
    """Two parents on the arc between them: a weight each per tensor, which must agree with one position on the arc.

    With angle W between the parents' weights, the weights are sin((1-t)W)/sin W and sin(tW)/sin W.

    Args:
        vectors: The task vectors.
        parents: Positions of two candidates.

    Returns:
        The fit, with `t`; None where the weights lie on no common arc.

    Source: Shoemake, SIGGRAPH 1985.
    """
    if len(parents) != 2:
        return None
    predicted, found, sizes = np.zeros_like(vectors.child), [], []
    for tensor in np.unique(vectors.tensor):
        here = vectors.tensor == tensor
        both = vectors.of(parents, here) + vectors.base[here]
        if both.shape[1] < 4:
            predicted[here] = np.nan
            continue
        w = np.linalg.lstsq(both.T, vectors.child[here] + vectors.base[here], rcond=None)[0]
        predicted[here] = w @ both - vectors.base[here]
        along = _place_on_arc(*w.tolist())
        if along is not None:
            found.append(along)
            sizes.append(both.shape[1])
    if not found:
        return None
    t, share = np.array(found), np.array(sizes, float)
    middle = float(t[np.argsort(t)][np.searchsorted(np.cumsum(share[np.argsort(t)]), share.sum() / 2)])
    if not 0.01 < middle < 0.99 or share[np.abs(t - middle) < 0.02].sum() < 0.8 * share.sum():
        return None
    return Fit("slerp", tuple(parents), (1 - middle, middle), predicted, {"t": middle})


def _place_on_arc(a: float, b: float) -> float | None:
    """The angle follows from a^2 + b^2 + 2ab cos W = 1, and the position from the angle."""
    if a <= 0 or b <= 0:
        return None
    cosine = (1 - a * a - b * b) / (2 * a * b)
    if not -1 < cosine < 1 - 1e-9:
        return b / (a + b) if abs(a + b - 1) < 1e-4 else None
    angle = float(np.arccos(cosine))
    return float(np.arctan2(b * np.sin(angle), a + b * cosine)) / angle

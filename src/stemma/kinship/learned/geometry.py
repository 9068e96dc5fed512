"""Lengths and angles between weights, as the lineage detector is given them.

A change made by training is nearly orthogonal to changes made before and elsewhere. So, seen from a parent, its child
and its other relatives lie at right angles; seen from a sibling, the child and the other siblings lie at 60 degrees or
less. Such angles follow from the squared distances between all models in question.
"""

from collections.abc import Callable

import numpy as np

from stemma.kinship.learned.weight_samples import WeightSamples

PER_LAYER, PER_TRIANGLE, PER_FEATURES = 10, 11, 4
"""Numbers per pair and layer, per pair and further candidate, and per pair of features."""

NEAR = 16
"""Candidates that a pair is seen together with."""

FLOOR = 1e-8
"""Relative squared distance that counts as none: what rounding to 16 bits leaves."""

Squares = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Squared distances `[layers, rows, columns]` of two lists of positions."""


def squares(samples: WeightSamples, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances per layer, `float64 [layers, rows, columns]`; NaN where either model lacks the layer."""
    out = np.full((samples.values.shape[1], len(rows), len(columns)), np.nan)
    for i in range(len(out)):
        x, y = (samples.values[index, i].astype(np.float64) for index in (rows, columns))
        both = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None]
        found = np.maximum(both - 2 * x @ y.T, 0)
        found[found < 1e-13 * both] = 0
        known = samples.present[rows, i, None] & samples.present[None, columns, i]
        out[i][known] = found[known]
    return out


def by_layer(samples: WeightSamples, child: int, others: np.ndarray) -> np.ndarray:
    """What each layer of a pair shows beyond its entries.

    Args:
        samples: The samples of models.
        child: Position of the child.
        others: Positions of the candidates.

    Returns:
        `float32 [candidates, layers, PER_LAYER]`: logarithm of the relative squared distance, cosine, logarithm of the
        ratio of lengths, shares of equal entries, of entries zero in the child alone and in the candidate alone, tails
        of the change, share of distinct values of child less candidate, cosine of the change with the candidate,
        logarithm of the layer's size. Zero where the candidate lacks the layer.
    """
    c, p = samples.values[child][None], samples.values[others]
    valid = samples.valid[None]
    count = np.maximum(samples.valid.sum(1), 1)[None]
    d = c - p
    cc, pp, dd = (np.square(x, dtype=np.float32).sum(2).astype(np.float64) for x in (c, p, d))
    cp, dp = (np.einsum("kle,kle->kl", np.broadcast_to(x, p.shape), p).astype(np.float64) for x in (c, d))
    fourth = np.square(np.square(d)).sum(2).astype(np.float64)
    scale_p, scale_c, scale_d = (np.sqrt(np.maximum(x, 1e-30)) for x in (pp, cc, dd))
    out = np.stack(
        [
            np.log10(dd / np.maximum(pp, 1e-30) + FLOOR) / 2,
            cp / (scale_p * scale_c),
            np.clip(np.log(scale_c / scale_p), -3, 3),
            ((d == 0) & valid).sum(2) / count,
            ((c == 0) & (p != 0) & valid).sum(2) / count,
            ((p == 0) & (c != 0) & valid).sum(2) / count,
            np.where(dd > 0, np.log(np.maximum(fourth * count, 1e-30) / np.maximum(dd**2, 1e-30) + 1e-3) / 3, 0),
            samples.distinct[child][None] - samples.distinct[others],
            np.where(dd > 0, dp / (scale_d * scale_p), 0),
            np.broadcast_to(np.log10(np.maximum(samples.sizes, 1)) / 5, dd.shape),
        ],
        -1,
    )
    return np.where(_shared(samples, child, others)[..., None], np.clip(out, -6, 6), 0).astype(np.float32)


def _shared(samples: WeightSamples, child: int, others: np.ndarray) -> np.ndarray:
    return samples.present[child][None] & samples.present[others]


def triangles(
    squared: Squares, lengths: np.ndarray, present: np.ndarray, child: int, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The child, a candidate and a further candidate, as lengths and angles over all layers.

    Layers weigh equally: each is divided by the child's squared length. The further candidates are the `NEAR` nearest
    to the child: the others are hardly related to it.

    Args:
        squared: Gives squared distances of positions, as `squares` does.
        lengths: Squared lengths, `[layers, models]`.
        present: `bool [models, layers]`.
        child: Position of the child.
        others: Positions of the candidates.

    Returns:
        `float32 [candidates, NEAR, PER_TRIANGLE]`, and `bool [candidates, NEAR]`: whether the three share a layer
        (never true for a candidate and itself).
    """
    own = present[child]
    weight = np.where(own, 1 / np.maximum(lengths[:, child], 1e-30), 0)
    to_child, comparable = _mean(squared(np.array([child]), others)[:, 0], weight, own)
    order = np.argsort(np.where(comparable, to_child, np.inf), kind="stable")[:NEAR]
    kj, together = _mean(squared(others, others[order]), weight, own)
    shared = present[others].T & own[:, None]
    size = np.where(shared, lengths[:, others] * weight[:, None], 0).sum(0) / np.maximum(shared.sum(0), 1)
    one, two = np.broadcast_to(to_child[:, None], kj.shape), np.broadcast_to(to_child[None, order], kj.shape)
    sk, sj = np.broadcast_to(size[:, None], kj.shape), np.broadcast_to(size[None, order], kj.shape)
    found = np.stack(
        [
            _angle(one, kj, two),
            _angle(two, kj, one),
            _angle(one, two, kj),
            _along(one, kj, two),
            _along(kj, one, two),
            _along(two, one, kj),
            np.log10(one / (1 + sk) + FLOOR) / 2,
            np.log10(two / (1 + sj) + FLOOR) / 2,
            np.log10(kj / (sk + sj + 1e-30) + FLOOR) / 2,
            np.clip(np.log((sj + 1e-30) / (sk + 1e-30)), -3, 3),
            np.clip(np.log((one + FLOOR) / (two + FLOOR)), -6, 6) / 2,
        ],
        -1,
    )
    good = comparable[:, None] & comparable[None, order] & together & (np.arange(len(others))[:, None] != order[None])
    out = np.zeros((len(others), NEAR, PER_TRIANGLE), np.float32)
    mask = np.zeros((len(others), NEAR), bool)
    out[:, : len(order)], mask[:, : len(order)] = np.where(good[..., None], found, 0), good
    return out, mask


def _mean(layers: np.ndarray, weight: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the layers that are known of distances in units of the child's length; and whether any is known."""
    along = (-1, *[1] * (layers.ndim - 1))
    known = ~np.isnan(layers) & own.reshape(along)
    total = np.where(known, layers * weight.reshape(along), 0).sum(0)
    return total / np.maximum(known.sum(0), 1), known.any(0)


def _along(x: np.ndarray, y: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    """Share of the first side of a triangle that a tree path to the third model follows, about 0 to 1."""
    return np.clip((x + y - opposite) / (2 * x + 1e-9), -0.5, 1.5)


def _angle(x: np.ndarray, y: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    """Cosine of the angle between two sides by the squared lengths of the three; 0 where a side has none."""
    product = np.sqrt(x * y)
    return np.where(product > 1e-12, np.clip((x + y - opposite) / (2 * product + 1e-30), -1, 1), 0)


def of_features(samples: WeightSamples, child: int, others: np.ndarray) -> np.ndarray:
    """How the features of a pair compare.

    Args:
        samples: The samples of models, with features.
        child: Position of the child.
        others: Positions of the candidates.

    Returns:
        `float32 [candidates, PER_FEATURES]`: logarithm of the relative squared distance, cosine, logarithm of the ratio
        of lengths, linear CKA.
    """
    found = samples.features
    if found is None:
        return np.zeros((len(others), PER_FEATURES), np.float32)
    c = found[child].astype(np.float64)
    out = np.zeros((len(others), PER_FEATURES))
    centred = c - c.mean(0)
    own = np.sqrt(np.square(centred.T @ centred).sum())
    for i, k in enumerate(others):
        p = found[k].astype(np.float64)
        lengths = np.sqrt(np.square(c).sum() * np.square(p).sum()) + 1e-30
        q = p - p.mean(0)
        cross, other = np.square(q.T @ centred).sum(), np.sqrt(np.square(q.T @ q).sum())
        out[i] = (
            np.log10(np.square(c - p).sum() / (np.square(p).sum() + 1e-30) + FLOOR) / 2,
            (c * p).sum() / lengths,
            np.clip(np.log(np.sqrt(np.square(c).sum() + 1e-30) / np.sqrt(np.square(p).sum() + 1e-30)), -3, 3),
            cross / (own * other + 1e-30),
        )
    return np.clip(out, -6, 6).astype(np.float32)

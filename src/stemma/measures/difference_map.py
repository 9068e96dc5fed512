"""Difference maps: the contribution of every input coordinate to the field cosine."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.base import Block
from stemma.measures.base import Values
from stemma.measures.field_cosine import FieldCosine


def difference_map(a: Values, b: Values, shape: tuple[int, ...], measure: FieldCosine | None = None) -> np.ndarray:
    """The contribution of every input coordinate to the field cosine of each probe.

    For unit vectors u and v, `1 - cos(u, v) = sum over d of (u_d - v_d)^2 / 2`: contributions are not negative and sum
    to the distance. They are averaged over steps as in the measure. A zero field that is included contributes evenly.

    Args:
        a: Values of a gradient field, not a sketch.
        b: The other model's, for the same probes.
        shape: Shape of one input; for token fields `(length,)`: the vocabulary is summed.
        measure: The measure.

    Returns:
        `[k, *shape]`, float64; each probe's sum is its distance, NaN if that is undefined.

    Raises:
        MisuseError: If the curves do not have one number per input coordinate.
    """
    epsilon = (measure or FieldCosine()).epsilon
    (u, a_length), (v, b_length) = (_directions(_curves(values, shape)) for values in (a, b))
    lengths = a_length * b_length
    counted = np.divide(lengths, np.maximum(lengths, epsilon), out=np.zeros_like(lengths), where=lengths > 0)
    even = ((a_length == 0).astype(float) + (b_length == 0)) / (2 * u.shape[2])
    parts = np.square(u - v) / 2 + u * v * (1 - counted) + even
    return _averaged(parts, a["weights"] * (a["defined"] & b["defined"]), shape)


def reliance(values: Values, shape: tuple[int, ...]) -> np.ndarray:
    """Share of a model's own field in every input coordinate: the squares of its direction, with sum 1 per probe."""
    direction, length = _directions(_curves(values, shape))
    parts = np.where(length > 0, np.square(direction), 1 / direction.shape[2])
    return _averaged(parts, values["weights"] * values["defined"], shape)


@dataclass(frozen=True, eq=False)
class DifferenceMaps:
    """Where two models differ, at selected probes and on average over all.

    Attributes:
        difference: By selected probe, the contribution of each coordinate to its distance `[*shape]`.
        a: By selected probe, where the first model's own field is.
        b: The same for the second.
        mean: `difference` averaged over all probes where it is defined; its sum is the distance.
        mean_a: `a` averaged.
        mean_b: `b` averaged.

    """

    difference: Mapping[int, np.ndarray]
    a: Mapping[int, np.ndarray]
    b: Mapping[int, np.ndarray]
    mean: np.ndarray
    mean_a: np.ndarray
    mean_b: np.ndarray


def accumulate_maps(
    blocks: Iterable[tuple[Block, Block]],
    chosen: Collection[int],
    shape: tuple[int, ...],
    measure: FieldCosine | None = None,
) -> DifferenceMaps:
    """Accumulate difference maps over zipped blocks of two models; maps are kept for the selected probes."""
    kept: tuple[dict[int, np.ndarray], ...] = ({}, {}, {})
    sums = [np.zeros(shape) for _ in kept]
    count = 0
    for a, b in blocks:
        maps = difference_map(a.values, b.values, shape, measure), *(reliance(m.values, shape) for m in (a, b))
        finite = np.isfinite(maps[0].reshape(len(a), -1)).all(1)
        count += int(finite.sum())
        for selected_maps, total, found in zip(kept, sums, maps, strict=True):
            total += found[finite].sum(0)
            selected_maps.update({a.start + i: found[i] for i in range(len(a)) if a.start + i in chosen})
    if count == 0:
        raise MisuseError("the fields are undefined at every probe, so there is no difference map")
    means = [total / count for total in sums]
    return DifferenceMaps(*kept, *means)


def _curves(values: Values, shape: tuple[int, ...]) -> np.ndarray:
    curve = np.asarray(values["curve"], np.float64)
    size = int(np.prod(shape))
    if curve.shape[2] % size or values["curve"].dtype == np.float16:
        raise MisuseError(
            f"the field has {curve.shape[2]} numbers per step, not one per coordinate of inputs {list(shape)}, "
            "because it is a sketch. Use sketch=0"
        )
    return curve


def _directions(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Curves divided by their lengths (zero where the length is), and the lengths `[k, steps, 1]`."""
    length = np.linalg.norm(curve, axis=2, keepdims=True)
    return np.divide(curve, length, out=np.zeros_like(curve), where=length > 0), length


def _averaged(parts: np.ndarray, weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    total = weights.sum(1, keepdims=True)
    shares = np.divide(weights, total, out=np.full(weights.shape, np.nan), where=total > 0)
    return np.einsum("ktd,kt->kd", parts, shares).reshape(len(parts), *shape, -1).sum(-1)

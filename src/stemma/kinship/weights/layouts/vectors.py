"""Vectors in another layout: biases, gains and statistics follow their matrix, or are found by values."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.kinship.weights.layouts.tensor_rows import GatheredTensor, sliced
from stemma.kinship.weights.layouts.tool_orders import is_simple
from stemma.kinship.weights.order.pair_reader import finite

EQUAL = 2.0**-7
"""Relative difference up to which entries count as equal, for the narrowest float format."""

SHORTEST = 8
"""Least length of a vector that is searched."""

STACKED = 1 << 16
"""Largest tensor, in entries, that is searched for stacked vectors."""

NEAR, ONCE = 0.8, 0.98
"""Correlation from which a vector counts as further trained, and share of its entries that must occur."""


def find_vectors(
    reference: Model, target: Model, found: Mapping[str, GatheredTensor]
) -> dict[str, tuple[Tensor, str]]:  # fmt: skip
    """For each vector of the reference that is elsewhere in the target: the vector, and its source's name."""
    out: dict[str, tuple[Tensor, str]] = {}
    used = {n for g in found.values() for n in g.names}
    flat = {n: t for n, t in target.weights.items() if t.is_float and t.size > 1 and n not in used and _small(t)}
    for name, tensor in reference.weights.items():
        if not tensor.is_float or _long(tensor) > 1 or tensor.size < 2:
            continue
        values = finite(tensor.array()).reshape(-1)
        matching_but_axis = _next_to_matrix(name, found, flat)
        near = [
            *([matching_but_axis] if matching_but_axis else []),
            *([(name, np.arange(len(values)))] if name in flat else []),
        ]
        place = next((p for p in near if _fit(values, flat[p[0]], p[1])), None) or _search_everywhere(values, flat)
        if place is not None and not (place[0] == name and np.array_equal(place[1], np.arange(flat[name].size))):
            shape, (source, rows) = tuple(tensor.shape), place
            make = partial(sliced, partial(_picked_values, flat[source], rows, shape))
            out[name] = Tensor(name, "F32", shape, RowStorage(make, shape)), source
    return out


def keeps_name(own: Tensor, other: Tensor, elsewhere: tuple[Tensor, Tensor] | None) -> bool:
    """Whether the target's vector of this name fits here at least as well as where it was found to be used."""
    if own.shape != other.shape:
        return False
    return elsewhere is None or _relative_difference(own, other) <= _relative_difference(*elsewhere) + EQUAL


def _relative_difference(one: Tensor, other: Tensor) -> float:
    x, y = (finite(t.array()).reshape(-1).astype(np.float64) for t in (one, other))
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(x), 1e-300))


def _small(tensor: Tensor) -> bool:
    """Whether a tensor is a vector, or stacked vectors of several layers."""
    return _long(tensor) <= 1 or tensor.size <= STACKED


def _long(tensor: Tensor) -> int:
    return sum(s > 1 for s in tensor.shape)


def _next_to_matrix(
    name: str, found: Mapping[str, GatheredTensor], flat: Mapping[str, Tensor]
) -> tuple[str, np.ndarray] | None:  # fmt: skip
    """The rows of the vector beside the tensor that contains a matrix's rows."""
    stem, _, word = name.rpartition(".")
    matrix = next((g for n, g in found.items() if n.rpartition(".")[0] == stem and len(g.sources) == 1), None)
    if matrix is None:
        return None
    source = f"{matrix.names[0].rpartition('.')[0]}.{word}"
    return (source, matrix.row) if source in flat and flat[source].size == matrix.sources[0].count else None


def _fit(values: np.ndarray, tensor: Tensor, rows: np.ndarray) -> bool:
    other = finite(tensor.array()).reshape(-1)
    if len(rows) != len(values) or len(other) <= int(rows.max(initial=-1)):
        return False
    scale = float(np.abs(values).max(initial=0.0))
    apart = np.abs(other[rows] - values) <= EQUAL * np.abs(values) + 1e-3 * EQUAL * scale
    return bool(apart.mean() >= ONCE) or _correlated(values, other[rows])


def _correlated(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two vectors are correlated as after further training."""
    norm = float(np.linalg.norm(x - x.mean()) * np.linalg.norm(y - y.mean()))
    return norm > 0 and float(((x - x.mean()) * (y - y.mean())).sum()) >= NEAR * norm


def _search_everywhere(values: np.ndarray, flat: Mapping[str, Tensor]) -> tuple[str, np.ndarray] | None:
    """A vector whose values occur in another one, in stretches; constant vectors are not searched."""
    if len(values) < SHORTEST or np.ptp(values) == 0:
        return None
    for name, tensor in flat.items():
        other = finite(tensor.array()).reshape(-1)
        if len(other) < len(values) or np.ptp(other) == 0:
            continue
        order = np.argsort(other, kind="stable")
        at = np.clip(np.searchsorted(other[order], values), 1, len(other) - 1)
        lower = np.abs(other[order[at - 1]] - values) <= np.abs(other[order[at]] - values)
        rows = np.where(lower, order[at - 1], order[at])
        if len(np.unique(rows)) >= ONCE * len(rows) and _fit(values, tensor, rows) and is_simple(rows):
            return name, rows
    return None


def _picked_values(tensor: Tensor, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return finite(tensor.array()).reshape(-1)[rows].reshape(shape)

"""Conversion of a model that stores matrices in pieces or as two factors into the other model's layout.

Tensor parallelism splits matrices, exporters store queries, keys and values separately, and a linear layer can be
stored as two factors, after a decomposition or to hide it. Pieces are proposed by sizes, names and order-invariant
features; the tests decide whether the proposal is right.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.fingerprints.tensor_content import Features, features, matrices
from stemma.kinship.weights.layouts.piece_index import (
    MANY_PROPOSALS,
    MAX_PIECES,
    PieceIndex,
    name_parts,
    natural_sort_key,
    runs_of_length,
)
from stemma.kinship.weights.sizes import sizes_of
from stemma.networks.load import from_arrays

LARGEST = 1 << 22
"""Largest matrix, in entries, for which contents of proposals are compared; for larger ones names decide."""

SHARE = 0.02
"""Share of the smaller model's entries that must lack a counterpart for pieces to be searched."""


FACTORS = "the product of"
"""Description of a matrix that was stored as two factors."""


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A model in the other one's layout.

    Attributes:
        model: A view of it; what was put together has the other model's names.
        made: Description of the sources of every matrix that was put together.
        steps: Differences of the target's layout, in a few words each.
    """

    model: Model
    made: Mapping[str, str]
    steps: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Proposal:
    tensor: Tensor
    of: tuple[str, ...]
    how: str


def join_pieces(reference: Model, target: Model) -> ConvertedModel | None:
    """The target with pieces joined or multiplied to the reference's matrices; None where nothing fits."""
    whole, pieces = _unmatched(matrices(reference), matrices(target))
    total = min(sum(t.size for t in matrices(m).values()) for m in (reference, target))
    if not whole or not pieces or sum(t.size for t in whole.values()) < SHARE * total:
        return None
    chosen: dict[str, _Proposal] = {}
    index = PieceIndex(pieces)
    for name in sorted(whole, key=lambda n: (-whole[n].size, n)):
        if len(whole[name].shape) < 2:
            continue
        best = _best_proposal(name, whole[name], index)
        if best is not None and not _has_better_counterpart(name, whole[name], best, pieces):
            chosen[name] = best
            index.remove(best.of)
    if not chosen:
        return None
    used = {n for p in chosen.values() for n in p.of}
    tensors = {n: t for n, t in target.weights.items() if n not in used and n not in chosen}
    tensors |= {n: p.tensor for n, p in chosen.items()}
    made = {n: f"{p.how} {', '.join(p.of)}" for n, p in chosen.items()}
    factors = any(p.how == FACTORS for p in chosen.values())
    view = from_arrays(tensors, target.name, dict(target.config) if target.config else None)
    return ConvertedModel(view, made, ("factors multiplied" if factors else "tensors split",))


def _unmatched(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices on either side without a counterpart of equal name and size; none if all sizes occur equally often."""
    left, right = dict(own), dict(other)
    for n in own:
        if n in right and sizes_of(own[n]) == sizes_of(right[n]):
            del left[n], right[n]
    if Counter(map(sizes_of, left.values())) == Counter(map(sizes_of, right.values())):
        return {}, {}  # whole matrices under other names: no pieces
    return left, right


def _tensor_distance(x: Tensor, y: Tensor) -> float:
    """Distance of two matrices by order-invariant features; 0 for large ones."""
    if x.size > LARGEST:
        return 0.0
    one, other = features(x), features(y)
    if one.shape != other.shape:
        one = replace(one, shape=one.shape[::-1], profiles=one.profiles[::-1])
    return _feature_distance(one, other)


def _best_proposal(name: str, whole: Tensor, index: PieceIndex) -> _Proposal | None:
    """The proposal with the most similar name and contents."""
    proposals = [*_joined_proposals(name, whole, index), *_product_proposals(name, whole, index)]
    if not proposals:
        return None
    nearest = max(_shared(name, p.of) for p in proposals)
    near = [p for p in proposals if _shared(name, p.of) == nearest]
    if len(near) == 1 or whole.size > LARGEST:
        return near[0]
    own = features(whole)
    near = sorted(near, key=_in_reversed_order)
    unlike = [_feature_distance(own, features(p.tensor)) for p in near[: 4 * MAX_PIECES]]
    likeliest = int(np.argmin(unlike))
    return near[likeliest if unlike[likeliest] < unlike[0] / 2 else 0]


def _in_reversed_order(p: _Proposal) -> bool:
    """Whether the first of two factors follows the second by name: sizes do not decide for square ones."""
    names = [natural_sort_key(n) for n in p.of]
    return p.how == FACTORS and names != sorted(names, reverse=True)


def _feature_distance(x: Features, y: Features) -> float:
    if x.shape != y.shape:
        return np.inf
    profiles = sum(float(np.mean((p - q) ** 2)) for p, q in zip(x.profiles, y.profiles, strict=True))
    return float(np.sum((x.scalars - y.scalars) ** 2)) + profiles


def _shared(name: str, others: Sequence[str]) -> int:
    """Number of parts of a name that all pieces share, in order."""
    return min(_in_common(name, other) for other in others)


@lru_cache(maxsize=1 << 16)
def _in_common(one: str, other: str) -> int:
    """Length of the longest common subsequence of name parts, plus the number of common leading parts."""
    x, y = name_parts(one), name_parts(other)
    leading = next((k for k, (v, w) in enumerate(zip(x, y, strict=False)) if v != w), min(len(x), len(y)))
    row = [0] * (len(y) + 1)
    for word in x:
        before = 0
        for k, second in enumerate(y, 1):
            before, row[k] = row[k], before + 1 if word == second else max(row[k], row[k - 1])
    return row[-1] + leading


def _has_better_counterpart(name: str, whole: Tensor, best: _Proposal, pieces: Mapping[str, Tensor]) -> bool:
    """Whether a single matrix is a better counterpart than what was put together."""
    same = [n for n, t in pieces.items() if sizes_of(t) == sizes_of(whole) and n not in best.of]
    shared = max((_shared(name, (n,)) for n in same), default=-1)
    if not same or shared < _shared(name, best.of):
        return False
    if shared > _shared(name, best.of):
        return True
    unlike = min(_tensor_distance(whole, pieces[n]) for n in same)
    return unlike <= _tensor_distance(whole, best.tensor)


def _joined_proposals(name: str, whole: Tensor, index: PieceIndex) -> Iterator[_Proposal]:
    """Pieces that make a matrix one after the other along its first or second axis."""
    for axis in (0, 1):
        fitting = index.with_similar_names(name, index.matching_but_axis(whole, axis))
        near = max((_shared(name, (n,)) for n in fitting), default=0)
        close = sorted((n for n in fitting if near and _shared(name, (n,)) == near), key=natural_sort_key)
        consecutive_pieces = index.consecutive_pieces(whole, axis)
        if len(consecutive_pieces) > MANY_PROPOSALS:
            like = set(fitting)
            consecutive_pieces = [run for run in consecutive_pieces if run[0] in like]
        for run in (*consecutive_pieces, *runs_of_length(close, index.pieces, whole, axis)):
            make = partial(_rows if axis == 0 else _columns, [index.pieces[n] for n in run])
            yield _Proposal(_tensor(name, whole.shape, make), run, "joined from")


def _rows(parts: Sequence[Tensor], start: int, stop: int) -> np.ndarray:
    out, offset = [], 0
    for t in parts:
        a, b = max(start, offset), min(stop, offset + t.shape[0])
        if a < b:
            out.append(np.asarray(t.rows(a - offset, b - offset), np.float32))
        offset += t.shape[0]
    return np.concatenate(out) if out else np.zeros((0, *parts[0].shape[1:]), np.float32)


def _columns(parts: Sequence[Tensor], start: int, stop: int) -> np.ndarray:
    return np.concatenate([np.asarray(t.rows(start, stop), np.float32) for t in parts], axis=1)


def _product_proposals(name: str, whole: Tensor, index: PieceIndex) -> Iterator[_Proposal]:
    """Two matrices whose product has the size of a third; also kernels with a 1 x 1 one."""
    inner, (left, right) = whole.shape[1:], index.factors(whole)
    for u in index.with_similar_names(name, left):
        x = index.pieces[u]
        for v in index.with_similar_names(name, right.get(x.shape[1], ())):
            y = index.pieces[v]
            if u == v:
                continue
            if _is_one_by_one(x) and y.shape[1:] == inner:
                yield _Proposal(_tensor(name, whole.shape, partial(_product_rows, x, _lazy_array(y))), (u, v), FACTORS)
            elif _is_one_by_one(y) and x.shape[2:] == inner[1:]:
                yield _Proposal(_tensor(name, whole.shape, partial(_kernel_rows, x, _lazy_array(y))), (u, v), FACTORS)


def _is_one_by_one(tensor: Tensor) -> bool:
    """Whether a kernel is 1 x 1, so a plain matrix."""
    return all(s == 1 for s in tensor.shape[2:])


def _product_rows(x: Tensor, y: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    """Rows of a product: the outputs of one layer mixed by another."""
    mixing = np.asarray(x.rows(start, stop), np.float32).reshape(stop - start, -1)
    return np.tensordot(mixing, y(), axes=(1, 0))


def _kernel_rows(x: Tensor, y: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    """Rows of a kernel applied after a plain matrix."""
    kernel = np.asarray(x.rows(start, stop), np.float32)
    mixing = y().reshape(kernel.shape[1], -1)
    return np.moveaxis(np.tensordot(kernel, mixing, axes=(1, 0)), -1, 1)


def _lazy_array(tensor: Tensor) -> Callable[[], np.ndarray]:
    """A tensor that is read when first needed."""
    return cache(lambda: np.asarray(tensor.array(), np.float32))


def _tensor(name: str, shape: tuple[int, ...], make) -> Tensor:
    return Tensor(name, "F32", shape, RowStorage(make, shape))

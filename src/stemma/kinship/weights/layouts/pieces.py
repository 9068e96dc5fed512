"""One model laid out as the other: matrices that one of them keeps in pieces or as two factors, put together again.

Tensor parallelism writes halves of a matrix, exporters write queries, keys and values apart, and a linear layer without
anything in between can be stored as two whose product it is, after a decomposition or to hide it. Which pieces make
which matrix is proposed by sizes, by names and by what no order of units changes; whether it is true is for the tests
to say.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.fingerprints.tensor_content import Features, features, matrices
from stemma.kinship.weights.layouts.shelf import MANY, PIECES, Shelf, adding_up, natural, parts_of_name
from stemma.networks.load import from_arrays

LARGEST = 1 << 22
"""Entries of a matrix up to which the contents of proposals are compared; beyond it, names alone choose."""

SHARE = 0.02
"""Share of the smaller model's entries that must lack a counterpart before pieces are looked for."""


FACTORS = "the product of"
"""How a matrix was made that was kept as two."""


@dataclass(frozen=True, eq=False)
class Restored:
    """A model in the other one's layout.

    Attributes:
        model: A view of it; what was put together has the other model's names.
        made: For every matrix that was put together, in words, what of.
        steps: What the target's layout does otherwise, in a few words each.
    """

    model: Model
    made: Mapping[str, str]
    steps: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Proposal:
    tensor: Tensor
    of: tuple[str, ...]
    how: str


def restored(reference: Model, target: Model) -> Restored | None:
    """Put together what the reference has whole and the target in pieces.

    Cost: nothing where every matrix has a counterpart of its size; else the contents of the proposals are read once.

    Args:
        reference: The model whose layout is wanted.
        target: The model that may hold pieces.

    Returns:
        The view; None where nothing fits.
    """
    whole, pieces = _unmatched(matrices(reference), matrices(target))
    total = min(sum(t.size for t in matrices(m).values()) for m in (reference, target))
    if not whole or not pieces or sum(t.size for t in whole.values()) < SHARE * total:
        return None
    chosen: dict[str, _Proposal] = {}
    shelf = Shelf(pieces)
    for name in sorted(whole, key=lambda n: (-whole[n].size, n)):
        if len(whole[name].shape) < 2:
            continue
        best = _best(name, whole[name], shelf)
        if best is not None and not _plain(name, whole[name], best, pieces):
            chosen[name] = best
            shelf.take(best.of)
    if not chosen:
        return None
    used = {n for p in chosen.values() for n in p.of}
    tensors = {n: t for n, t in target.weights.items() if n not in used and n not in chosen}
    tensors |= {n: p.tensor for n, p in chosen.items()}
    made = {n: f"{p.how} {', '.join(p.of)}" for n, p in chosen.items()}
    factors = any(p.how == FACTORS for p in chosen.values())
    view = from_arrays(tensors, target.name, dict(target.config) if target.config else None)
    return Restored(view, made, ("factors multiplied" if factors else "tensors split",))


def _unmatched(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices on either side without a counterpart of their name and size; none where all sizes are as many."""
    left, right = dict(own), dict(other)
    for n in own:
        if n in right and _sizes(own[n]) == _sizes(right[n]):
            del left[n], right[n]
    if Counter(map(_sizes, left.values())) == Counter(map(_sizes, right.values())):
        return {}, {}  # other names for whole matrices: nothing is in pieces
    return left, right


def _unlike_tensors(x: Tensor, y: Tensor) -> float:
    """How unlike two matrices of one size are in what no order of units changes; large ones are taken for alike."""
    if x.size > LARGEST:
        return 0.0
    one, other = features(x), features(y)
    if one.shape != other.shape:
        one = replace(one, shape=one.shape[::-1], profiles=one.profiles[::-1])
    return _unlike(one, other)


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(s for s in tensor.shape if s > 1))


def _best(name: str, whole: Tensor, shelf: Shelf) -> _Proposal | None:
    """The proposal whose contents are likest, of those whose names are nearest."""
    proposals = [*_stretches(name, whole, shelf), *_factors(name, whole, shelf)]
    if not proposals:
        return None
    nearest = max(_shared(name, p.of) for p in proposals)
    near = [p for p in proposals if _shared(name, p.of) == nearest]
    if len(near) == 1 or whole.size > LARGEST:
        return near[0]
    own = features(whole)
    near = sorted(near, key=_against_the_order)
    unlike = [_unlike(own, features(p.tensor)) for p in near[: 4 * PIECES]]
    likeliest = int(np.argmin(unlike))
    return near[likeliest if unlike[likeliest] < unlike[0] / 2 else 0]


def _against_the_order(p: _Proposal) -> bool:
    """Whether the first of two factors is the one that reads the other: of square ones, sizes do not tell."""
    names = [natural(n) for n in p.of]
    return p.how == FACTORS and names != sorted(names, reverse=True)


def _unlike(x: Features, y: Features) -> float:
    if x.shape != y.shape:
        return np.inf
    profiles = sum(float(np.mean((p - q) ** 2)) for p, q in zip(x.profiles, y.profiles, strict=True))
    return float(np.sum((x.scalars - y.scalars) ** 2)) + profiles


def _shared(name: str, others: Sequence[str]) -> int:
    """How many parts of a name all pieces share, in its order."""
    return min(_in_common(name, other) for other in others)


@lru_cache(maxsize=1 << 16)
def _in_common(one: str, other: str) -> int:
    """Length of the longest common subsequence of the parts of two names, and how many of them lead both."""
    x, y = parts_of_name(one), parts_of_name(other)
    leading = next((k for k, (v, w) in enumerate(zip(x, y, strict=False)) if v != w), min(len(x), len(y)))
    row = [0] * (len(y) + 1)
    for word in x:
        before = 0
        for k, second in enumerate(y, 1):
            before, row[k] = row[k], before + 1 if word == second else max(row[k], row[k - 1])
    return row[-1] + leading


def _plain(name: str, whole: Tensor, best: _Proposal, pieces: Mapping[str, Tensor]) -> bool:
    """Whether one matrix alone, which is no part of it, is a likelier counterpart than what was put together."""
    same = [n for n, t in pieces.items() if _sizes(t) == _sizes(whole) and n not in best.of]
    shared = max((_shared(name, (n,)) for n in same), default=-1)
    if not same or shared < _shared(name, best.of):
        return False
    if shared > _shared(name, best.of):
        return True
    unlike = min(_unlike_tensors(whole, pieces[n]) for n in same)
    return unlike <= _unlike_tensors(whole, best.tensor)


def _stretches(name: str, whole: Tensor, shelf: Shelf) -> Iterator[_Proposal]:
    """Pieces that make a matrix, or a kernel, one after the other along its first or its second axis."""
    for axis in (0, 1):
        fitting = shelf.named_like(name, shelf.beside(whole, axis))
        near = max((_shared(name, (n,)) for n in fitting), default=0)
        close = sorted((n for n in fitting if near and _shared(name, (n,)) == near), key=natural)
        runs = shelf.runs(whole, axis)
        if len(runs) > MANY:
            like = set(fitting)
            runs = [run for run in runs if run[0] in like]
        for run in (*runs, *adding_up(close, shelf.pieces, whole, axis)):
            make = partial(_rows if axis == 0 else _columns, [shelf.pieces[n] for n in run])
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


def _factors(name: str, whole: Tensor, shelf: Shelf) -> Iterator[_Proposal]:
    """Two matrices whose product has the size of a third; or a kernel behind or before one of a single pixel."""
    inner, (left, right) = whole.shape[1:], shelf.factors(whole)
    for u in shelf.named_like(name, left):
        x = shelf.pieces[u]
        for v in shelf.named_like(name, right.get(x.shape[1], ())):
            y = shelf.pieces[v]
            if u == v:
                continue
            if _pixel(x) and y.shape[1:] == inner:
                yield _Proposal(_tensor(name, whole.shape, partial(_mixed, x, _once(y))), (u, v), FACTORS)
            elif _pixel(y) and x.shape[2:] == inner[1:]:
                yield _Proposal(_tensor(name, whole.shape, partial(_behind, x, _once(y))), (u, v), FACTORS)


def _pixel(tensor: Tensor) -> bool:
    """Whether a kernel is a plain matrix."""
    return all(s == 1 for s in tensor.shape[2:])


def _mixed(x: Tensor, y: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    """Rows of a product: the outputs of one layer mixed by another."""
    mixing = np.asarray(x.rows(start, stop), np.float32).reshape(stop - start, -1)
    return np.tensordot(mixing, y(), axes=(1, 0))


def _behind(x: Tensor, y: Callable[[], np.ndarray], start: int, stop: int) -> np.ndarray:
    """Rows of a kernel that reads what a plain matrix wrote."""
    kernel = np.asarray(x.rows(start, stop), np.float32)
    mixing = y().reshape(kernel.shape[1], -1)
    return np.moveaxis(np.tensordot(kernel, mixing, axes=(1, 0)), -1, 1)


def _once(tensor: Tensor) -> Callable[[], np.ndarray]:
    """A tensor that is read when it is first asked for."""
    return cache(lambda: np.asarray(tensor.array(), np.float32))


def _tensor(name: str, shape: tuple[int, ...], make) -> Tensor:
    return Tensor(name, "F32", shape, RowStorage(make, shape))

"""What sizes alone exclude: a matrix comes from another one as it is, or with units taken out or put in."""

from collections.abc import Mapping, Sequence

from stemma.fingerprints.tensor_content import long_axes, matrices
from stemma.kinship.weights.correspondence import Pairing, orders_of
from stemma.models.model import Model, Tensor
from stemma.types import Axis, Evidence, Null, Spec, Verdict

SHARE = 0.05
"""Share of the smaller model's entries below which it does not matter that they could have been inherited."""

FEW = 8
"""Length of an axis that both must have in common; shorter ones are common to anything."""

Sizes = tuple[int, ...]
"""Axes longer than one, ascending."""


def sizes_apart(a: Model, b: Model) -> Evidence | None:
    """Whether no matrix of one model has a size that units of the other could have.

    A matrix that lost or gained units on one axis keeps the length of another; so do matrices that were joined, split,
    or stored as two factors.

    Args:
        a: One model.
        b: The other.

    Returns:
        The evidence that they share nothing; None where some matrices could be related.
    """
    own, other = matrices(a), matrices(b)
    if not own or not other:
        return None
    small, large = (own, other) if _entries(own) <= _entries(other) else (other, own)
    fitting = _entries({n: t for n, t in small.items() if counterparts(t, large)})
    share = fitting / max(1, _entries(small))
    if share >= SHARE:
        return None
    reason = f"no matrix of one has a size that units of the other could have ({share:.0%} of the smaller model fits)"
    claim = "some matrix has a size that units of the other could have"
    return Evidence(claim, Axis.WEIGHTS, "sizes", share, Null("none: no size fits"), None, None,
                    0.0, Verdict.REFUTED, reason, Spec("sizes"), (a.digest, b.digest))  # fmt: skip


def counterparts(tensor: Tensor, others: Mapping[str, Tensor]) -> list[str]:
    """Matrices of another model that one matrix could come from, or the other way round.

    Args:
        tensor: The matrix.
        others: The other model's.

    Returns:
        Their names.
    """
    mine = sizes_of(tensor)
    return [n for n, t in others.items() if fits(mine, sizes_of(t))]


def left_over(a: Model, b: Model, pairings: Sequence[Pairing]) -> list[Pairing]:
    """Proposals for matrices that have no counterpart yet: others without one that they could have been cut from.

    Args:
        a: The one model.
        b: The other.
        pairings: What is paired already.

    Returns:
        One pair for each that finds a partner, likeliest sizes first.
    """
    own, other = matrices(a), matrices(b)
    taken = {p.a for p in pairings}, {p.b for p in pairings}
    free = {n: t for n, t in other.items() if n not in taken[1]}
    out = []
    for name, tensor in own.items():
        if name in taken[0]:
            continue
        near = sorted(counterparts(tensor, free), key=lambda n: abs(free[n].size - tensor.size))
        for partner in near:
            order = _order(tensor, free[partner])
            if order is not None:
                axes = long_axes(tensor.shape)
                out.append(Pairing(name, partner, axes, order, 1.0))
                del free[partner]
                break
    return out


def _order(one: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """The other's axes in the order of the one's, so that most lengths agree and all are nested the same way."""
    mine, theirs = long_axes(one.shape), long_axes(other.shape)
    best: tuple[int, tuple[int, ...]] | None = None
    for order in (tuple(theirs[i] for i in p) for p in orders_of(len(theirs))):
        pairs = [(one.shape[i], other.shape[j]) for i, j in zip(mine, order, strict=True)]
        equal = sum(x == y >= FEW for x, y in pairs)
        nested = all(x <= y for x, y in pairs) or all(x >= y for x, y in pairs)
        if equal and nested and (best is None or equal > best[0]):
            best = equal, order
    return None if best is None else best[1]


def sizes_of(tensor: Tensor) -> Sizes:
    """The lengths of a tensor's axes, those of length one left out.

    Args:
        tensor: A tensor.

    Returns:
        Lengths in ascending order.
    """
    return tuple(sorted(s for s in tensor.shape if s > 1))


def fits(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a matrix of one size could have been made into the other by taking units out, or putting some in.

    Args:
        one: Lengths of its axes.
        other: Lengths of the other's.

    Returns:
        True where no axis of one side is longer than its counterpart, and one of them is equally long.
    """
    if len(one) != len(other):
        return False
    if tuple(one) == tuple(other):
        return True
    for order in (tuple(other[i] for i in p) for p in orders_of(len(other))):
        pairs = list(zip(one, order, strict=True))
        nested = all(x <= y for x, y in pairs) or all(x >= y for x, y in pairs)
        if nested and any(x == y >= FEW for x, y in pairs):
            return True
    return False


def _entries(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.size for t in tensors.values())

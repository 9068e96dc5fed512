"""Several models put into one: layers of different models stacked, or their dense layers made experts of one mixture.

Such a model has more matrices than any of its parents, and each of them is a parent's, number by number. No weights are
fitted: who holds which matrix is read off, and what is in nobody (a router) is said to be new.
"""

from collections.abc import Mapping, Sequence
from math import lgamma, log

import numpy as np

from stemma.ancestry.merges.account import Merge, MergeParent
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import RowStorage, Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.correspondence import candidates as pairings
from stemma.kinship.weights.layouts.rearranged_rows import rearrange_rows
from stemma.kinship.weights.name_clashes import with_names_of
from stemma.kinship.weights.order.pair_reader import finite
from stemma.kinship.weights.residual import rounding_of
from stemma.networks.load import from_arrays

STACKED = "stacked"
"""The method's name in an answer."""

SLACK, EQUAL = 4.0, 0.999
"""Roundings between a matrix and its source, and the share of entries that must agree within them."""

READ = 1 << 14
"""Entries of a matrix that are compared."""

ONLY = 0.01
"""Share of the model's entries that a parent must be the only one to hold."""


def put_together(child: Model, candidates: Sequence[Model]) -> Merge | None:
    """Find the models whose layers or experts one model holds.

    Cost: each candidate is laid out as the child, see `rearrange_rows`; none for those with as many matrices as it has.

    Args:
        child: The model in question.
        candidates: Its possible parents.

    Returns:
        The merge; None where it is none of this kind.
    """
    child = apart(child, candidates)
    candidates, smaller = as_deep(child, candidates)
    return stack_of(child, candidates, smaller) if len(smaller) > 1 else None


def apart(child: Model, candidates: Sequence[Model]) -> Model:
    """A child whose stacked tensors of experts or layers are taken apart, where no candidate stacks them so.

    Args:
        child: The model in question.
        candidates: Its possible parents.

    Returns:
        A view; the child itself where nothing is stacked.
    """
    sizes = {tuple(t.shape) for m in candidates for t in matrices(m).values()}
    found = {n: t for n, t in matrices(child).items() if _is_stack(t, sizes)}
    if not found:
        return child
    parts = {f"{n}.{i}": _slice(f"{n}.{i}", t, i) for n, t in found.items() for i in range(t.shape[0])}
    tensors = {n: t for n, t in child.weights.items() if n not in found} | parts
    return from_arrays(tensors, child.name, dict(child.config) if child.config else None)


def _is_stack(tensor: Tensor, sizes: set[tuple[int, ...]]) -> bool:
    """Whether a tensor of three long axes is none that a candidate has: a stack of matrices."""
    return len(tensor.shape) == 3 and min(tensor.shape) > 1 and tuple(tensor.shape) not in sizes


def _slice(name: str, tensor: Tensor, i: int) -> Tensor:
    shape = tuple(tensor.shape[1:])
    return Tensor(name, "F32", shape, RowStorage(lambda a, b: tensor.rows(i, i + 1)[0][a:b], shape))


def as_deep(child: Model, candidates: Sequence[Model]) -> tuple[list[Model], dict[int, int]]:
    """Candidates with their layers where a child that has more of them has them.

    Args:
        child: The model in question.
        candidates: Its possible parents.

    Returns:
        Each as it is, or a view of it; and the positions of those that have fewer matrices than the child, each with
        how many, if the rows of some of them stand elsewhere in it.
    """
    most = len(matrices(child))
    smaller = {i: n for i, m in enumerate(candidates) if (n := len(matrices(m))) < most}
    views = {i: found for i in smaller if (found := _laid_out(child, candidates[i])) is not None}
    return [views.get(i, m) for i, m in enumerate(candidates)], smaller if views else {}


def _laid_out(child: Model, candidate: Model) -> Model | None:
    """The candidate as the child has it, under its names first: rows are looked for where these do not agree.

    Returns:
        A view; None where nothing stands elsewhere.
    """
    ways = pairings(child, candidate, contents=False)
    named = with_names_of(child, candidate, ways[0][1]) if ways else candidate
    found = rearrange_rows(child, named, renamed=True)
    return found.model if found is not None else None if named is candidate else named


def stack_of(child: Model, candidates: Sequence[Model], smaller: Mapping[int, int]) -> Merge | None:
    """Who holds which matrix of a model that was put together from several.

    Cost: the first entries of every matrix are read of each model.

    Args:
        child: The model in question.
        candidates: Its possible parents, with their layers where the child has them.
        smaller: Positions of those that have fewer matrices than the child, and how many: no others can be put into it.

    Returns:
        The merge, each parent's weight its share of the entries; None unless two of the candidates hold matrices that
        no other one does.
    """
    own = matrices(child)
    sizes, names = np.array([t.size for t in own.values()], float), list(own)
    places = list(smaller)
    beside = [matrices(candidates[i]) for i in places]
    there = np.array([any(_same_shape(own[n], b.get(n)) for b in beside) for n in names])
    holds = np.stack([[_held(t, b.get(n)) for n, t in own.items()] for b in beside])
    chosen, owner = _fewest(holds, sizes, list(smaller.values()))
    total = float(sizes[there].sum())
    only = {i: holds[i] & ~holds[[j for j in chosen if j != i]].any(axis=0) for i in chosen}
    chosen = [i for i in chosen if sizes[only[i]].sum() >= ONLY * total]
    if len(chosen) < 2:
        return None
    tensors = {i: [names[k] for k in np.flatnonzero(owner == i)] for i in chosen}
    shares = {i: float(sizes[owner == i].sum()) / total for i in chosen}
    chosen.sort(key=lambda i: -shares[i])
    parents = [_parent(candidates[places[i]].name, places[i], shares[i], sizes[only[i]]) for i in chosen]
    held = {candidates[places[i]].name: tensors[i] for i in chosen}
    new = [n for n, known in zip(names, there, strict=True) if not known]
    rest, explained = int(there.sum()) - sum(map(len, held.values())), sum(shares.values())
    return Merge(
        STACKED, tuple(parents), explained, not rest, explained, 1 - explained, "either" if rest else "rounding", None,
        1 - explained, {"tensors": held, "new": new}, reason=_reason(held, rest, new),
    )  # fmt: skip


def _parent(name: str, position: int, share: float, only: np.ndarray) -> MergeParent:
    """A parent with its share; p is that of its own entries falling into their places by chance."""
    entries = int(np.minimum(only, READ).sum())
    return MergeParent(name, position, share, (share, share), share, 0.0, 1.0, -lgamma(entries + 1) / log(10))


def _same_shape(own: Tensor, other: Tensor | None) -> bool:
    return other is not None and tuple(own.shape) == tuple(other.shape)


def _held(own: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers up to rounding, as far as their first rows show."""
    if other is None or not _same_shape(own, other):
        return False
    rows = max(1, READ * own.shape[0] // own.size)
    x, y = (finite(t.rows(0, min(rows, t.shape[0]))).astype(np.float64) for t in (own, other))
    step = SLACK * max(rounding_of(x), rounding_of(y)) * np.maximum(np.abs(x), np.abs(y))
    return bool(x.any()) and float((np.abs(x - y) <= step).mean()) >= EQUAL


def _fewest(holds: np.ndarray, sizes: np.ndarray, counts: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """Models that hold a child's matrices between them, greedily those that hold most; and whose each matrix is.

    Models with fewer matrices come first: a larger one may have been put together from the same parts.

    Returns:
        Positions of the models, and for each matrix that of its model, -1 where it is in none.
    """
    owner, parents = np.full(holds.shape[1], -1), list[int]()
    for count in sorted(set(counts)):
        level = np.array([c == count for c in counts])
        while True:
            more = np.where(level, (holds & (owner < 0)) @ sizes, 0.0)
            best = int(more.argmax())
            if more[best] <= 0:
                break
            parents.append(best)
            owner[holds[best] & (owner < 0)] = best
    return parents, owner


def _reason(held: Mapping[str, Sequence[str]], rest: int, new: Sequence[str]) -> str:
    each = ", ".join(f"{len(names)} of {model}" for model, names in held.items())
    said = f"matrices of {len(held)} models stand in it number by number: {each}"
    said += f"; {rest} are of none that is here, or were trained on" if rest else ""
    shown = ", ".join(new[:3]) + (", …" if len(new) > 3 else "")
    return said + (f"; {len(new)} are new ({shown})" if new else "")

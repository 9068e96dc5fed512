"""Detects models assembled from others: layers of different models stacked, or dense layers made experts of a mixture.

Such a model has more matrices than any of its parents, and each of them equals a parent's. No weights are fitted;
matrices that no candidate has (a router) are reported as new.
"""

from collections.abc import Mapping, Sequence
from math import lgamma, log

import numpy as np

from stemma.ancestry.merges.merge import Merge, MergeParent
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
"""Name of the method in an answer."""

SLACK, EQUAL = 4.0, 0.999
"""Roundings between a matrix and its source, and the share of entries that must agree within them."""

MAX_COMPARED_ENTRIES = 1 << 14
"""Entries of a matrix that are compared."""

MIN_OWN_SHARE = 0.01
"""Share of the model's entries that a parent must be the only one to hold."""


def find_stack(child: Model, candidates: Sequence[Model]) -> Merge | None:
    """The models whose layers or experts one model contains; None unless there are at least two."""
    child = unstack(child, candidates)
    candidates, smaller = align_depth(child, candidates)
    return stacked_parents(child, candidates, smaller) if len(smaller) > 1 else None


def unstack(child: Model, candidates: Sequence[Model]) -> Model:
    """A view of a child whose 3-D tensors of experts or layers are split where no candidate stacks them."""
    sizes = {tuple(t.shape) for m in candidates for t in matrices(m).values()}
    found = {n: t for n, t in matrices(child).items() if _is_stack(t, sizes)}
    if not found:
        return child
    parts = {f"{n}.{i}": _slice(f"{n}.{i}", t, i) for n, t in found.items() for i in range(t.shape[0])}
    tensors = {n: t for n, t in child.weights.items() if n not in found} | parts
    return from_arrays(tensors, child.name, dict(child.config) if child.config else None)


def _is_stack(tensor: Tensor, sizes: set[tuple[int, ...]]) -> bool:
    """Whether a tensor with three long axes is a stack of matrices: no candidate has this shape."""
    return len(tensor.shape) == 3 and min(tensor.shape) > 1 and tuple(tensor.shape) not in sizes


def _slice(name: str, tensor: Tensor, i: int) -> Tensor:
    shape = tuple(tensor.shape[1:])
    return Tensor(name, "F32", shape, RowStorage(lambda a, b: tensor.rows(i, i + 1)[0][a:b], shape))


def align_depth(child: Model, candidates: Sequence[Model]) -> tuple[list[Model], dict[int, int]]:
    """Candidates with layers moved to where a deeper child has them, and the number of matrices of smaller ones."""
    most = len(matrices(child))
    smaller = {i: n for i, m in enumerate(candidates) if (n := len(matrices(m))) < most}
    views = {i: found for i in smaller if (found := _aligned_view(child, candidates[i])) is not None}
    return [views.get(i, m) for i, m in enumerate(candidates)], smaller if views else {}


def _aligned_view(child: Model, candidate: Model) -> Model | None:
    """The candidate under the child's names, with rows where the child has them; None where nothing moves."""
    ways = pairings(child, candidate, contents=False)
    named = with_names_of(child, candidate, ways[0][1]) if ways else candidate
    found = rearrange_rows(child, named, renamed=True)
    return found.model if found is not None else None if named is candidate else named


def stacked_parents(child: Model, candidates: Sequence[Model], smaller: Mapping[int, int]) -> Merge | None:
    """Assign each matrix of an assembled model to the candidate that has the same numbers.

    Cost: the first entries of every matrix are read of each model.

    Args:
        child: The model in question.
        candidates: Its possible parents, with their layers where the child has them.
        smaller: Positions of those that have fewer matrices than the child, and how many: no others can be part of it.

    Returns:
        The merge, each parent's weight its share of the entries; None unless two of the candidates have matrices that
        no other one has.
    """
    child_matrices = matrices(child)
    sizes, names = np.array([t.size for t in child_matrices.values()], float), list(child_matrices)
    places = list(smaller)
    candidate_matrices = [matrices(candidates[i]) for i in places]
    comparable = np.array([any(_same_shape(child_matrices[n], b.get(n)) for b in candidate_matrices) for n in names])
    holds = np.stack(
        [[_holds_same_numbers(t, b.get(n)) for n, t in child_matrices.items()] for b in candidate_matrices]
    )
    chosen, owner = _greedy_cover(holds, sizes, list(smaller.values()))
    total = float(sizes[comparable].sum())
    exclusive = {i: holds[i] & ~holds[[j for j in chosen if j != i]].any(axis=0) for i in chosen}
    chosen = [i for i in chosen if sizes[exclusive[i]].sum() >= MIN_OWN_SHARE * total]
    if len(chosen) < 2:
        return None
    tensors = {i: [names[k] for k in np.flatnonzero(owner == i)] for i in chosen}
    shares = {i: float(sizes[owner == i].sum()) / total for i in chosen}
    chosen.sort(key=lambda i: -shares[i])
    parents = [_parent(candidates[places[i]].name, places[i], shares[i], sizes[exclusive[i]]) for i in chosen]
    tensors_by_parent = {candidates[places[i]].name: tensors[i] for i in chosen}
    new_tensors = [n for n, known in zip(names, comparable, strict=True) if not known]
    unexplained, explained = int(comparable.sum()) - sum(map(len, tensors_by_parent.values())), sum(shares.values())
    return Merge(
        STACKED, tuple(parents), explained, not unexplained, explained, 1 - explained,
        "either" if unexplained else "rounding", None, 1 - explained,
        {"tensors": tensors_by_parent, "new": new_tensors},
        reason=_reason(tensors_by_parent, unexplained, new_tensors),
    )  # fmt: skip


def _parent(name: str, position: int, share: float, exclusive_sizes: np.ndarray) -> MergeParent:
    """A parent with its share; the p-value is that of its exclusive entries matching by chance."""
    entries = int(np.minimum(exclusive_sizes, MAX_COMPARED_ENTRIES).sum())
    return MergeParent(name, position, share, (share, share), share, 0.0, 1.0, -lgamma(entries + 1) / log(10))


def _same_shape(child_matrices: Tensor, other: Tensor | None) -> bool:
    return other is not None and tuple(child_matrices.shape) == tuple(other.shape)


def _holds_same_numbers(child_matrices: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors hold the same numbers up to rounding, in their first rows."""
    if other is None or not _same_shape(child_matrices, other):
        return False
    rows = max(1, MAX_COMPARED_ENTRIES * child_matrices.shape[0] // child_matrices.size)
    x, y = (finite(t.rows(0, min(rows, t.shape[0]))).astype(np.float64) for t in (child_matrices, other))
    step = SLACK * max(rounding_of(x), rounding_of(y)) * np.maximum(np.abs(x), np.abs(y))
    return bool(x.any()) and float((np.abs(x - y) <= step).mean()) >= EQUAL


def _greedy_cover(holds: np.ndarray, sizes: np.ndarray, counts: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """Candidates that together hold a child's matrices, greedily the one that holds most.

    Candidates with fewer matrices come first: a larger one may be assembled from the same parts.

    Returns:
        Positions of the candidates, and for each matrix that of its candidate, -1 where none has it.
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


def _reason(tensors_by_parent: Mapping[str, Sequence[str]], unexplained: int, new_tensors: Sequence[str]) -> str:
    each = ", ".join(f"{len(names)} of {model}" for model, names in tensors_by_parent.items())
    reason = f"its matrices are copies of those of {len(tensors_by_parent)} models: {each}"
    reason += f"; {unexplained} come from none of the candidates, or were further trained" if unexplained else ""
    examples = ", ".join(new_tensors[:3]) + (", …" if len(new_tensors) > 3 else "")
    return reason + (f"; {len(new_tensors)} have no counterpart ({examples})" if new_tensors else "")

"""What a comparison of weights did not look at: named, so that nobody is acquitted by it."""

from collections.abc import Iterator

import numpy as np

from stemma.architectures.unit_groups import has_known_symmetries, structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.contents.choices import sure
from stemma.kinship.weights.decision import Findings, NotTested
from stemma.kinship.weights.matched import Matched
from stemma.kinship.weights.sizes import SHARE, has_counterpart, sizes_of

FIRST, FEW = 1 << 14, 4
"""Numbers of a tensor that are looked at to see whether it is a mask, and how many different ones a mask has."""

CODED = 0.05
"""Share of a model's entries in integer codes that are not understood from which it matters."""


def untested(a: Model, b: Model, found: Findings, matched: Matched | None) -> list[NotTested]:
    """List what was not looked at.

    Args:
        a: One model.
        b: The other.
        found: What was found.
        matched: The map that was searched, None where no tensors correspond.

    Returns:
        One entry per gap, empty where everything was looked for.
    """
    gaps = [*_unreadable(a), *_unreadable(b), *_unplaced(a, b, matched), *_unplaced(b, a, matched)]
    if found.sizes is not None:
        return gaps
    gaps += _sizes(a, b, matched)
    known = max((structure(a), structure(b)), key=lambda s: (sure(s), len(s.groups)))
    if not has_known_symmetries(known):
        why = "the architecture is not known: rotated streams and heads in another basis were not looked for"
        gaps.append({"what": "architecture", "model": "", "why": why})
    for reason in matched.found.untried if matched is not None else ():
        gaps.append({"what": "symmetry", "model": "", "why": f"not searched: {reason}"})
    return gaps


def _unreadable(model: Model) -> Iterator[NotTested]:
    """Matrices that are stored in codes without a known meaning."""
    codes = [t for t in model.weights.values() if not t.is_float and t.dtype[0] != "C" and _long(t) >= 2]
    other = [t for t in model.weights.values() if t.dtype[0] == "C" and _long(t) >= 2]
    numbers = sum(t.size for t in matrices(model).values())
    if sum(t.size for t in codes) > CODED * numbers:
        codes = [t for t in codes if not _is_mask(t)]
    share = sum(t.size for t in codes) / max(1, numbers + sum(t.size for t in codes))
    if not numbers and not codes:
        yield {"what": "weights", "model": model.name, "why": f"{model.name} has no matrices to compare"}
    elif other:
        yield {"what": "codes", "model": model.name, "why": f"{model.name} holds complex numbers, which are not read"}
    elif share > CODED:
        why = f"{share:.0%} of {model.name} is stored in integer codes whose meaning is not known"
        yield {"what": "codes", "model": model.name, "why": why}


def _is_mask(tensor: Tensor) -> bool:
    """Whether a tensor's beginning holds hardly any different numbers."""
    if not tensor.size:
        return True
    rows = (
        tensor.rows(0, max(1, min(tensor.shape[0], FIRST * tensor.shape[0] // tensor.size))) if tensor.shape else None
    )
    return rows is None or len(np.unique(np.asarray(rows).reshape(-1)[:FIRST])) <= FEW


def _long(tensor: Tensor) -> int:
    return sum(s > 1 for s in tensor.shape)


def _unplaced(model: Model, other: Model, matched: Matched | None) -> Iterator[NotTested]:
    """Numbers that have no counterpart and no place in a network: they could hold the other model in any layout."""
    known = structure(model)
    placed = has_known_symmetries(known)
    paired = _of_one_size(model, other, matched) if matched is not None else set()
    left = [
        n for n, t in model.weights.items()
        if not (placed and any(x.group for x in known.axes[n]))
        and not (n in other.weights and other.weights[n].shape == t.shape)
        and n not in paired
    ]  # fmt: skip
    size = sum(model.weights[n].size for n in left)
    if size > SHARE * _entries(matrices(other)):  # a stored mask is no hiding place
        left = [n for n in left if not _is_mask(model.weights[n])]
        size = sum(model.weights[n].size for n in left)
    wanted = _entries(matrices(other))
    if left and wanted and size > SHARE * wanted:
        shape = " x ".join(map(str, model.weights[left[0]].shape)) or "1"
        why = (
            f"{len(left)} tensors of {model.name} (for example {left[0]}, {shape}) have no counterpart and no known "
            f"place in a network; whether they hold {other.name} in another layout was not looked for"
        )
        yield {"what": "unplaced", "model": model.name, "why": why}


def _of_one_size(model: Model, other: Model, matched: Matched) -> set[str]:
    """Matrices of a model that are paired with one of the other that has their size."""
    turned = matched.evidence.inputs[0] != model.digest
    pairs = [(p.b, p.a) if matched.turned != turned else (p.a, p.b) for p in matched.pairings]
    return {x for x, y in pairs if sizes_of(model.weights[x]) == sizes_of(other.weights[y])}


def _sizes(a: Model, b: Model, matched: Matched | None) -> Iterator[NotTested]:
    """Entries of the smaller model that have no counterpart, though some matrix of the other could hold their units."""
    own, other = matrices(a), matrices(b)
    small, large = (own, other) if _entries(own) <= _entries(other) else (other, own)
    if matched is None:
        paired: set[str] = set()
    else:
        first = (small is own) != matched.turned
        paired = {p.a if first else p.b for p in matched.looked}
    kinds = {sizes_of(t) for t in large.values()}
    left = [n for n, t in small.items() if n not in paired and has_counterpart(t, kinds)]
    share = sum(small[n].size for n in left) / max(1, _entries(small))
    if share > SHARE:
        sizes = " x ".join(str(s) for s in sizes_of(small[left[0]]))
        why = (
            f"{len(left)} matrices ({share:.0%} of the smaller model, for example {left[0]}, {sizes}) have no "
            "counterpart by name or size; whether they were cut from larger ones was not looked for"
        )
        yield {"what": "sizes", "model": "", "why": why}


def _entries(tensors) -> int:
    return sum(t.size for t in tensors.values())

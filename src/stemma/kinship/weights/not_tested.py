"""What a comparison of weights did not test, so that no conclusion is drawn from it."""

from collections.abc import Iterator

import numpy as np

from stemma.architectures.unit_groups import has_known_symmetries, structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.contents.choices import is_certain
from stemma.kinship.weights.decision import Findings, NotTested
from stemma.kinship.weights.sizes import SHARE, has_counterpart, sizes_of
from stemma.kinship.weights.units_matched import EvaluatedMap

FIRST, FEW = 1 << 14, 4
"""Entries of a tensor that are checked for being a mask, and most distinct values of a mask."""

CODED = 0.05
"""Share of a model's entries in unknown integer codes from which it is reported."""


def list_not_tested(a: Model, b: Model, found: Findings, matched: EvaluatedMap | None) -> list[NotTested]:
    """One entry per gap of the comparison; empty where everything was tested."""
    gaps = [
        *_unreadable(a),
        *_unreadable(b),
        *_without_counterpart(a, b, matched),
        *_without_counterpart(b, a, matched),
    ]
    if found.sizes is not None:
        return gaps
    gaps += _sizes(a, b, matched)
    known = max((structure(a), structure(b)), key=lambda s: (is_certain(s), len(s.groups)))
    if not has_known_symmetries(known):
        why = "unknown architecture: rotations of residual streams and other bases of attention heads were not tested"
        gaps.append({"what": "architecture", "model": "", "why": why})
    for reason in matched.found.untried if matched is not None else ():
        gaps.append({"what": "symmetry", "model": "", "why": f"not searched: {reason}"})
    return gaps


def _unreadable(model: Model) -> Iterator[NotTested]:
    """Matrices stored in codes of unknown meaning."""
    codes = [t for t in model.weights.values() if not t.is_float and t.dtype[0] != "C" and _long(t) >= 2]
    other = [t for t in model.weights.values() if t.dtype[0] == "C" and _long(t) >= 2]
    numbers = sum(t.size for t in matrices(model).values())
    if sum(t.size for t in codes) > CODED * numbers:
        codes = [t for t in codes if not _is_mask(t)]
    share = sum(t.size for t in codes) / max(1, numbers + sum(t.size for t in codes))
    if not numbers and not codes:
        yield {"what": "weights", "model": model.name, "why": f"{model.name} has no matrices to compare"}
    elif other:
        yield {
            "what": "codes",
            "model": model.name,
            "why": f"{model.name} contains complex numbers, which are not supported",
        }
    elif share > CODED:
        why = f"{share:.0%} of {model.name} is stored in an unknown integer encoding"
        yield {"what": "codes", "model": model.name, "why": why}


def _is_mask(tensor: Tensor) -> bool:
    """Whether a tensor's beginning has hardly any distinct values."""
    if not tensor.size:
        return True
    rows = (
        tensor.rows(0, max(1, min(tensor.readable, FIRST * tensor.shape[0] // tensor.size))) if tensor.shape else None
    )
    return rows is None or len(np.unique(np.asarray(rows).reshape(-1)[:FIRST])) <= FEW


def _long(tensor: Tensor) -> int:
    return sum(s > 1 for s in tensor.shape)


def _without_counterpart(model: Model, other: Model, matched: EvaluatedMap | None) -> Iterator[NotTested]:
    """Tensors without a counterpart or known place, which may hold the other model in any layout."""
    known = structure(model)
    known_structure = has_known_symmetries(known)
    paired = _of_one_size(model, other, matched) if matched is not None else set()
    left = [
        n for n, t in model.weights.items()
        if not (known_structure and any(x.group for x in known.axes[n]))
        and not (n in other.weights and other.weights[n].shape == t.shape)
        and n not in paired
    ]  # fmt: skip
    size = sum(model.weights[n].size for n in left)
    if size > SHARE * _entries(matrices(other)):  # a stored mask cannot contain weights
        left = [n for n in left if not _is_mask(model.weights[n])]
        size = sum(model.weights[n].size for n in left)
    wanted = _entries(matrices(other))
    if left and wanted and size > SHARE * wanted:
        shape = " x ".join(map(str, model.weights[left[0]].shape)) or "1"
        why = (
            f"{len(left)} tensors of {model.name} (for example {left[0]}, {shape}) have no counterpart and no known "
            f"place in a network; whether they contain {other.name} in another layout was not tested"
        )
        yield {"what": "unplaced", "model": model.name, "why": why}


def _of_one_size(model: Model, other: Model, matched: EvaluatedMap) -> set[str]:
    """Matrices of a model that are paired with one of equal size."""
    turned = matched.evidence.inputs[0] != model.digest
    pairs = [(p.b, p.a) if matched.reference_is_b != turned else (p.a, p.b) for p in matched.pairings]
    return {x for x, y in pairs if sizes_of(model.weights[x]) == sizes_of(other.weights[y])}


def _sizes(a: Model, b: Model, matched: EvaluatedMap | None) -> Iterator[NotTested]:
    """Entries of the smaller model without a counterpart, though larger matrices could hold their units."""
    own, other = matrices(a), matrices(b)
    small, large = (own, other) if _entries(own) <= _entries(other) else (other, own)
    if matched is None:
        paired: set[str] = set()
    else:
        first = (small is own) != matched.reference_is_b
        paired = {p.a if first else p.b for p in matched.tried_pairings}
    kinds = {sizes_of(t) for t in large.values()}
    left = [n for n, t in small.items() if n not in paired and has_counterpart(t, kinds)]
    share = sum(small[n].size for n in left) / max(1, _entries(small))
    if share > SHARE:
        sizes = " x ".join(str(s) for s in sizes_of(small[left[0]]))
        many, have, they = f"{len(left)} matrices", "have", "they were"
        if len(left) == 1:
            many, have, they = "1 matrix", "has", "it was"
        why = (
            f"{many} ({share:.0%} of the smaller model, for example {left[0]}, {sizes}) {have} no "
            f"counterpart by name or size; whether {they} cut from larger ones was not tested"
        )
        yield {"what": "sizes", "model": "", "why": why}


def _entries(tensors) -> int:
    return sum(t.size for t in tensors.values())

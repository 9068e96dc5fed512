"""What was done between two models whose units are in place, as far as the weights show it.

Only relations that leave a measurable trace of their own are named; everything else is `related`.
"""

from collections.abc import Sequence

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.residual import NO_GRID, SLACK, TensorChange, changes
from stemma.models.model import Model
from stemma.types import Evidence, Relation, RelationKind

KEPT, REPLACED = 0.5, 0.9
"""Relative change up to which a tensor was kept (perhaps trained on), and from which it was replaced."""

INHERITED = 0.5
"""Share of a group's units in place above which the part counts as inherited."""


def name_relation(a: Model, b: Model, place: Evidence, pairings: Sequence[Pairing]) -> Relation:
    """Name the relation of two models with units in place.

    Args:
        a: First model.
        b: Second model.
        place: The evidence of units in place.
        pairings: Correspondence of tensors.

    Returns:
        `reformatted`, `quantized`, `pruned`, `part-inherited`, `head-replaced` or `related`, with figures.
    """
    changed = changes(a, b, pairings)
    if changed and all(_agrees(c) for c in changed):
        changed = changes(a, b, pairings, whole=True)  # so strong a claim is made of every entry, not of a sample
    figures = {"relative_change": _overall(changed), "parts": place.details.get("parts", {})}
    complete = len(changed) == min(len(matrices(a)), len(matrices(b))) and _nothing_new(a, b, changed)
    if changed and complete:
        if all(c.relative is not None and c.relative <= _tolerance(c) for c in changed):
            return Relation(RelationKind.REFORMATTED, {**figures, **_format_changes(a, b)}, ("reformatted",),
                            "all weights agree up to the rounding of their number formats")  # fmt: skip
        if all(_agrees(c) for c in changed):
            figures["residual"] = max(min(c.scaled or 0.0, c.relative or 0.0) for c in changed)
            if len(a.tensors) == len(b.tensors):
                return Relation(RelationKind.PERMUTED, figures, ("units rescaled",),
                                "all weights agree up to one positive scale per unit")  # fmt: skip
            return Relation(RelationKind.REFORMATTED, figures, ("normalisation folded",),
                            "all weights agree up to one scale per unit; normalisation is folded")  # fmt: skip
    removed = _layers_removed(a, b, changed, figures)
    if changed and removed is not None:
        return removed
    quantized = _quantized(a, b, changed)
    if quantized:
        return Relation(RelationKind.QUANTIZED, {**figures, **quantized}, ("quantized",),
                        f"differs by rounding to at most {2 ** quantized['bits']} levels")  # fmt: skip
    zeroed = [c for c in changed if c.zeroed > 0.05]
    if zeroed and all(c.on_support is not None and c.on_support <= _tolerance(c) for c in changed):
        ratio = float(np.average([c.zeroed for c in changed], weights=[c.size for c in changed]))
        return Relation(RelationKind.PRUNED, {**figures, "zeroed": ratio}, ("pruned",),
                        f"{ratio:.0%} of the weights are zero in one model, the others agree")  # fmt: skip
    return _partial(place, changed, figures)


def _layers_removed(a: Model, b: Model, changed: Sequence[TensorChange], figures: dict) -> Relation | None:
    """Everything that both have agrees, and one has more."""
    more = [n for n in matrices(a) if n not in {c.a for c in changed}] + [
        n for n in matrices(b) if n not in {c.b for c in changed}
    ]
    one_sided = len(changed) == min(len(matrices(a)), len(matrices(b)))
    if not more or not one_sided or not all(_agrees(c) for c in changed):
        return None
    return Relation(RelationKind.PRUNED, {**figures, "removed": sorted(more)}, ("layers removed",),
                    f"all shared tensors agree; {len(more)} exist in one model only")  # fmt: skip


def _partial(place: Evidence, changed: Sequence[TensorChange], figures: dict) -> Relation:
    shares = {g: k / n for g, (k, n) in dict(place.details.get("parts", {})).items() if n >= 8}
    new = sorted(g for g, s in shares.items() if s < INHERITED)
    kept = sorted(g for g, s in shares.items() if s >= INHERITED)
    replaced = [c for c in changed if c.relative is None]
    if new and kept and all(s < 0.2 for g, s in shares.items() if g in new):
        return Relation(RelationKind.PART_INHERITED, {**figures, "inherited": kept, "new": new}, ("part inherited",),
                        f"units are in place in {len(kept)} parts and at chance in {len(new)}")  # fmt: skip
    kept_whole = [c for c in changed if c.relative is not None and c.relative <= KEPT]
    other = [c for c in changed if c not in kept_whole]
    if len(kept_whole) >= 2 and len(other) == 1 and (other[0] in replaced or (other[0].relative or 0) > REPLACED):
        return Relation(RelationKind.HEAD_REPLACED, {**figures, "replaced": [other[0].b]}, ("head replaced",),
                        f"all tensors agree but {other[0].b}")  # fmt: skip
    return Relation(RelationKind.RELATED, figures, (), place.reason)


def _nothing_new(a: Model, b: Model, changed: Sequence[TensorChange]) -> bool:
    """Whether the pairs cover both models (normalisation statistics may be folded away)."""
    paired_a, paired_b = {c.a for c in changed}, {c.b for c in changed}
    return set(matrices(a)) <= paired_a and set(matrices(b)) <= paired_b


def _agrees(c: TensorChange) -> bool:
    """Equal down to rounding, up to one scale per unit."""
    return c.scaled is not None and min(c.scaled, c.relative or 0.0) <= _tolerance(c)


def _tolerance(c: TensorChange) -> float:
    return c.floor * 2 if c.floor > 1e-5 else c.floor * SLACK


def _overall(changed: Sequence[TensorChange]) -> float | None:
    known = [(c.relative, c.size) for c in changed if c.relative is not None]
    return float(np.average([r for r, _ in known], weights=[s for _, s in known])) if known else None


def _format_changes(a: Model, b: Model) -> dict[str, object]:
    def dtypes(m: Model) -> list[str]:
        return sorted({t.dtype for t in m.tensors.values() if t.is_float})

    return {"dtypes": [dtypes(a), dtypes(b)], "names_changed": set(a.tensors) != set(b.tensors)}


def _quantized(a: Model, b: Model, changed: Sequence[TensorChange]) -> dict[str, int] | None:
    """Few levels per row in one model and a difference of no more than such rounding makes."""
    coded = [any(n in m.tensors and not m.tensors[n].is_float for n in matrices(m)) for m in (a, b)]
    if all(coded):
        return None  # two quantised models: neither is the other's quantisation
    integer = any(coded)
    large = sorted(c.levels for c in changed if c.size >= 256)
    if not large:
        return None
    levels = large[len(large) // 2]  # some layers are often left as they were
    if levels >= NO_GRID or (not integer and levels > 257):
        return None
    bits = 8 if integer and levels > 16 else max(1, int(np.ceil(np.log2(max(2, levels - 1)))))
    step = {8: 0.03, 7: 0.05, 6: 0.08, 5: 0.12}.get(bits, 0.35)
    return {"bits": bits} if all(c.relative is not None and c.relative <= step for c in changed) else None

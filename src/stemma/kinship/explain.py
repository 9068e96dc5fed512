"""Explain: what was done between a parent and a child, from kinship through the steps to every tensor."""

from dataclasses import replace
from typing import Any

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.by_weights import Decided, decided, placed_after_all
from stemma.kinship.relation import ALL, in_other_coordinates, side_by_side, two_sided
from stemma.kinship.relation.explanation import Explanation, LayerChange, Step
from stemma.kinship.relation.name_relation import UNSEEN, layer_changes, shortest
from stemma.kinship.relation.pair import Pair
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.matched import UnitsMatched
from stemma.kinship.weights.names_apart import apart
from stemma.kinship.weights.residual import rounding
from stemma.types import Comparison, RelationKind

PROVEN = (RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED)


def explain(parent: Model, child: Model, *, alpha: float = 0.01) -> Explanation:
    """Say what was done to a parent to get a child, layer by layer, the shortest account first.

    Kinship is decided as `compare` decides it; then every operation is fitted to every entry, in slices. Cost: a few
    passes over both models, and one product of every difference with 96 columns.

    Args:
        parent: The model that the child may come from.
        child: The model that is to be explained.
        alpha: Level of the decision about kinship.

    Returns:
        The explanation; `unrelated` without steps where kinship was not found.
    """
    other = apart(parent, child)
    told = _explained(parent, other, alpha)
    return told if other is child else replace(told, child=child.ref)


def _explained(parent: Model, child: Model, alpha: float) -> Explanation:
    found = decided(parent, child, alpha=alpha)
    if found.comparison.verdict != "related":
        return _apart(parent, child, found.comparison)
    if found.view is None:
        return _told(parent, child, found)
    told = _told(found.view.a, found.view.b, found)
    made = found.view.how.made
    words = [f"{name} is {of}" for name, of in made.items()]
    said = words[0] + (f" and {len(words) - 1} more" if len(words) > 1 else "")
    first = tuple(
        Step(s, RelationKind.REFORMATTED, said, {"made": dict(made)}, place=0.0) for s in found.view.how.steps
    )
    return replace(
        told, parent=parent.ref, child=child.ref, kind=found.comparison.relation.kind, steps=(*first, *told.steps),
        sentence=found.comparison.relation.reason, notes=_notes(parent, child),
    )  # fmt: skip


def _told(parent: Model, child: Model, found: Decided) -> Explanation:
    comparison, pairings, matched = found.comparison, found.pairings, found.matched
    kind, by = comparison.relation.kind, comparison.weights.statistic
    if kind in PROVEN and (not pairings or by == UnitsMatched.name or _mapped(comparison)):
        return _proven(parent, child, comparison)
    if by == UnitsMatched.name and matched is not None:
        told = in_other_coordinates(parent, child, matched, whole=True)
        better = placed_after_all(parent, child, told, pairings)
        if not better:
            return _apart(parent, child, comparison) if told is None else replace(told, notes=_notes(parent, child))
        pairings = better
    x, y, pairings = side_by_side(parent, child, pairings)
    pair = Pair.of(x, y, pairings, whole=True)
    told = shortest(pair, ALL)
    if told is None:
        return _apart(parent, child, comparison)
    told = two_sided(told, lambda: shortest(pair.turned(pairings), ALL), _notes(parent, child)) or told
    return replace(told, parent=parent.ref, child=child.ref)


def _mapped(comparison: Comparison) -> bool:
    return any(e.spec.name == UnitsMatched.name and e.details.get("exact") for e in comparison.evidence)


def _apart(parent: Model, child: Model, comparison: Comparison) -> Explanation:
    """Models without kinship, or kin whose tensors cannot be put side by side."""
    pair = Pair.of(parent, child, by_name(parent, child))
    layers = tuple(
        replace(c, status="not inherited") if c.status == "changed" and comparison.verdict != "related" else c
        for c in layer_changes(pair)
    )
    return Explanation(
        parent.ref, child.ref, comparison.relation.kind, (), comparison.relation.reason, None, 0.0, 0.0, 0.0, 0.0, 0.0,
        layers, (), _notes(parent, child), UNSEEN,
    )  # fmt: skip


def _proven(parent: Model, child: Model, comparison: Comparison) -> Explanation:
    """A copy, or a map that was applied: nothing is left but rounding."""
    relation = comparison.relation
    exact = next((e for e in comparison.evidence if e.details.get("exact")), None)
    names: dict[str, Any] = {} if exact is None else exact.details.get("names", {})
    floor = max((rounding(child, n) for n in matrices(child)), default=0.0)
    word = "inherited" if exact is None else "mapped"
    back = {t: r for r, t in names.items()}
    layers = tuple(
        LayerChange(n, back.get(n, n if n in parent.weights else ""), word, t.size, 0.0)
        for n, t in child.weights.items()
    )
    steps = tuple(Step(s, relation.kind, relation.reason) for s in relation.steps) or (
        Step(relation.kind.value, relation.kind, relation.reason),
    )
    residual = 0.0 if exact is None else float(exact.details["residual"])
    return Explanation(
        parent.ref, child.ref, relation.kind, steps, relation.reason, None if exact is None else 0.0, residual, floor,
        1.0, 0.0, 0.0, layers, (), _notes(parent, child), ("training data",),
    )  # fmt: skip


def _notes(parent: Model, child: Model) -> tuple[str, ...]:
    formats = [sorted({t.dtype for t in m.tensors.values() if t.is_float}) for m in (parent, child)]
    out = []
    if formats[0] != formats[1]:
        out.append(f"stored as {'/'.join(formats[1]) or 'codes'}, the parent as {'/'.join(formats[0]) or 'codes'}")
    shared = len(set(parent.tensors) & set(child.tensors))
    if shared < len(child.tensors):
        out.append(f"{len(child.tensors) - shared} of {len(child.tensors)} tensors have other names")
    return tuple(out)

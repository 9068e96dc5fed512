"""Explanation of how a child was made from a parent, step by step and tensor by tensor."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stemma.checkpoints.model import Model
from stemma.checkpoints.sample import sampled
from stemma.errors import PartlyReadError
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.axes import NARROWER
from stemma.kinship.by_samples import decide, unread
from stemma.kinship.by_weights import WeightsDecision, placement_by_values
from stemma.kinship.claimed_units import CheckedClaim, check_claimed_units
from stemma.kinship.relaid_pair import SAME_FUNCTION
from stemma.kinship.relation import ALL, EXACT, both_directions, explain_remapped, pair_tensors
from stemma.kinship.relation.explanation import Explanation, LayerChange, Step
from stemma.kinship.relation.name_relation import CANNOT_SEE, layer_changes, simplest_explanation
from stemma.kinship.relation.pair import Pair
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.kinship.weights.name_clashes import with_distinct_names
from stemma.kinship.weights.residual import rounding
from stemma.kinship.weights.units_matched import UnitsMatched
from stemma.types import Comparison, RelationKind

PROVEN = (RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.PERMUTED)


def explain(parent: Model, child: Model, *, alpha: float = 0.01) -> Explanation:
    """Explain how a child was made from a parent, layer by layer.

    Whether the two are related is decided as by `compare`; then every operation is fitted to every entry, in slices.
    Cost: a few passes over both models, and one product of every difference with 96 columns.

    Args:
        parent: The model that the child may come from.
        child: The model to explain.
        alpha: Significance level of the decision whether the two are related.

    Returns:
        The explanation; `unrelated` without steps where no relation was found.
    """
    if parent.is_partial or child.is_partial:
        return _of_samples(parent, child, alpha)
    other = with_distinct_names(parent, child)
    explanation = _explained(parent, other, alpha)
    if explanation.kind not in (*PROVEN, *SAME_FUNCTION, RelationKind.PRUNED):
        checked = check_claimed_units(parent, child, alpha)
        explanation = explanation if checked is None else _of_claim(parent, child, checked)
    return explanation if other is child else replace(explanation, child=child.ref)


def _of_claim(parent: Model, child: Model, checked: CheckedClaim) -> Explanation:
    """The explanation of a child whose plan names the units that it kept, which its weights bear out."""
    pairings, relation = by_name(checked.parent, checked.child), checked.relation
    found = _by_pairs(checked.parent, checked.child, pairings)
    removed = Step(NARROWER, RelationKind.PRUNED, relation.reason.partition("; then ")[0],
                   {"ratio": relation.parameters["ratio"]}, place=0.0)  # fmt: skip
    if found is None:
        return replace(
            _without_steps(checked.parent, checked.child, decide(parent, child).comparison), steps=(removed,)
        )
    steps = (removed, *(s for s in found.steps if s.kind not in PROVEN))
    return replace(found, parent=parent.ref, child=child.ref, kind=RelationKind.PRUNED, steps=steps,
                   sentence=relation.reason, notes=_notes(parent, child))  # fmt: skip


def _of_samples(parent: Model, child: Model, alpha: float) -> Explanation:
    """The explanation of what was read of both, where one was read in part."""
    x, y = sampled(parent), sampled(child)
    y = with_distinct_names(x, y)
    try:
        found = _explained(x, y, alpha)
    except PartlyReadError:
        found = _without_steps(x, y, decide(x, y, alpha=alpha).comparison)
    gaps = tuple(gap["why"] for gap in unread(parent, child))
    if found.kind in EXACT:  # which is claimed of every entry, and not of a sample
        found = replace(found, kind=RelationKind.RELATED, sentence=f"{found.sentence}, in the part that was read")
    return replace(found, parent=parent.ref, child=child.ref, notes=(*found.notes, *gaps))


def _explained(parent: Model, child: Model, alpha: float) -> Explanation:
    found = decide(parent, child, alpha=alpha)
    if found.comparison.verdict != "related":
        return _without_steps(parent, child, found.comparison)
    if found.view is None:
        return _explanation_of(parent, child, found)
    explanation = _explanation_of(found.view.a, found.view.b, found)
    made = found.view.how.made
    words = [f"{name} is {of}" for name, of in made.items()]
    said = words[0] + (f" and {len(words) - 1} more" if len(words) > 1 else "")
    first = tuple(
        Step(s, RelationKind.REFORMATTED, said, {"made": dict(made)}, place=0.0) for s in found.view.how.steps
    )
    return replace(
        explanation, parent=parent.ref, child=child.ref, kind=found.comparison.relation.kind,
        steps=(*first, *explanation.steps),
        sentence=found.comparison.relation.reason, notes=_notes(parent, child),
    )  # fmt: skip


def _explanation_of(parent: Model, child: Model, found: WeightsDecision) -> Explanation:
    comparison, pairings, matched = found.comparison, found.pairings, found.matched
    kind, by = comparison.relation.kind, comparison.weights.statistic
    if kind in PROVEN and (not pairings or by == UnitsMatched.name or _mapped(comparison)):
        return _exact_explanation(parent, child, comparison)
    if by != UnitsMatched.name or matched is None:
        return _by_pairs(parent, child, pairings) or _without_steps(parent, child, comparison)
    explanation = explain_remapped(parent, child, matched, all_entries=True)
    if better := placement_by_values(parent, child, explanation, pairings):
        return _by_pairs(parent, child, better) or _without_steps(parent, child, comparison)
    named = comparison.relation.steps
    if explanation is None or tuple(step.name for step in explanation.steps) != named:
        # the comparison may have named the relation from tensors paired by their names
        other = _by_pairs(parent, child, pairings)
        agrees = other is not None and (explanation is None or tuple(step.name for step in other.steps) == named)
        if other is not None and (agrees or (explanation and other.kind is kind is not explanation.kind)):
            return other
    if explanation is None:
        return _without_steps(parent, child, comparison)
    return replace(explanation, notes=_notes(parent, child))


def _by_pairs(parent: Model, child: Model, pairings: Sequence[Pairing]) -> Explanation | None:
    """The explanation of tensors paired by name or contents, in whichever direction is simpler."""
    x, y, pairings = pair_tensors(parent, child, pairings)
    pair = Pair.of(x, y, pairings, all_entries=True)
    explanation = simplest_explanation(pair, ALL)
    if explanation is None:
        return None
    explanation = (
        both_directions(explanation, lambda: simplest_explanation(pair.swapped(pairings), ALL), _notes(parent, child))
        or explanation
    )
    return replace(explanation, parent=parent.ref, child=child.ref)


def _mapped(comparison: Comparison) -> bool:
    return any(e.spec.name == UnitsMatched.name and e.details.get("exact") for e in comparison.evidence)


def _without_steps(parent: Model, child: Model, comparison: Comparison) -> Explanation:
    """Explanation of unrelated models, or of related ones whose tensors cannot be paired."""
    pair = Pair.of(parent, child, by_name(parent, child))
    layers = tuple(
        replace(c, status="not inherited") if c.status == "changed" and comparison.verdict != "related" else c
        for c in layer_changes(pair)
    )
    return Explanation(
        parent.ref, child.ref, comparison.relation.kind, (), comparison.relation.reason, None, 0.0, 0.0, 0.0, 0.0, 0.0,
        layers, (), _notes(parent, child), CANNOT_SEE,
    )  # fmt: skip


def _exact_explanation(parent: Model, child: Model, comparison: Comparison) -> Explanation:
    """Explanation of a copy or an exact map: only rounding is left."""
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
        out.append(f"{len(child.tensors) - shared} of {len(child.tensors)} tensors have different names")
    return tuple(out)

"""The weights axis of a pair: cheap exact tests first, a search for a map of units only where they are not enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np

from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.axes import DISTILLED, NO_PROBES
from stemma.kinship.claimed_units import check_claimed_units, needs_claim, plan_not_checked, with_claim
from stemma.kinship.exact_equality import exact_equality
from stemma.kinship.relaid_pair import (
    EXPLAINED_SHARE,
    RelaidPair,
    explains_more,
    in_stored_layout,
    is_explained,
    relaid_pairs,
)
from stemma.kinship.relation import explain_remapped, mean_cosine, name_relation, with_parts
from stemma.kinship.relation.explanation import Explanation
from stemma.kinship.relation.function_preserved import preserves_function
from stemma.kinship.relation.matched_by_values import match_by_values
from stemma.kinship.relation.name_relation import older_model, relation_of
from stemma.kinship.same_public_seed import common_start
from stemma.kinship.weights import correspondence, name_clashes
from stemma.kinship.weights.constants.public_starts import public_start
from stemma.kinship.weights.contents.contents_in_place import contents_in_place
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.decision import Findings, decide
from stemma.kinship.weights.layouts.rearranged_rows import EXCHANGED
from stemma.kinship.weights.not_tested import list_not_tested
from stemma.kinship.weights.order.counts import Counts, evidence
from stemma.kinship.weights.order.units_in_place import SHAPES, UnitsInPlace
from stemma.kinship.weights.shared_tensors import SharedTensors, same_weights
from stemma.kinship.weights.sizes import no_fitting_sizes
from stemma.kinship.weights.units_kept import UnitsKept
from stemma.kinship.weights.units_matched import NEAR_COSINE, EvaluatedMap, UnitsMatched
from stemma.types import Comparison, Evidence, ModelRef, Relation, RelationKind, Verdict

REPLACEABLE_BY_MAP = (
    RelationKind.RELATED, RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT,
    RelationKind.PART_INHERITED, RelationKind.HEAD_REPLACED,
)  # fmt: skip
"""Relations that an exact map of units would replace."""

DENSE = frozenset({RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT, RelationKind.RELATED})
"""Relations that two trainings from one initialisation look like."""

SAME_COSINE = 0.999
"""Mean cosine of units in place from which they may be equal up to factors."""

EXPLAINED_BY_NAMES = 0.95
"""Share of a large model that a map by names must explain for no other pairing to be tried."""

LARGER_SHARE = 0.02
"""By how much a map must explain more of a model than units in place do."""

LARGE_MODEL_BLOCK, LARGE_MODEL_BLOCKS = 128, 1
"""Units of a block, and blocks per group, whose order is tested in a large model, which has many groups."""

PLACED_COSINE = 0.8
"""Mean cosine of paired matrices from which their units count as in place."""

CANNOT_SEE = (NO_PROBES, "training data", DISTILLED)

WORD = {Verdict.SUPPORTED: "related", Verdict.REFUTED: "independent", Verdict.INCONCLUSIVE: "inconclusive"}
"""Verdict names in the comparison."""


@dataclass(frozen=True, eq=False)
class WeightsDecision:
    """The comparison of a pair by weights, with what it rests on.

    Attributes:
        comparison: The comparison.
        pairings: Pairing of matrices used for the decision; empty where digests were enough.
        matched: The map of units that was searched, if any.
        view: The pair in one layout, if the decision was made in that.
        placed: Whether units keep their places, tensor by tensor.
    """

    comparison: Comparison
    pairings: tuple[Pairing, ...] = ()
    matched: EvaluatedMap | None = None
    view: RelaidPair | None = None
    placed: bool = False


def decide_by_weights(a: Model, b: Model, *, alpha: float = 0.01) -> WeightsDecision:
    """Decide from the weights alone whether two models share an origin, and name the relation as far as possible.

    Cheap exact tests run first: digests; order and contents of units in place; equality in other formats. Only if these
    do not decide, a map of units is searched. One table (`stemma.kinship.weights.decision`) holds which test decides.

    Args:
        a: First model.
        b: Second model.
        alpha: Significance level for this pair (correct it for the number of models searched).

    Returns:
        The comparison; symmetric in verdict and p-value up to which side's structure is known better.
    """
    other = name_clashes.with_distinct_names(a, b)
    with np.errstate(over="ignore", invalid="ignore"):  # overflow at the ends of the number range is expected
        found = _decide(a, other, alpha)
    comparison = found.comparison
    if other is not b:
        evidence_ = tuple(replace(e, inputs=(a.digest, b.digest)) for e in comparison.evidence)
        comparison = replace(comparison, b=b.ref, weights=evidence_[0], evidence=evidence_)
    checked = check_claimed_units(a, b, alpha) if needs_claim(comparison) else None
    if checked is None:
        return replace(found, comparison=comparison)
    return WeightsDecision(with_claim(comparison, checked, CANNOT_SEE), checked.pairings)


def _decide(a: Model, b: Model, alpha: float) -> WeightsDecision:
    same = same_weights(a, b)
    if same.verdict is Verdict.SUPPORTED:
        return WeightsDecision(answer(a, b, Findings(same, alpha=alpha), _identity_relation(a, b)))
    found = _as_stored(a, b, same, alpha)
    if found.comparison.relation.kind in DENSE and (seed := public_start(a)) is not None and seed == public_start(b):
        return replace(found, comparison=common_start(found.comparison, seed))
    mapped = (
        found.comparison.verdict == "related"
        and found.comparison.weights.effect >= EXPLAINED_SHARE
        and not found.placed
    )
    # In a large mapped model, reading the rows again would only simplify the relation.
    if is_explained(found.comparison) or (mapped and _large(a)):
        return found
    best, comparison = found, found.comparison
    beside = name_clashes.with_names_of(a, b, found.pairings) if found.placed else b
    for number, view in enumerate(relaid_pairs(a, beside)):
        level = alpha / 2 ** (number + 2)  # corrected for every further comparison
        other = _as_stored(view.a, view.b, same_weights(view.a, view.b), level, placed=found.placed or mapped)
        if other.comparison.verdict == "related" and explains_more(other.comparison, comparison):
            comparison = other.comparison
            best = replace(other, comparison=in_stored_layout(a, b, comparison, view), view=view)
            if is_explained(comparison):
                break
    return best


def _as_stored(a: Model, b: Model, same: Evidence, alpha: float, *, placed: bool = False) -> WeightsDecision:
    """The tests, cheap ones first; no search for a map if units are known to be in place."""
    if same.verdict is Verdict.SUPPORTED:
        return WeightsDecision(answer(a, b, Findings(same, alpha=alpha), _identity_relation(a, b)))
    found, pairings = compare_in_place(a, b, same, alpha)
    order, contents = found.order or same, found.contents or same
    if contents.verdict is Verdict.SUPPORTED and not _some_tensors_apart(contents):
        relation = name_relation(a, b, order, pairings)
        if found.order is None and (not _large(a) or relation.kind is RelationKind.PART_INHERITED):
            order, _ = _units_in_order(a, b, UnitsInPlace(), alpha)
            found, relation = replace(found, order=order), with_parts(relation, order)
        same_units = contents.value >= SAME_COSINE and contents.details["least_cosine"] >= NEAR_COSINE
        if relation.kind not in REPLACEABLE_BY_MAP or not same_units or _nothing_changed(a, relation):
            return WeightsDecision(answer(a, b, found, relation), pairings, placed=True)
        unmoved = UnitsMatched().identity(a, b, pairings, alpha)
        if unmoved.exact and preserves_function(a, b, unmoved):
            found = replace(found, matched=unmoved.evidence, mapped=True)
            relation = UnitsMatched.relation(unmoved.evidence)
        return WeightsDecision(answer(a, b, found, relation), pairings, unmoved, placed=not unmoved.exact)
    shown = exact_equality(a, b, pairings)
    if shown is not None and contents.verdict is not Verdict.SUPPORTED:
        return WeightsDecision(answer(a, b, replace(found, exact_equality=shown[0]), shown[1]), pairings)
    if placed:
        if contents.verdict is Verdict.SUPPORTED:
            return WeightsDecision(answer(a, b, found, name_relation(a, b, order, pairings)), pairings)
        return WeightsDecision(answer(a, b, found, _undetermined()), pairings)
    return _search(a, b, found, pairings, alpha)


def compare_in_place(a: Model, b: Model, same: Evidence, alpha: float = 0.01) -> tuple[Findings, tuple[Pairing, ...]]:
    """The tests without a search: contents and order of units in place; with the pairing of tensors used."""
    ways = list(correspondence.candidates(a, b, contents=not _large(a)))
    if len(ways) == 1:
        contents = contents_in_place(a, b, ways[0][1], alpha)
        if contents.verdict is Verdict.SUPPORTED and not _some_tensors_apart(contents):
            return Findings(same, contents=contents, alpha=alpha), ways[0][1]
    order, pairings = _units_in_order(
        a,
        b,
        UnitsInPlace(block=LARGE_MODEL_BLOCK, max_blocks=LARGE_MODEL_BLOCKS) if _large(a) else UnitsInPlace(),
        alpha,
    )
    contents = contents if len(ways) == 1 else contents_in_place(a, b, pairings, alpha)
    return Findings(same, order=order, contents=contents, alpha=alpha), pairings


def _too_few_units(contents: Evidence, alpha: float) -> bool:
    """Whether too few units could be compared for any answer; a weak trace of shared origin is kept."""
    return contents.verdict is Verdict.INCONCLUSIVE and contents.details["log10_p_of_all"] > log10(alpha)


def _some_tensors_apart(contents: Evidence) -> bool:
    """Whether some tensors do not agree in place, so that their units may have been reordered."""
    return contents.details["tensors_apart"] > 0


def _nothing_changed(a: Model, relation: Relation) -> bool:
    """Whether every matrix is unchanged, so that no unit was moved."""
    return len(relation.parameters.get("frozen", ())) == len(matrices(a))


def _search(a: Model, b: Model, found: Findings, pairings: tuple[Pairing, ...], alpha: float) -> WeightsDecision:
    """Search for a map, for equal units and for equal tensors; then read the decision table."""
    placed = found.contents is not None and found.contents.verdict is Verdict.SUPPORTED
    related = placed and name_relation(a, b, found.order or found.same, pairings)
    if related and _nothing_changed(a, related):
        return WeightsDecision(answer(a, b, found, related), pairings)
    matched = find_unit_map(a, b, alpha)
    # If units are in place, rounding and statistics hide whether factors cancel; otherwise the map alone decides.
    exact = matched is not None and matched.exact and (not placed or preserves_function(a, b, matched))
    found = replace(found, matched=None if matched is None else matched.evidence, mapped=exact)
    if placed and not exact and not _explains_more(matched, found.contents):
        return WeightsDecision(
            answer(a, b, replace(found, matched=None), related or _undetermined()), pairings, matched
        )
    if not exact and not placed and (kept := UnitsKept().with_any_pairing(a, b, pairings)):
        bits, way = kept
        found = replace(found, kept=bits)
        if bits.verdict is Verdict.SUPPORTED and (
            found.matched is None or found.matched.verdict is not Verdict.SUPPORTED
        ):
            return WeightsDecision(answer(a, b, found, _relation_of_kept_units(a, b, matched, bits, way)), way, matched)
    if matched is not None and found.contents is not None and _too_few_units(found.contents, alpha):
        tried_pairings = (
            tuple(p.swapped() for p in matched.tried_pairings) if matched.reference_is_b else matched.tried_pairings
        )
        found = replace(found, contents=contents_in_place(a, b, tried_pairings, alpha, tried=2))
    found = replace(found, shared=SharedTensors().evidence(a, b), sizes=no_fitting_sizes(a, b))
    found = replace(found, not_tested=[*list_not_tested(a, b, found, matched), *plan_not_checked(a, b)])
    return WeightsDecision(answer(a, b, found, _relation(a, b, found, matched, pairings)), pairings, matched)


def find_unit_map(a: Model, b: Model, alpha: float = 0.01) -> EvaluatedMap | None:
    """Search for a map of units; for large models with matching names, contents are read only if needed."""
    found, ways = None, []
    if _large(a):
        quick = correspondence.candidates(a, b, contents=False)
        if [how for how, _ in quick] == ["names"]:
            found = UnitsMatched().search(a, b, quick, alpha, before=2)
            if (
                found is not None
                and found.evidence.verdict is Verdict.SUPPORTED
                and found.evidence.effect >= EXPLAINED_BY_NAMES
            ):
                return found
            if _sizes(a) == _sizes(b):  # moved tensors show as the map grows: contents need not be read
                return UnitsMatched().search(a, b, [("contents", quick[0][1])], alpha, before=3, best=found)
            ways = ["names"]
    others = [way for way in correspondence.candidates(a, b, contents=True) if way[0] not in ways]
    return UnitsMatched().search(a, b, others, alpha, before=1 + 2 * len(ways), best=found)


def _sizes(model: Model) -> dict[str, tuple[int, ...]]:
    return {n: t.shape for n, t in matrices(model).items()}


def _explains_more(matched: EvaluatedMap | None, contents: Evidence | None) -> bool:
    """Whether a map explains more of the models than units in place do."""
    if matched is None or matched.evidence.verdict is not Verdict.SUPPORTED or contents is None:
        return False
    return matched.evidence.effect > contents.effect + LARGER_SHARE


def _relation_of_kept_units(
    a: Model, b: Model, matched: EvaluatedMap | None, bits: Evidence, way: tuple[Pairing, ...]
) -> Relation:
    """The relation of models whose first units are identical, in any order."""
    moved = None if matched is None else explain_remapped(a, b, matched)
    if moved is None:
        return name_relation(a, b, bits, way)
    origin = older_model(moved, a, b)
    return relation_of(moved, {"made_from": origin} if origin else {})


def _relation(
    a: Model, b: Model, found: Findings, matched: EvaluatedMap | None, pairings: tuple[Pairing, ...]
) -> Relation:  # fmt: skip
    """The relation that the deciding row of the table names."""
    row, deciding = decide(found)
    if row.verdict is Verdict.REFUTED:
        return Relation(RelationKind.UNRELATED, reason=deciding.reason)
    if row.verdict is Verdict.INCONCLUSIVE:
        return _undetermined(deciding.reason)
    if row.name == "tensors bit for bit":
        details = {"shared": deciding.details["shared"], "share": deciding.effect}
        return Relation(RelationKind.PART_INHERITED, details, ("part inherited",), deciding.reason)
    cut = row.name == "contents under a map" and matched is not None and matched.has_unequal_widths
    if matched is not None and row.name in ("exact map", "contents under a map") and not cut:
        named = UnitsMatched.relation(matched.evidence)
        explained = None if found.mapped else explain_remapped(a, b, matched)
        if not found.mapped and (better := placement_by_values(a, b, explained, pairings)):
            return name_relation(a, b, deciding, better)
        if explained is not None:
            return relation_of(explained, named.parameters)
        return named if found.mapped else replace(named, kind=RelationKind.RELATED)
    return name_relation(a, b, deciding, pairings)


def placement_by_values(
    a: Model, b: Model, explained: Explanation | None, pairings: Sequence[Pairing]
) -> tuple[Pairing, ...]:  # fmt: skip
    """Pairing by values in which units keep their places, if no map explains every matrix; else empty."""
    if explained is not None and not any(s.name == "part inherited" for s in explained.steps):
        return ()
    better = match_by_values(a, b, pairings)
    return better if mean_cosine(a, b, better) >= PLACED_COSINE else ()


def _undetermined(reason: str = "") -> Relation:
    return Relation(RelationKind.UNRELATED, {"decided": False}, reason=reason)


def _identity_relation(a: Model, b: Model) -> Relation:
    if a.digest == b.digest:
        return Relation(RelationKind.COPY, reason="the digests agree")
    own, other = a.tensor_digests, b.tensor_digests
    moved = [n for n in own if n in other and own[n] != other[n]]
    if moved and own.keys() == other.keys():
        said = f"the same tensors with exchanged names: {len(moved)} of {len(own)}, for example {moved[0]}"
        return Relation(RelationKind.PART_INHERITED, {"exchanged": moved}, (EXCHANGED,), said)
    return Relation(
        RelationKind.REFORMATTED, {"names": "changed"}, ("renamed",), "the tensors are identical, their names differ"
    )


def _units_in_order(a: Model, b: Model, method: UnitsInPlace, alpha: float) -> tuple[Evidence, tuple[Pairing, ...]]:
    """Units in place under each pairing of tensors; the p-value is corrected for every pairing tried."""
    best: tuple[float, Counts, tuple[Pairing, ...], str] | None = None
    tried = 0
    for how, pairings in correspondence.candidates(a, b, contents=not _large(a)):
        tried += 1
        counts = _count(a, b, method, pairings)
        log_p = counts.log_p()
        rank = 0.0 if log_p is None else log_p
        if best is None or rank < best[0]:
            best = rank, counts, pairings, how
    _, counts, pairings, how = best if best is not None else (0.0, Counts("sum", ()), (), "none")
    details = {"correspondence": how, "tensors_paired": len(pairings),
               "tensors": [len(matrices(a)), len(matrices(b))],
               "parts": parts(counts),
               "structure": max((structure(a), structure(b)), key=_knowledge).source}  # fmt: skip
    return evidence(method, a, b, counts, max(1, tried), details, alpha), pairings


def _large(model: Model) -> bool:
    """Contents of very large models are compared only where names fail, since every entry has to be read."""
    return model.parameters > 1 << 26 or model.is_partial


def _count(a: Model, b: Model, method: UnitsInPlace, pairings: tuple[Pairing, ...]) -> Counts:
    known_a, known_b = structure(a), structure(b)
    if (_knowledge(known_b), b.digest) > (_knowledge(known_a), a.digest):
        return method.count(b, a, tuple(p.swapped() for p in pairings), known_b)
    return method.count(a, b, pairings, known_a)


def _knowledge(known: Structure) -> tuple[bool, int]:
    """Groups before single axes, then more hidden axes: the same choice for (a, b) and (b, a)."""
    groups = known.certain and known.source != SHAPES and any(g.exchangeable for g in known.groups)
    return groups, sum(label.hidden for labels in known.axes.values() for label in labels)


def parts(counts: Counts) -> Mapping[str, Any]:
    """Matching units and all units of each group."""
    out: dict[str, list[int]] = {}
    for g in counts.groups:
        entry = out.setdefault(g.group, [0, 0])
        entry[0] += g.in_place
        entry[1] += g.units
    return out


def answer(a: Model, b: Model, found: Findings, relation: Relation) -> Comparison:
    """The comparison that the decision table gives for these findings."""
    row, deciding = decide(found)
    every = (found.same, found.exact_equality, found.contents, found.order, found.matched, found.kept, found.shared,
             found.sizes)  # fmt: skip
    others = [e for e in every if e is not None and e.spec != deciding.spec]
    cannot_see = (*CANNOT_SEE, *(n["why"] for n in found.not_tested))
    return Comparison(
        a=ModelRef(a.name, a.digest),
        b=ModelRef(b.name, b.digest),
        verdict=WORD[row.verdict],
        relation=relation,
        direction="unknown",
        weights=deciding,
        function=None,
        evidence=(deciding, *others),
        cannot_see=cannot_see,
        not_tested=tuple(found.not_tested),
    )

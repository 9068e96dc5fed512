"""The weights axis of a pair: the cheap and certain tests first, a search only where they leave something open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np

from stemma.architectures.structure import Structure
from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.axes import DISTILLED, UNASKED
from stemma.kinship.exhibited import exhibited
from stemma.kinship.from_one_seed import started
from stemma.kinship.in_one_layout import WHOLE, View, as_stored, is_explained, laid_out, says_more
from stemma.kinship.relation import agreement, by_parts, in_other_coordinates, name_relation
from stemma.kinship.relation.explanation import Explanation
from stemma.kinship.relation.matched_by_values import in_place as in_place_pairs
from stemma.kinship.relation.name_relation import made_from, relation_of
from stemma.kinship.relation.same_function import maps_function
from stemma.kinship.weights import correspondence, names_apart
from stemma.kinship.weights.constants.public_starts import public_start
from stemma.kinship.weights.contents.in_place import in_place
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.decision import Findings, decide
from stemma.kinship.weights.layouts.relaid import EXCHANGED
from stemma.kinship.weights.matched import NEAR, Matched, UnitsMatched
from stemma.kinship.weights.not_tested import untested
from stemma.kinship.weights.order.aligned import SHAPES, UnitsInPlace
from stemma.kinship.weights.order.counts import Counts, evidence
from stemma.kinship.weights.shared import SharedTensors, same_weights
from stemma.kinship.weights.sizes import sizes_apart
from stemma.kinship.weights.units_kept import UnitsKept
from stemma.types import Comparison, Evidence, ModelRef, Relation, RelationKind, Verdict

OPEN = (
    RelationKind.RELATED, RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT,
    RelationKind.PART_INHERITED, RelationKind.HEAD_REPLACED,
)  # fmt: skip
"""Relations that an exact map of units would replace."""

DENSE = frozenset({RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT, RelationKind.RELATED})
"""Relations that two trainings from one start could be taken for."""

SAME = 0.999
"""Mean cosine of units in place from which they may be the same but for factors."""

ALL = 0.95
"""Share of a large model that a map by names must explain for no other correspondence to be looked at."""

MORE = 0.02
"""By how much a map must explain more of a model than units in place do."""

SMALL, FEW = 128, 1
"""Units of a block, and blocks per group, whose order is looked at in a large model: it has many groups."""

PLACED = 0.8
"""Mean cosine of matrices in their places from which their relation is named as it is of units in place."""

CANNOT_SEE = (UNASKED, "training data", DISTILLED)

WORD = {Verdict.SUPPORTED: "related", Verdict.REFUTED: "independent", Verdict.INCONCLUSIVE: "inconclusive"}
"""What a decision is called in the answer."""


@dataclass(frozen=True, eq=False)
class Decided:
    """The answer about a pair of weights, with what it was made from.

    Attributes:
        comparison: The answer.
        pairings: Which matrix of a is which of b, under which it was decided; empty where identity was enough.
        matched: The map of units that was searched, where one was.
        view: The pair in one layout, where it was decided in that.
        placed: Whether units were found in their places, tensor by tensor.
    """

    comparison: Comparison
    pairings: tuple[Pairing, ...] = ()
    matched: Matched | None = None
    view: View | None = None
    placed: bool = False


def decided(a: Model, b: Model, *, alpha: float = 0.01) -> Decided:
    """Decide from the weights alone whether two models share an origin, and name the relation as far as they show it.

    Tests run from the cheap and certain to the dear: digests; the order of units and their contents, where they stand;
    equality in other formats; and, only where these leave something open, a search for a map of units. What decides is
    in one table (`stemma.kinship.weights.decision`).

    Args:
        a: First model.
        b: Second model.
        alpha: Level of the decision for this pair (correct it for the number of models searched).

    Returns:
        The comparison; symmetric in verdict and p-value up to which side's structure is known better.
    """
    other = names_apart.apart(a, b)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers at the end of their range say nothing, and are no news
        found = _decided(a, other, alpha)
    if other is b:
        return found
    evidence_ = tuple(replace(e, inputs=(a.digest, b.digest)) for e in found.comparison.evidence)
    told = replace(found.comparison, b=b.ref, weights=evidence_[0], evidence=evidence_)
    return replace(found, comparison=told)


def _decided(a: Model, b: Model, alpha: float) -> Decided:
    same = same_weights(a, b)
    if same.verdict is Verdict.SUPPORTED:
        return Decided(_answer(a, b, Findings(same, alpha=alpha), _identity_relation(a, b)))
    found = _as_stored(a, b, same, alpha)
    if found.comparison.relation.kind in DENSE and (seed := public_start(a)) is not None and seed == public_start(b):
        return replace(found, comparison=started(found.comparison, seed))
    mapped = found.comparison.verdict == "related" and found.comparison.weights.effect >= WHOLE and not found.placed
    if is_explained(found.comparison) or (mapped and _large(a)):  # its rows would be read once more for a shorter name
        return found
    best, told = found, found.comparison
    beside = names_apart.as_in(a, b, found.pairings) if found.placed else b
    for number, view in enumerate(laid_out(a, beside)):
        level = alpha / 2 ** (number + 2)  # every further look is paid for
        other = _as_stored(view.a, view.b, same_weights(view.a, view.b), level, placed=found.placed or mapped)
        if other.comparison.verdict == "related" and says_more(other.comparison, told):
            told = other.comparison
            best = replace(other, comparison=as_stored(a, b, told, view), view=view)
            if is_explained(told):
                break
    return best


def _as_stored(a: Model, b: Model, same: Evidence, alpha: float, *, placed: bool = False) -> Decided:
    """The tests, cheap ones first; none that searches for a map of units that are known to be in their places."""
    if same.verdict is Verdict.SUPPORTED:
        return Decided(_answer(a, b, Findings(same, alpha=alpha), _identity_relation(a, b)))
    found, pairings = in_their_places(a, b, same, alpha)
    order, contents = found.order or same, found.contents or same
    if contents.verdict is Verdict.SUPPORTED and not _open(contents):
        relation = name_relation(a, b, order, pairings)
        if found.order is None and (not _large(a) or relation.kind is RelationKind.PART_INHERITED):
            order, _ = _in_order(a, b, UnitsInPlace(), alpha)
            found, relation = replace(found, order=order), by_parts(relation, order)
        same_units = contents.value >= SAME and contents.details["least_cosine"] >= NEAR
        if relation.kind not in OPEN or not same_units or _nothing_changed(a, relation):
            return Decided(_answer(a, b, found, relation), pairings, placed=True)
        unmoved = UnitsMatched().unmoved(a, b, pairings, alpha)
        if unmoved.exact and maps_function(a, b, unmoved):
            found = replace(found, matched=unmoved.evidence, mapped=True)
            relation = UnitsMatched.relation(unmoved.evidence)
        return Decided(_answer(a, b, found, relation), pairings, unmoved, placed=not unmoved.exact)
    shown = exhibited(a, b, pairings)
    if shown is not None and contents.verdict is not Verdict.SUPPORTED:
        return Decided(_answer(a, b, replace(found, exhibited=shown[0]), shown[1]), pairings)
    if placed:
        if contents.verdict is Verdict.SUPPORTED:
            return Decided(_answer(a, b, found, name_relation(a, b, order, pairings)), pairings)
        return Decided(_answer(a, b, found, _undetermined()), pairings)
    return _searched(a, b, found, pairings, alpha)


def in_their_places(a: Model, b: Model, same: Evidence, alpha: float = 0.01) -> tuple[Findings, tuple[Pairing, ...]]:
    """The tests that need no search: contents and order of units where they stand.

    Args:
        a: One model.
        b: The other one.
        same: Whether the digests agree.
        alpha: Level of the decision.

    Returns:
        What was found, and which tensor is which. Of models whose names pair everything the order is not looked at
        where contents are enough.
    """
    ways = list(correspondence.candidates(a, b, contents=not _large(a)))
    if len(ways) == 1:
        contents = in_place(a, b, ways[0][1], alpha)
        if contents.verdict is Verdict.SUPPORTED and not _open(contents):
            return Findings(same, contents=contents, alpha=alpha), ways[0][1]
    order, pairings = _in_order(a, b, UnitsInPlace(block=SMALL, max_blocks=FEW) if _large(a) else UnitsInPlace(), alpha)
    contents = contents if len(ways) == 1 else in_place(a, b, pairings, alpha)
    return Findings(same, order=order, contents=contents, alpha=alpha), pairings


def _says_nothing(contents: Evidence, alpha: float) -> bool:
    """Whether too few units could be put side by side; a trace of kinship is no such case, and is kept."""
    return contents.verdict is Verdict.INCONCLUSIVE and contents.details["log10_p_of_all"] > log10(alpha)


def _open(contents: Evidence) -> bool:
    """Whether some tensors do not agree in place, so that they may have been put in another order."""
    return contents.details["tensors_apart"] > 0


def _nothing_changed(a: Model, relation: Relation) -> bool:
    """Whether every matrix is as it was, so that no unit was moved."""
    return len(relation.parameters.get("frozen", ())) == len(matrices(a))


def _searched(a: Model, b: Model, found: Findings, pairings: tuple[Pairing, ...], alpha: float) -> Decided:
    """Look for a map, for equal units and for equal tensors; then read the table."""
    placed = found.contents is not None and found.contents.verdict is Verdict.SUPPORTED
    related = placed and name_relation(a, b, found.order or found.same, pairings)
    if related and _nothing_changed(a, related):
        return Decided(_answer(a, b, found, related), pairings)
    matched = map_of(a, b, alpha)
    # Where units are in their places, rounding and statistics hide whether factors cancel: the map alone decides else.
    exact = matched is not None and matched.exact and (not placed or maps_function(a, b, matched))
    found = replace(found, matched=None if matched is None else matched.evidence, mapped=exact)
    if placed and not exact and not _fuller(matched, found.contents):
        return Decided(_answer(a, b, replace(found, matched=None), related or _undetermined()), pairings, matched)
    if not exact and not placed and (kept := UnitsKept().either(a, b, pairings)):
        bits, way = kept
        found = replace(found, kept=bits)
        told = bits.verdict is Verdict.SUPPORTED
        if told and (found.matched is None or found.matched.verdict is not Verdict.SUPPORTED):
            return Decided(_answer(a, b, found, _moved_or(a, b, matched, bits, way)), way, matched)
    if matched is not None and found.contents is not None and _says_nothing(found.contents, alpha):
        looked = tuple(p.turned() for p in matched.looked) if matched.turned else matched.looked
        found = replace(found, contents=in_place(a, b, looked, alpha, tried=2))
    found = replace(found, shared=SharedTensors().evidence(a, b), sizes=sizes_apart(a, b))
    found = replace(found, not_tested=untested(a, b, found, matched))
    return Decided(_answer(a, b, found, _relation(a, b, found, matched, pairings)), pairings, matched)


def map_of(a: Model, b: Model, alpha: float = 0.01) -> Matched | None:
    """Search for a map of units; of large models whose names pair everything, names are enough where they explain it.

    Args:
        a: One model.
        b: The other one.
        alpha: Level of the decision.

    Returns:
        The best map; None where no tensors correspond.
    """
    found, ways = None, []
    if _large(a):
        quick = correspondence.candidates(a, b, contents=False)
        if [how for how, _ in quick] == ["names"]:
            found = UnitsMatched().search(a, b, quick, alpha, before=2)
            if found is not None and found.evidence.verdict is Verdict.SUPPORTED and found.evidence.effect >= ALL:
                return found
            if _sizes(a) == _sizes(b):  # what is elsewhere shows as the map grows: contents need not be read for it
                return UnitsMatched().search(a, b, [("contents", quick[0][1])], alpha, before=3, best=found)
            ways = ["names"]
    others = [way for way in correspondence.candidates(a, b, contents=True) if way[0] not in ways]
    return UnitsMatched().search(a, b, others, alpha, before=1 + 2 * len(ways), best=found)


def _sizes(model: Model) -> dict[str, tuple[int, ...]]:
    return {n: t.shape for n, t in matrices(model).items()}


def _fuller(matched: Matched | None, contents: Evidence | None) -> bool:
    """Whether a map explains more of the models than units in place do."""
    if matched is None or matched.evidence.verdict is not Verdict.SUPPORTED or contents is None:
        return False
    return matched.evidence.effect > contents.effect + MORE


def _moved_or(a: Model, b: Model, matched: Matched | None, bits: Evidence, way: tuple[Pairing, ...]) -> Relation:
    """What was done to models whose first units are bit for bit the same, in any order."""
    moved = None if matched is None else in_other_coordinates(a, b, matched)
    if moved is None:
        return name_relation(a, b, bits, way)
    origin = made_from(moved, a, b)
    return relation_of(moved, {"made_from": origin} if origin else {})


def _relation(
    a: Model, b: Model, found: Findings, matched: Matched | None, pairings: tuple[Pairing, ...]
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
    cut = row.name == "contents under a map" and matched is not None and matched.uneven
    if matched is not None and row.name in ("exact map", "contents under a map") and not cut:
        named = UnitsMatched.relation(matched.evidence)
        told = None if found.mapped else in_other_coordinates(a, b, matched)
        if not found.mapped and (better := placed_after_all(a, b, told, pairings)):
            return name_relation(a, b, deciding, better)
        if told is not None:
            return relation_of(told, named.parameters)
        return named if found.mapped else replace(named, kind=RelationKind.RELATED)
    return name_relation(a, b, deciding, pairings)


def placed_after_all(
    a: Model, b: Model, told: Explanation | None, pairings: Sequence[Pairing]
) -> tuple[Pairing, ...]:  # fmt: skip
    """Look whether units stand in their places, under other names, where no map explains every matrix.

    Args:
        a: One model.
        b: The other, related one.
        told: What the map explains.
        pairings: Correspondence of matrices by contents.

    Returns:
        The correspondence in which they stand in their places; empty where they do not, or where a map explains all.
    """
    if told is not None and not any(s.name == "part inherited" for s in told.steps):
        return ()
    better = in_place_pairs(a, b, pairings)
    return better if agreement(a, b, better) >= PLACED else ()


def _undetermined(reason: str = "") -> Relation:
    return Relation(RelationKind.UNRELATED, {"decided": False}, reason=reason)


def _identity_relation(a: Model, b: Model) -> Relation:
    if a.digest == b.digest:
        return Relation(RelationKind.COPY, reason="the digests agree")
    own, other = a.tensor_digests, b.tensor_digests
    moved = [n for n in own if n in other and own[n] != other[n]]
    if moved and own.keys() == other.keys():
        said = f"the same tensors under each other's names: {len(moved)} of {len(own)}, among them {moved[0]}"
        return Relation(RelationKind.PART_INHERITED, {"exchanged": moved}, (EXCHANGED,), said)
    return Relation(RelationKind.REFORMATTED, {"names": "changed"}, ("renamed",), "the tensors agree, the names do not")


def _in_order(a: Model, b: Model, method: UnitsInPlace, alpha: float) -> tuple[Evidence, tuple[Pairing, ...]]:
    """Units in place under each correspondence; every one tried is paid for."""
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
    """Contents of very large models are only looked at where names fail: it means reading every entry."""
    return model.parameters > 1 << 26


def _count(a: Model, b: Model, method: UnitsInPlace, pairings: tuple[Pairing, ...]) -> Counts:
    known_a, known_b = structure(a), structure(b)
    if (_knowledge(known_b), b.digest) > (_knowledge(known_a), a.digest):
        return method.count(b, a, tuple(p.turned() for p in pairings), known_b)
    return method.count(a, b, pairings, known_a)


def _knowledge(known: Structure) -> tuple[bool, int]:
    """Groups before single axes, then the more hidden axes: the same choice for (a, b) and (b, a)."""
    groups = known.certain and known.source != SHAPES and any(g.exchangeable for g in known.groups)
    return groups, sum(label.hidden for labels in known.axes.values() for label in labels)


def parts(counts: Counts) -> Mapping[str, Any]:
    """Units in place per group: which parts are shared, which are new.

    Returns:
        For each group: units in place and units.
    """
    out: dict[str, list[int]] = {}
    for g in counts.groups:
        entry = out.setdefault(g.group, [0, 0])
        entry[0] += g.in_place
        entry[1] += g.units
    return out


def _answer(a: Model, b: Model, found: Findings, relation: Relation) -> Comparison:
    row, deciding = decide(found)
    every = (found.same, found.exhibited, found.contents, found.order, found.matched, found.kept, found.shared,
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

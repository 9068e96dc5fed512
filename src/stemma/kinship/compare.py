"""All evidence on a pair of models, and the relation that it names."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from stemma.errors import MisuseError, UnreadableModelError
from stemma.fingerprints.questioning import together
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.axes import DISTILLED, FORGOTTEN, UNASKED, both_axes
from stemma.kinship.function.evidence import CloserThanIndependent, Progress
from stemma.kinship.function.null_models import NullModels, Party
from stemma.kinship.function.partition_agreement import PartitionAgreement
from stemma.kinship.function.selection import Selection
from stemma.kinship.relation import in_other_coordinates, name_relation
from stemma.kinship.relation.named import made_from, relation_of
from stemma.kinship.relation.same_function import maps_function
from stemma.kinship.relation.scaled import multiples
from stemma.kinship.relation.unlearned import Forgetting
from stemma.kinship.weights import correspondence
from stemma.kinship.weights.aligned import SHAPES, UnitsInPlace
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.counts import Counts, evidence
from stemma.kinship.weights.matched import UnitsMatched
from stemma.kinship.weights.residual import recast_equal
from stemma.kinship.weights.units_kept import UnitsKept
from stemma.models.model import Model
from stemma.models.structure import Structure
from stemma.models.units import structure
from stemma.probes import Probes
from stemma.types import Axis, Comparison, Evidence, ModelRef, Null, Relation, RelationKind, Spec, Verdict

OPEN = (
    RelationKind.RELATED, RelationKind.FINETUNED, RelationKind.SIBLINGS, RelationKind.SAME_INIT,
    RelationKind.PART_INHERITED, RelationKind.HEAD_REPLACED, RelationKind.UNRELATED,
)  # fmt: skip
"""Relations that an exact map of units would replace."""

RECAST = 256
"""Entries from which bit for bit equality is beyond coincidence."""

IN_ORDER = 0.5
"""Share of units in place from which an exact map is reported beside the order, below it instead of the order."""

CANNOT_SEE = (UNASKED, "training data", DISTILLED)


def compare(
    a: Model,
    b: Model,
    *,
    alpha: float = 0.01,
    probes: Probes | Selection | None = None,
    null: Sequence[Model] | NullModels = (),
    aligned: UnitsInPlace | None = None,
    matched: UnitsMatched | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Decide whether two models share an origin, by their weights and, where probes are given, by their function.

    Args:
        a: One model.
        b: The other one.
        alpha: Level of each axis, for this pair (correct it for the number of models searched).
        probes: What both are asked, or a selection of probes; without, only the weights are compared.
        null: Models that were trained apart, for the function axis.
        aligned: The test of units in place, with its defaults where None.
        matched: The test for reordered units, likewise.
        progress: Told which model is asked, how many are done and of how many.

    Returns:
        The comparison; the relation is named from both axes.

    Raises:
        StemmaError: If a network is there but cannot be asked these probes.
    """
    found = compare_weights(a, b, alpha=alpha, aligned=aligned, matched=matched)
    if probes is None:
        return found
    parties, independent = (Party.of(a), Party.of(b)), NullModels.of(null)
    seen = both_axes(found, function_of(*parties, probes, independent, alpha=alpha, progress=progress))
    return with_partitions(seen, *parties, probes, independent, alpha=alpha)


def function_of(
    a: Party, b: Party, probes: Probes | Selection, null: NullModels, *, alpha: float, progress: Progress | None = None
) -> Evidence | str:
    """The function axis of a pair.

    Args:
        a: One model.
        b: The other one.
        probes: What both are asked.
        null: Models that were trained apart.
        alpha: Level of the decision.
        progress: Told which model is asked, how many are done and of how many.

    Returns:
        The evidence, or why there is none: no network can be built of one of them.

    Raises:
        StemmaError: If a network is there but cannot be asked these probes.
    """
    if why := unaskable(a, b):
        return why
    found = CloserThanIndependent(alpha)(a, b, probes, null, progress)
    if a.load is None or b.load is None or not isinstance(probes, Probes):
        return found
    return with_forgotten(found, a, b, probes)


def with_forgotten(found: Evidence, a: Party, b: Party, probes: Probes) -> Evidence:
    """Look for a class of probes that one of two models no longer answers.

    Args:
        found: The function axis.
        a: The one model.
        b: The other.
        probes: What both are asked.

    Returns:
        The evidence, with the class under `forgotten` where there is one.
    """
    if a.load is None or b.load is None:
        return found
    gone = Forgetting().between(a.load(), b.load(), probes)
    return found if gone is None else replace(found, details={**found.details, FORGOTTEN: gone.to_dict()})


def with_partitions(
    found: Comparison, a: Party, b: Party, probes: Probes | Selection, null: NullModels, *, alpha: float
) -> Comparison:
    """List what hard labels alone show beside the other evidence on the function; it changes no verdict.

    Cost: one forward pass per model.

    Args:
        found: The comparison with both axes.
        a: One model.
        b: The other one.
        probes: What both are asked.
        null: Models that were trained apart.
        alpha: Level of the decision.

    Returns:
        The comparison with one more piece of evidence; as it is where nothing was asked.
    """
    if found.function is None:
        return found
    return replace(found, evidence=(*found.evidence, PartitionAgreement(alpha)(a, b, probes, null)))


def unaskable(*parties: Party) -> str:
    """Why there is no function axis.

    Args:
        parties: The models in question.

    Returns:
        What is wrong with the first one that no network can be built of, and of which no sketch is kept, or that they
        do not read the same tokens; empty where all can be asked.
    """
    for party in parties:
        try:
            if party.load is not None:
                _ = party.load().network
            elif party.sketch is None:
                return f"{party.name} is gone, and no functional sketch for these probes is kept"
        except UnreadableModelError as e:
            return str(e)
    try:
        together(*(party.load() for party in parties if party.load is not None))
    except MisuseError as e:
        return str(e)
    return ""


def compare_weights(
    a: Model,
    b: Model,
    *,
    alpha: float = 0.01,
    aligned: UnitsInPlace | None = None,
    matched: UnitsMatched | None = None,
) -> Comparison:
    """Decide from the weights alone whether two models share an origin, and name the relation as far as they show it.

    Args:
        a: One model.
        b: The other one.
        alpha: Level of the decision for this pair (correct it for the number of models searched).
        aligned: The test of units in place, with its defaults where None.
        matched: The test for reordered units, likewise.

    Returns:
        The comparison; symmetric in verdict, p-value and effect up to which side's structure is known better.
    """
    return decided(a, b, alpha=alpha, aligned=aligned, matched=matched)[0]


def decided(
    a: Model,
    b: Model,
    *,
    alpha: float = 0.01,
    aligned: UnitsInPlace | None = None,
    matched: UnitsMatched | None = None,
) -> tuple[Comparison, tuple[Pairing, ...]]:
    """As `compare_weights`, with the correspondence of matrices that decided.

    Tests run in a fixed order, each counted: identity by digest; units in place under the names' correspondence, then
    under the contents'; for models whose units were reordered, units matched through the layers.

    Args:
        a: One model.
        b: The other one.
        alpha: Level of the decision for this pair (correct it for the number of models searched).
        aligned: The test of units in place, with its defaults where None.
        matched: The test for reordered units, likewise.

    Returns:
        The comparison, and which matrix of a is which of b; empty where identity was enough.
    """
    _hash_while_importing(a, b)
    same = _identity(a, b)
    if same.verdict is Verdict.SUPPORTED:
        return _result(a, b, same, [same], _identity_relation(a, b)), ()
    place, pairings = _aligned(a, b, aligned or UnitsInPlace(), alpha)
    found = [same, place]
    if place.verdict is Verdict.SUPPORTED:
        relation = name_relation(a, b, place, pairings)
    elif recast := _recast(a, b, pairings):
        relation = Relation(RelationKind.REFORMATTED, {}, ("reformatted",), recast.reason)
        return _result(a, b, recast, [*found, recast], relation), pairings
    elif times := multiples(a, b, correspondence.by_name(a, b)):
        relation = Relation(times.step.kind, dict(times.step.parameters), (times.step.name,), times.step.sentence)
        evidence_ = _exhibited(a, b, "multiples", f"every matrix is a multiple of its counterpart: {relation.reason}")
        return _result(a, b, evidence_, [*found, evidence_], relation), pairings
    else:
        relation = _not_related(place)
    kept = len(relation.parameters.get("frozen", ())) == len(matrices(a))  # no matrix changed: no unit was moved
    asked = relation.kind in OPEN and not kept
    reordered = (matched or UnitsMatched()).evidence(a, b, alpha=alpha) if asked else None
    exact = reordered is not None and reordered.details["exact"]
    if place.verdict is not Verdict.SUPPORTED and not exact and (same_units := UnitsKept().either(a, b, pairings)):
        bits, pairings = same_units
        moved = in_other_coordinates(a, b)
        origin = "" if moved is None else made_from(moved, a, b)
        figures = {"made_from": origin} if origin else {}
        relation = name_relation(a, b, bits, pairings) if moved is None else relation_of(moved, figures)
        return _result(a, b, bits, [*found, bits], relation), pairings
    if reordered is None:
        return _result(a, b, place, found, relation), pairings
    return _weighed(a, b, place, reordered, found, relation), pairings


def _weighed(
    a: Model, b: Model, place: Evidence, reordered: Evidence, found: list[Evidence], relation: Relation
) -> Comparison:
    """Which of the two tests decides: an exact map names the relation, the order of units gives the smaller p."""
    in_order = place.verdict is Verdict.SUPPORTED
    # Of models whose units were moved, rounding and statistics hide whether factors cancel: the map alone decides.
    exact = reordered.details["exact"] and (not in_order or maps_function(a, b))
    if exact and in_order and place.effect >= IN_ORDER:
        whole = replace(place, effect=reordered.effect, reason=f"{place.reason}; {reordered.reason}")
        others = [e for e in found if e is not place]
        return _result(a, b, whole, [*others, whole, reordered], UnitsMatched.relation(reordered))
    if exact or (not in_order and reordered.verdict is Verdict.SUPPORTED):
        return _result(a, b, reordered, [*found, reordered], _reordered(a, b, reordered, exact=exact))
    return _result(a, b, place, [*found, reordered], relation)


def _reordered(a: Model, b: Model, reordered: Evidence, *, exact: bool) -> Relation:
    """What was done beside a reordering of units, where anything was."""
    relation = UnitsMatched.relation(reordered)
    told = None if exact else in_other_coordinates(a, b)
    if told is not None:
        return relation_of(told, relation.parameters)
    return relation if exact else replace(relation, kind=RelationKind.RELATED)


def _hash_while_importing(a: Model, b: Model) -> None:
    """Hashing needs no interpreter: the modules of the next test are loaded meanwhile."""
    with ThreadPoolExecutor(1) as background:
        hashed = background.submit(lambda: (a.digest, b.digest))
        import scipy.optimize  # noqa: F401

        hashed.result()


def _identity(a: Model, b: Model) -> Evidence:
    same, contents = a.digest == b.digest, a.names_free_digest == b.names_free_digest
    shared = set(a.tensor_digests.values()) & set(b.tensor_digests.values())
    size = sum(t.size for n, t in a.tensors.items() if a.tensor_digests[n] in shared) / max(1, a.parameters)
    verdict = Verdict.SUPPORTED if (same or contents) and a.parameters else Verdict.INCONCLUSIVE
    reason = ("every tensor is the same, under the same name" if same else
              "every tensor is the same, under another name" if contents else
              f"{len(shared)} tensors are bit for bit the same ({size:.0%} of the parameters)")  # fmt: skip
    return Evidence("the weights are the same", Axis.WEIGHTS, "digest", size, Null("collision of SHA-256"),
                    1e-77 if verdict is Verdict.SUPPORTED else None, -77.0 if verdict is Verdict.SUPPORTED else None,
                    1.0 if verdict is Verdict.SUPPORTED else size, verdict, reason, Spec("digest"),
                    (a.digest, b.digest), {"shared_tensors": len(shared), "shared_parameters": size})  # fmt: skip


def _turned(pairings: tuple[Pairing, ...]) -> tuple[Pairing, ...]:
    return tuple(Pairing(p.b, p.a, p.axes_b, p.axes_a, p.cost) for p in pairings)


def _recast(a: Model, b: Model, pairings: tuple[Pairing, ...]) -> Evidence | None:
    """The same matrices in other names, order of axes or float width, where no hidden units are known to be counted."""
    covered = len(pairings) == len(matrices(a)) == len(matrices(b))
    entries = sum(a.weights[p.a].size for p in pairings)
    if not covered or entries < RECAST or not recast_equal(a, b, pairings):
        return None
    reason = f"all {entries:,} entries of all matrices agree bit for bit once they have the same float width"
    return _exhibited(a, b, "recast", reason)


def _exhibited(a: Model, b: Model, how: str, reason: str) -> Evidence:
    """Evidence that is shown, entry by entry: nothing has to be inferred."""
    claim = "the weights are the same" if how == "recast" else "the weights are the same up to one factor per tensor"
    return Evidence(claim, Axis.WEIGHTS, how, 1.0, Null("none: exhibited"), None, None, 1.0, Verdict.SUPPORTED, reason,
                    Spec(how), (a.digest, b.digest))  # fmt: skip


def _identity_relation(a: Model, b: Model) -> Relation:
    if a.digest == b.digest:
        return Relation(RelationKind.COPY, reason="the digests agree")
    return Relation(RelationKind.REFORMATTED, {"names": "changed"}, ("renamed",), "the tensors agree, the names do not")


def _aligned(a: Model, b: Model, method: UnitsInPlace, alpha: float) -> tuple[Evidence, tuple[Pairing, ...]]:
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
        return method.count(b, a, _turned(pairings), known_b)
    return method.count(a, b, pairings, known_a)


def _knowledge(known: Structure) -> tuple[bool, int]:
    """Groups before single axes, then the more hidden axes: the same choice for (a, b) and (b, a)."""
    groups = known.certain and known.source != SHAPES and any(g.exchangeable for g in known.groups)
    return groups, _hidden(known)


def _hidden(known: Structure) -> int:
    return sum(label.hidden for labels in known.axes.values() for label in labels)


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


def _not_related(place: Evidence) -> Relation:
    if place.verdict is Verdict.REFUTED:
        return Relation(RelationKind.UNRELATED, reason=place.reason)
    return Relation(RelationKind.UNRELATED, {"decided": False}, reason=place.reason)


def _result(a: Model, b: Model, deciding: Evidence, found: list[Evidence], relation: Relation) -> Comparison:
    verdict = {Verdict.SUPPORTED: "related", Verdict.REFUTED: "independent", Verdict.INCONCLUSIVE: "inconclusive"}
    ordered = [deciding, *(e for e in found if e is not deciding)]
    return Comparison(ModelRef(a.name, a.digest), ModelRef(b.name, b.digest), verdict[deciding.verdict], relation,
                      "unknown", deciding, None, tuple(ordered), CANNOT_SEE)  # fmt: skip

"""The weights axis of a pair of which one model was read in part only: both are cut to the same sample.

The sample is chosen by shapes (`stemma.checkpoints.sample`), never by contents, so that the tests of units in place
keep their laws on it. It can show a relation. What it cannot show is that there is none: units in another order, moved
or cut tensors may lie in what was not read. Then the answer is inconclusive.
"""

from dataclasses import replace

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.sample import bytes_read, sampled
from stemma.errors import PartlyReadError
from stemma.kinship.by_weights import WeightsDecision, answer, compare_in_place, decide_by_weights
from stemma.kinship.relation import EXACT, name_relation
from stemma.kinship.weights import name_clashes
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.decision import Findings, NotTested
from stemma.kinship.weights.not_tested import list_not_tested
from stemma.kinship.weights.shared_tensors import same_weights
from stemma.kinship.weights.sizes import no_fitting_sizes
from stemma.types import UNREAD, Comparison, Relation, RelationKind, Verdict

AGREES = "agrees in all bytes read"
"""Step of two models whose samples are equal: the rest may differ."""


def decide(a: Model, b: Model, *, alpha: float = 0.01) -> WeightsDecision:
    """Decide from the weights whether two models share an origin: from all of them, or from the sample that was read.

    Args:
        a: First model.
        b: Second model.
        alpha: Significance level for this pair.

    Returns:
        As `decide_by_weights`; where one of the two was read in part, never `independent` but by sizes alone.
    """
    if not (a.is_partial or b.is_partial):
        return decide_by_weights(a, b, alpha=alpha)
    x, y = sampled(a), sampled(b)
    with np.errstate(over="ignore", invalid="ignore"):
        y = name_clashes.with_distinct_names(x, y)
        found, pairings = _findings(x, y, alpha)
        supported = found.contents is not None and found.contents.verdict is Verdict.SUPPORTED
        relation = _relation(x, y, found, pairings) if supported else _undecided(found)
    return WeightsDecision(_of(a, b, answer(x, y, found, relation)), pairings, placed=supported)


def unread(*models: Model) -> tuple[NotTested, ...]:
    """What was not read of each model, as entries of `not_tested`."""
    out: list[NotTested] = []
    for model in models:
        if model.is_partial:
            read, total = bytes_read(model)
            share = f"{read:,} of {total:,} bytes ({read / total:.1%})"
            why = f"of {model.name} {share} were compared, the leading rows of its tensors; the rest was not"
            out.append({"what": UNREAD, "model": model.name, "why": why})
    return tuple(out)


def _findings(x: Model, y: Model, alpha: float) -> tuple[Findings, tuple[Pairing, ...]]:
    found, gaps = Findings(same_weights(x, y), alpha=alpha), list(unread(x, y))
    sizes = no_fitting_sizes(x, y)
    unseen = any(t.size and not t.readable for model in (x, y) for t in model.weights.values())
    if sizes is not None and not unseen:  # whatever the contents
        found = replace(found, sizes=sizes)
        return replace(found, not_tested=list_not_tested(x, y, found, None)), ()
    pairings: tuple[Pairing, ...] = ()
    try:
        found, pairings = compare_in_place(x, y, found.same, alpha)
    except PartlyReadError as e:
        gaps.append({"what": UNREAD, "model": "", "why": str(e)})
    return replace(found, not_tested=gaps), pairings


def _relation(x: Model, y: Model, found: Findings, pairings: tuple[Pairing, ...]) -> Relation:
    """The relation that the sample shows; one that is claimed of every entry is not claimed of a sample."""
    if x.digest == y.digest or x.names_free_digest == y.names_free_digest:
        read, total = bytes_read(x)
        said = f"all {read:,} bytes agree that were read, of {total:,}: whether the rest does is not known"
        return Relation(RelationKind.RELATED, {"relative_change": 0.0}, (AGREES,), said)
    try:
        relation = name_relation(x, y, found.order or found.same, pairings)
    except PartlyReadError:
        return Relation(RelationKind.RELATED, {"relative_change": None}, (), (found.contents or found.same).reason)
    if relation.kind not in EXACT:
        return relation
    said = f"{relation.reason}, in the part that was read"
    kept = {k: v for k, v in relation.parameters.items() if k != "made_from"}
    return Relation(RelationKind.RELATED, kept, relation.steps, said)


def _undecided(found: Findings) -> Relation:
    if found.sizes is not None and not found.not_tested:
        return Relation(RelationKind.UNRELATED, reason=found.sizes.reason)
    return Relation(RelationKind.UNRELATED, {"decided": False})


def _of(a: Model, b: Model, comparison: Comparison) -> Comparison:
    """The comparison under the identities of the models that were given, with what was not read of them."""
    evidence = tuple(replace(e, inputs=(a.digest, b.digest)) for e in comparison.evidence)
    gaps = [] if comparison.verdict == "independent" else [gap["why"] for gap in unread(a, b)]
    return replace(
        comparison, a=a.ref, b=b.ref, weights=evidence[0], evidence=evidence,
        cannot_see=tuple(dict.fromkeys((*comparison.cannot_see, *gaps))),
    )  # fmt: skip

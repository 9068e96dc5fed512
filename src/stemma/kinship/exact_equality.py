"""Equality that is verified entry by entry: the same matrices in another form, or multiples of them."""

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.scaled import fit_multiples
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.kinship.weights.residual import recast_equal
from stemma.types import Axis, Evidence, Null, Relation, RelationKind, Spec, Verdict

MIN_ENTRIES = 256
"""Least number of entries whose equality cannot be coincidence."""


def exact_equality(a: Model, b: Model, pairings: tuple[Pairing, ...]) -> tuple[Evidence, Relation] | None:
    """Evidence and relation of models whose matrices are equal in another form, or multiples; else None."""
    if reason := _recast(a, b, pairings):
        relation = Relation(RelationKind.REFORMATTED, {}, ("reformatted",), reason)
        return _exact_evidence(a, b, "recast", "the weights are the same", reason), relation
    if times := fit_multiples(a, b, by_name(a, b)):
        relation = Relation(times.step.kind, dict(times.step.parameters), (times.step.name,), times.step.sentence)
        reason = f"every matrix is a multiple of its counterpart: {relation.reason}"
        return _exact_evidence(
            a, b, "multiples", "the weights are the same up to one factor per tensor", reason
        ), relation
    return None


def _recast(a: Model, b: Model, pairings: tuple[Pairing, ...]) -> str:
    """A sentence if all matrices agree but for names, order of axes or float width; else empty."""
    covered = len(pairings) == len(matrices(a)) == len(matrices(b))
    entries = sum(a.weights[p.a].size for p in pairings)
    if not covered or entries < MIN_ENTRIES or not recast_equal(a, b, pairings):
        return ""
    return f"all {entries:,} entries of all matrices are identical after conversion to the same float width"


def _exact_evidence(a: Model, b: Model, how: str, claim: str, reason: str) -> Evidence:
    return Evidence(
        claim=claim,
        axis=Axis.WEIGHTS,
        statistic=how,
        value=1.0,
        null=Null("none: verified exactly"),
        p_value=None,
        log10_p=None,
        effect=1.0,
        verdict=Verdict.SUPPORTED,
        reason=reason,
        spec=Spec(how),
        inputs=(a.digest, b.digest),
    )

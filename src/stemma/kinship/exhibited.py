"""Equality that is shown entry by entry: the same matrices in another form, or multiples of them."""

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.scaled import multiples
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.kinship.weights.residual import recast_equal
from stemma.types import Axis, Evidence, Null, Relation, RelationKind, Spec, Verdict

RECAST = 256
"""Entries from which bit for bit equality is beyond coincidence."""


def exhibited(a: Model, b: Model, pairings: tuple[Pairing, ...]) -> tuple[Evidence, Relation] | None:
    """The same matrices in another form, or multiples of them: nothing has to be inferred.

    Cost: every entry is read where names or contents pair all matrices.

    Args:
        a: One model.
        b: The other.
        pairings: Which matrix of a is which of b.

    Returns:
        The evidence and the relation; None where they are not equal in this sense.
    """
    if reason := _recast(a, b, pairings):
        relation = Relation(RelationKind.REFORMATTED, {}, ("reformatted",), reason)
        return _shown(a, b, "recast", "the weights are the same", reason), relation
    if times := multiples(a, b, by_name(a, b)):
        relation = Relation(times.step.kind, dict(times.step.parameters), (times.step.name,), times.step.sentence)
        reason = f"every matrix is a multiple of its counterpart: {relation.reason}"
        return _shown(a, b, "multiples", "the weights are the same up to one factor per tensor", reason), relation
    return None


def _recast(a: Model, b: Model, pairings: tuple[Pairing, ...]) -> str:
    """The same matrices in other names, order of axes or float width; a sentence, empty where they are not."""
    covered = len(pairings) == len(matrices(a)) == len(matrices(b))
    entries = sum(a.weights[p.a].size for p in pairings)
    if not covered or entries < RECAST or not recast_equal(a, b, pairings):
        return ""
    return f"all {entries:,} entries of all matrices agree bit for bit once they have the same float width"


def _shown(a: Model, b: Model, how: str, claim: str, reason: str) -> Evidence:
    return Evidence(claim, Axis.WEIGHTS, how, 1.0, Null("none: exhibited"), None, None, 1.0, Verdict.SUPPORTED, reason,
                    Spec(how), (a.digest, b.digest))  # fmt: skip

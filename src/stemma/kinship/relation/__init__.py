"""What was done between two models: operations that are fitted to a pair, and the shortest account that they give."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stemma.kinship.relation.base import AbstractOperation
from stemma.kinship.relation.grown import VocabularyGrown
from stemma.kinship.relation.layers_removed import LayersRemoved
from stemma.kinship.relation.lora import LowRank
from stemma.kinship.relation.named import explanation, relation_of, shorter, two_marks
from stemma.kinship.relation.pair import Pair
from stemma.kinship.relation.pruned import WeightsPruned
from stemma.kinship.relation.quantized import Quantized
from stemma.kinship.relation.reformatted import Reformatted
from stemma.kinship.relation.replaced import Replaced
from stemma.kinship.relation.rescaled import Rescaled
from stemma.kinship.relation.trained import Trained
from stemma.kinship.relation.units_removed import UnitsRemoved
from stemma.kinship.weights.correspondence import Pairing
from stemma.models.model import Model
from stemma.types import Evidence, Relation, RelationKind

ALL: tuple[AbstractOperation, ...] = (
    Reformatted(),
    Rescaled(),
    UnitsRemoved(),
    LayersRemoved(),
    VocabularyGrown(),
    Quantized(),
    WeightsPruned(),
    LowRank(),
    Replaced(),
    Trained(),
)
"""Operations that are tried, in any order and sequence."""

EXHIBITED = frozenset({RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are shown, not inferred."""

INHERITED, GROUP = 0.5, 8
"""Share of a group's units in place above which it was handed down, and how many units a group needs to tell."""


def name_relation(a: Model, b: Model, place: Evidence, pairings: Sequence[Pairing]) -> Relation:
    """Name what B is to A, whichever of the two was made from the other.

    Args:
        a: First model.
        b: Second model.
        place: The evidence of kinship.
        pairings: Correspondence of matrices.

    Returns:
        The relation with its steps and figures; `related` where no account fits.
    """
    figures = {"parts": place.details.get("parts", {})}
    pair = Pair.of(a, b, pairings)
    one = explanation(pair, ALL)
    if one is not None and one.kind in EXHIBITED and not pair.whole:
        one = explanation(Pair.of(a, b, pairings, whole=True), ALL)  # so strong a claim is made of every entry
    other = None if one is not None and one.kind in EXHIBITED else explanation(pair.turned(pairings), ALL)
    if one is not None and other is not None and two_marks(one.steps, other.steps):
        reason = "each bears the mark of an operation that the other does not"
        return Relation(RelationKind.SIBLINGS, {**figures, "relative_change": one.relative}, ("siblings",), reason)
    found = shorter(one, other)
    if found is None:
        return Relation(RelationKind.RELATED, {**figures, "relative_change": None}, (), place.reason)
    relation = relation_of(found, figures)
    return _by_parts(relation, figures["parts"]) if relation.kind is RelationKind.PART_INHERITED else relation


def _by_parts(relation: Relation, parts: Mapping[str, Any]) -> Relation:
    """Which groups of units were inherited, beside which tensors: a group's order shows what a cosine may not."""
    shares = {g: k / n for g, (k, n) in parts.items() if n >= GROUP}
    split = {"inherited": [g for g, s in shares.items() if s >= INHERITED],
             "new": [g for g, s in shares.items() if s < INHERITED]}  # fmt: skip
    return replace(relation, parameters={**relation.parameters, **{k: sorted(v) for k, v in split.items() if v}})

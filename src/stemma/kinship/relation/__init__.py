"""What was done between two models: operations that are fitted to a pair, and the shortest account that they give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.kinship.relation.aligned_pair import remapped
from stemma.kinship.relation.base import AbstractOperation
from stemma.kinship.relation.damaged import Damaged
from stemma.kinship.relation.dora import RescaledLowRank
from stemma.kinship.relation.explanation import Explanation, Step
from stemma.kinship.relation.further_trained import Trained
from stemma.kinship.relation.layers_removed import LayersRemoved
from stemma.kinship.relation.lora import LowRank
from stemma.kinship.relation.matched_by_values import in_place
from stemma.kinship.relation.name_relation import made_from, relation_of, shorter, shortest, two_marks
from stemma.kinship.relation.pair import Pair
from stemma.kinship.relation.pruned import WeightsPruned
from stemma.kinship.relation.quantized import Quantized
from stemma.kinship.relation.reformatted import Reformatted
from stemma.kinship.relation.replaced import Replaced
from stemma.kinship.relation.rescaled import Rescaled
from stemma.kinship.relation.scaled import Scaled
from stemma.kinship.relation.units_removed import UnitsRemoved
from stemma.kinship.relation.untied import untied
from stemma.kinship.relation.vocabulary_grown import VocabularyGrown
from stemma.kinship.relation.vocabulary_trimmed import VocabularyTrimmed
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.kinship.weights.matched import Matched
from stemma.kinship.weights.order.units_of_pair import Cuts
from stemma.types import Evidence, Relation, RelationKind

ALL: tuple[AbstractOperation, ...] = (
    Reformatted(),
    Damaged(),
    Scaled(),
    Rescaled(),
    UnitsRemoved(),
    LayersRemoved(),
    VocabularyGrown(),
    VocabularyTrimmed(),
    Quantized(),
    WeightsPruned(),
    LowRank(),
    RescaledLowRank(),
    Replaced(),
    Trained(),
)
"""Operations that are tried, in any order and sequence."""

EXHIBITED = frozenset({RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are shown, not inferred."""

PEEK, LESS = 4096, 0.02
"""Entries of a matrix that show whether two belong together, and how much less of them may agree where names do."""

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
    x, y, pairings = side_by_side(a, b, pairings)
    pair = Pair.of(x, y, pairings)
    found = shortest(pair, ALL)
    if found is not None and found.kind in EXHIBITED:
        found = shortest(Pair.of(x, y, pairings, whole=True), ALL)  # so strong a claim is made of every entry
    if found is None or found.kind not in EXHIBITED:
        found = two_sided(found, lambda: shortest(pair.turned(pairings), ALL))
    if found is None:
        return by_parts(Relation(RelationKind.RELATED, {"relative_change": None}, (), place.reason), place)
    origin = made_from(found, x, y)
    return by_parts(relation_of(found, {"made_from": origin} if origin else {}), place)


def side_by_side(a: Model, b: Model, pairings: Sequence[Pairing]) -> tuple[Model, Model, Sequence[Pairing]]:
    """Put the matrices of two related models side by side, those apart that only one of the two ties.

    Args:
        a: One model.
        b: The other.
        pairings: Correspondence of matrices.

    Returns:
        Both models, and their correspondence: by name where names fit contents, else by contents in their places.
    """
    a, b = untied(a, b), untied(b, a)
    named = by_name(a, b)  # contents pair equal sizes alone: where units were taken out, names cover more
    if len(named) > len(pairings):
        return a, b, named
    # What has nothing to do with its counterpart is paired by chance: names are kept unless contents agree better.
    other = {(p.a, p.b) for p in named} != {(p.a, p.b) for p in pairings}
    by_names = len(named) == len(pairings) and other and agreement(a, b, named) >= agreement(a, b, pairings) - LESS
    return a, b, named if by_names or not other else in_place(a, b, pairings)


def agreement(a: Model, b: Model, pairings: Sequence[Pairing]) -> float:
    """How much of what two models hold agrees under a correspondence.

    Cost: the first rows of every matrix are read.

    Args:
        a: One model.
        b: The other.
        pairings: Which matrix is which.

    Returns:
        Mean cosine of counterparts, weighted by entries; sizes that differ count as 0.
    """
    cuts, total, agreed = Cuts(a, b, {p.a: p for p in pairings}, PEEK, 1), 0, 0.0
    for p in pairings:
        x, y = (piece.astype(np.float64) for piece in (cuts[p.a].a, cuts[p.a].b))
        total += a.weights[p.a].size
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        agreed += a.weights[p.a].size * float((x * y).sum()) / norm if x.shape == y.shape and norm > 0 else 0.0
    return agreed / max(1, total)


def two_sided(
    found: Explanation | None, other_way: Callable[[], Explanation | None], notes: tuple[str, ...] | None = None
) -> Explanation | None:
    """Look at the pair the other way round too: a child may have been taken for the parent.

    Args:
        found: The account from parent to child.
        other_way: Gives the account from child to parent.
        notes: Where given, the direction asked for is kept, and the other account is told beside these.

    Returns:
        `siblings` where each side bears a mark of its own, else the shorter account, or the one asked for.
    """
    turned = other_way()
    if found is not None and turned is not None and two_marks(found.steps, turned.steps):
        sentence = "each bears the mark of an operation that the other does not: neither was made from the other"
        marks = {"a": [s.name for s in turned.steps], "b": [s.name for s in found.steps]}
        step = Step("siblings", RelationKind.SIBLINGS, sentence, {"marks": marks}, found.steps[0].bits)
        return replace(found, kind=RelationKind.SIBLINGS, steps=(step,), sentence=sentence,
                       notes=notes or ())  # fmt: skip
    if notes is None or found is None:
        return shorter(found, turned)
    if shorter(found, turned) is turned and turned is not None:
        backwards = f"the other way round is shorter ({turned.bits:.2f} bits an entry): {turned.sentence}"
        return replace(found, notes=(*notes, backwards))
    return replace(found, notes=notes)


def by_parts(relation: Relation, order: Evidence) -> Relation:
    """Add which groups of units stand in their places; where parts were inherited, which groups those are.

    Args:
        relation: What was named.
        order: The evidence of the units' order: a group's order shows what a cosine may not.

    Returns:
        The relation with these figures.
    """
    parts: Mapping[str, Any] = order.details.get("parts", {})
    relation = replace(relation, parameters={**relation.parameters, "parts": parts})
    if relation.kind is not RelationKind.PART_INHERITED:
        return relation
    shares = {g: k / n for g, (k, n) in parts.items() if n >= GROUP}
    split = {"inherited": [g for g, s in shares.items() if s >= INHERITED],
             "new": [g for g, s in shares.items() if s < INHERITED]}  # fmt: skip
    return replace(relation, parameters={**relation.parameters, **{k: sorted(v) for k, v in split.items() if v}})


def in_other_coordinates(parent: Model, child: Model, matched: Matched, *, whole: bool = False) -> Explanation | None:
    """Explain what else was done to a model whose units were reordered: bring the parent into the child's order first.

    Args:
        parent: The one model.
        child: The other.
        matched: The map of units that was found between the two.
        whole: Read every entry.

    Returns:
        The account, with the reordering as its first step; None where no map covers every matrix.
    """
    found = matched.found.map
    reference, target = (child, parent) if matched.turned else (parent, child)
    moved = remapped(reference, target, found)
    if moved is None:
        return None
    same = by_name(moved, target)
    pair = Pair.of(moved, target, same, whole=whole)
    told = shortest(pair if reference is parent else pair.turned(same), ALL)
    if told is None:
        return None
    words = " and ".join(found.steps) or "units permuted"
    first = Step(words, RelationKind.PERMUTED, words, {"units": list(found.steps)}, place=0.0)
    return replace(told, parent=parent.ref, child=child.ref, steps=(first, *told.steps),
                   sentence=f"{words}; then {told.sentence}")  # fmt: skip

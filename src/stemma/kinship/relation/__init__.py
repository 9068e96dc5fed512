"""The relation of two models: operations fitted to the pair, and the simplest explanation that they give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.kinship.relation.base import AbstractOperation
from stemma.kinship.relation.damaged import Damaged
from stemma.kinship.relation.dora import RescaledLowRank
from stemma.kinship.relation.explanation import Explanation, Step
from stemma.kinship.relation.further_trained import FurtherTrained
from stemma.kinship.relation.layers_removed import LayersRemoved
from stemma.kinship.relation.lora import LowRank
from stemma.kinship.relation.matched_by_values import match_by_values
from stemma.kinship.relation.name_relation import (
    both_transformed,
    older_model,
    relation_of,
    simpler,
    simplest_explanation,
)
from stemma.kinship.relation.pair import Pair
from stemma.kinship.relation.pruned import WeightsPruned
from stemma.kinship.relation.quantized import Quantized
from stemma.kinship.relation.reformatted import Reformatted
from stemma.kinship.relation.remapped_model import remap
from stemma.kinship.relation.replaced import Replaced
from stemma.kinship.relation.rescaled import Rescaled
from stemma.kinship.relation.scaled import Scaled
from stemma.kinship.relation.units_removed import UnitsRemoved
from stemma.kinship.relation.untied import untie_head
from stemma.kinship.relation.vocabulary_grown import VocabularyGrown
from stemma.kinship.relation.vocabulary_trimmed import VocabularyTrimmed
from stemma.kinship.weights.correspondence import Pairing, by_name
from stemma.kinship.weights.order.pair_reader import PairReader
from stemma.kinship.weights.units_matched import EvaluatedMap
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
    FurtherTrained(),
)
"""The operations that are tried, in any order."""

EXACT = frozenset({RelationKind.REFORMATTED, RelationKind.PERMUTED})
"""Relations that are verified exactly, not inferred."""

PEEK, LESS = 4096, 0.02
"""Entries of a matrix that are compared, and by how much the cosine of a pairing by names may be lower."""

INHERITED_SHARE, MIN_UNITS = 0.5, 8
"""Share of a group's units in place from which it counts as inherited, and units that a group needs."""


def name_relation(a: Model, b: Model, place: Evidence, pairings: Sequence[Pairing]) -> Relation:
    """The relation of two related models with its steps and figures; `related` where no explanation fits."""
    x, y, pairings = pair_tensors(a, b, pairings)
    pair = Pair.of(x, y, pairings)
    found = simplest_explanation(pair, ALL)
    if found is not None and found.kind in EXACT:
        found = simplest_explanation(
            Pair.of(x, y, pairings, all_entries=True), ALL
        )  # an exact relation is claimed only after comparing every entry
    if found is None or found.kind not in EXACT:
        found = both_directions(found, lambda: simplest_explanation(pair.swapped(pairings), ALL))
    if found is None:
        return with_parts(Relation(RelationKind.RELATED, {"relative_change": None}, (), place.reason), place)
    origin = older_model(found, x, y)
    return with_parts(relation_of(found, {"made_from": origin} if origin else {}), place)


def pair_tensors(a: Model, b: Model, pairings: Sequence[Pairing]) -> tuple[Model, Model, Sequence[Pairing]]:
    """Pair the matrices of two related models: by name where names fit contents, else by contents; untie heads."""
    a, b = untie_head(a, b), untie_head(b, a)
    named = by_name(a, b)  # contents pair equal sizes only: where units were removed, names cover more
    if len(named) > len(pairings):
        return a, b, named
    # Unrelated tensors are paired by chance: names are kept unless contents agree better.
    other = {(p.a, p.b) for p in named} != {(p.a, p.b) for p in pairings}
    by_names = len(named) == len(pairings) and other and mean_cosine(a, b, named) >= mean_cosine(a, b, pairings) - LESS
    return a, b, named if by_names or not other else match_by_values(a, b, pairings)


def mean_cosine(a: Model, b: Model, pairings: Sequence[Pairing]) -> float:
    """Mean cosine of paired matrices, weighted by entries, from their first rows; 0 where sizes differ."""
    cuts, total, agreed = PairReader(a, b, {p.a: p for p in pairings}, PEEK, 1), 0, 0.0
    for p in pairings:
        x, y = (piece.astype(np.float64) for piece in (cuts[p.a].a, cuts[p.a].b))
        total += a.weights[p.a].size
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        agreed += a.weights[p.a].size * float((x * y).sum()) / norm if x.shape == y.shape and norm > 0 else 0.0
    return agreed / max(1, total)


def both_directions(
    found: Explanation | None, other_way: Callable[[], Explanation | None], notes: tuple[str, ...] | None = None
) -> Explanation | None:
    """The simpler of both directions, or `siblings` where each model was quantised or pruned on its own."""
    swapped = other_way()
    if found is not None and swapped is not None and both_transformed(found.steps, swapped.steps):
        sentence = (
            "each model was quantised or pruned in a way that the other was not, so neither was made from the other"
        )
        marks = {"a": [s.name for s in swapped.steps], "b": [s.name for s in found.steps]}
        step = Step("siblings", RelationKind.SIBLINGS, sentence, {"marks": marks}, found.steps[0].bits)
        return replace(found, kind=RelationKind.SIBLINGS, steps=(step,), sentence=sentence,
                       notes=notes or ())  # fmt: skip
    if notes is None or found is None:
        return simpler(found, swapped)
    if simpler(found, swapped) is swapped and swapped is not None:
        backwards = f"the opposite direction is simpler ({swapped.bits:.2f} bits per entry): {swapped.sentence}"
        return replace(found, notes=(*notes, backwards))
    return replace(found, notes=notes)


def with_parts(relation: Relation, order: Evidence) -> Relation:
    """Add which groups of units kept their order and, for `part-inherited`, which groups are inherited or new."""
    parts: Mapping[str, Any] = order.details.get("parts", {})
    relation = replace(relation, parameters={**relation.parameters, "parts": parts})
    if relation.kind is not RelationKind.PART_INHERITED:
        return relation
    shares = {g: k / n for g, (k, n) in parts.items() if n >= MIN_UNITS}
    split = {"inherited": [g for g, s in shares.items() if s >= INHERITED_SHARE],
             "new": [g for g, s in shares.items() if s < INHERITED_SHARE]}  # fmt: skip
    return replace(relation, parameters={**relation.parameters, **{k: sorted(v) for k, v in split.items() if v}})


def explain_remapped(
    parent: Model, child: Model, matched: EvaluatedMap, *, all_entries: bool = False
) -> Explanation | None:
    """Explain a pair after moving the parent's units into the child's order; None if the map is incomplete."""
    found = matched.found.map
    reference, target = (child, parent) if matched.reference_is_b else (parent, child)
    moved = remap(reference, target, found)
    if moved is None:
        return None
    same = by_name(moved, target)
    pair = Pair.of(moved, target, same, all_entries=all_entries)
    explained = simplest_explanation(pair if reference is parent else pair.swapped(same), ALL)
    if explained is None:
        return None
    words = " and ".join(found.steps) or "units permuted"
    first = Step(words, RelationKind.PERMUTED, words, {"units": list(found.steps)}, place=0.0)
    return replace(explained, parent=parent.ref, child=child.ref, steps=(first, *explained.steps),
                   sentence=f"{words}; then {explained.sentence}")  # fmt: skip

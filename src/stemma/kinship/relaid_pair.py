"""A pair of models with one converted into the other's layout: when that is tried, and when it explains more."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stemma.checkpoints.model import Model
from stemma.kinship.weights.layouts.joined_pieces import ConvertedModel, join_pieces
from stemma.kinship.weights.layouts.rearranged_rows import EXCHANGED, FEWER, REPEATED, rearrange_rows
from stemma.types import Comparison, Relation, RelationKind

SAME_FUNCTION = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.QUANTIZED})
"""Relations that another layout may show for tensors that seemed new or trained."""

ELSEWHERE = frozenset({RelationKind.PART_INHERITED, RelationKind.PRUNED, RelationKind.PERMUTED})
"""Relations that another layout may look like: moved rows look new, removed or like reordered units."""

CHANGES = frozenset({"finetuned", "changed", "lora", "part inherited", "replaced"})
"""Steps with changed or new numbers."""

EXPLAINED_SHARE = 0.995
"""Explained share of a model from which no other layout is tried."""

LARGER_SHARE = 0.02
"""By how much another layout must explain more of a model."""


@dataclass(frozen=True, eq=False)
class RelaidPair:
    """A pair of models with one of them converted into the layout of the other.

    Attributes:
        a: The first model.
        b: The second model.
        how: The conversion.
        of_first: Whether the first model was converted.
    """

    a: Model
    b: Model
    how: ConvertedModel
    of_first: bool


def is_explained(found: Comparison) -> bool:
    """Whether so much of a pair is explained that no other layout is tried."""
    if found.verdict == "related" and found.relation.kind is RelationKind.LORA and len(found.relation.steps) == 1:
        return True  # every matrix differs from its counterpart by low rank: no other one could be as close
    whole = found.verdict == "related" and found.weights.effect >= EXPLAINED_SHARE
    moved = any(s.endswith("permuted") for s in found.relation.steps)
    return whole and not moved and found.relation.kind not in ELSEWHERE


def relaid_pairs(a: Model, b: Model) -> Iterator[RelaidPair]:
    """The pair with one model's rows, pieces and factors put together as in the other model."""
    for make in (rearrange_rows, join_pieces):
        one = make(a, b)
        if one is not None:
            yield RelaidPair(a, one.model, one, of_first=False)
        if one is None and make is rearrange_rows and _shapes(a) == _shapes(b):
            continue  # rows that one of two equally large models lacks, the other lacks too
        if (found := make(b, a)) is not None:
            yield RelaidPair(found.model, b, found, of_first=True)


def _shapes(model: Model) -> list[tuple[int, ...]]:
    return sorted(tuple(t.shape) for t in model.weights.values())


def explains_more(one: Comparison, other: Comparison) -> bool:
    """Whether the result in another layout explains more: same function, fewer changes, or a larger share."""
    if other.verdict != "related":
        return True
    if _changes(one) < _changes(other):
        return one.weights.effect >= other.weights.effect - LARGER_SHARE
    least = other.weights.effect + min(LARGER_SHARE, (1 - other.weights.effect) / 2)
    return one.weights.effect > least


def _changes(found: Comparison) -> tuple[int, int]:
    """Number of steps that change, add or permute numbers, and number of new matrices."""
    relation = found.relation
    if relation.kind in SAME_FUNCTION:
        return 0, 0
    steps = sum(s in CHANGES or s.endswith("permuted") for s in relation.steps)
    return 1 + steps, len(relation.parameters.get("new", ()))


def in_stored_layout(a: Model, b: Model, found: Comparison, view: RelaidPair) -> Comparison:
    """The result for a relaid pair as a result for the stored models."""
    made = view.how.made
    name, of = next(iter(made.items()))
    said = f"{name} is {of}" + (f" and {len(made) - 1} more" if len(made) > 1 else "")
    relation = found.relation
    parameters = {**relation.parameters, "restored": dict(made)}
    kind = RelationKind.REFORMATTED if relation.kind in (RelationKind.COPY, RelationKind.REFORMATTED) else relation.kind
    if moved := {REPEATED, EXCHANGED} & set(view.how.steps):
        only = kind is RelationKind.REFORMATTED  # else another model of the family may be the source
        kind = RelationKind.PART_INHERITED if only else kind
        parameters |= {"made_from": "a" if view.of_first else "b"} if only and REPEATED in moved else {}
    steps = tuple(s for s in relation.steps if kind is not RelationKind.REFORMATTED or s != "renamed")
    first = tuple(
        s for s in view.how.steps if s != EXCHANGED or "layers removed" not in steps
    )  # the other layers moved up
    tokens = "tokens removed" if view.of_first else "tokens added"
    first = tuple(tokens if s == FEWER else s for s in first)
    named = Relation(kind, parameters, (*first, *steps), f"{said}; then {relation.reason}")
    evidence_ = tuple(replace(e, inputs=(a.digest, b.digest)) for e in found.evidence)
    deciding = replace(evidence_[0], reason=f"{evidence_[0].reason} ({said})")
    return replace(found, a=a.ref, b=b.ref, relation=named, weights=deciding, evidence=(deciding, *evidence_[1:]))

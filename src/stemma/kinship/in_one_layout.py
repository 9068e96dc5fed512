"""A pair of models of which one is laid out as the other: when that is tried, and when its answer says more."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stemma.checkpoints.model import Model
from stemma.kinship.weights.layouts.pieces import Restored, restored
from stemma.kinship.weights.layouts.relaid import EXCHANGED, FEWER, REPEATED, relaid
from stemma.types import Comparison, Relation, RelationKind

SAME_FUNCTION = frozenset({RelationKind.COPY, RelationKind.REFORMATTED, RelationKind.QUANTIZED})
"""Relations that another layout may show of tensors that looked new or trained."""

ELSEWHERE = frozenset({RelationKind.PART_INHERITED, RelationKind.PRUNED, RelationKind.PERMUTED})
"""Relations that a layout may be taken for: rows that stand elsewhere look new, gone, or like reordered units."""

CHANGES = frozenset({"finetuned", "changed", "lora", "part inherited", "replaced"})
"""Steps that say that numbers changed, or are new."""

WHOLE = 0.995
"""Share of a model that is explained, from which no pieces are looked for."""

MORE = 0.02
"""By how much a map must explain more of a model than units in place do."""


@dataclass(frozen=True, eq=False)
class View:
    """A pair of which one model is laid out as the other.

    Attributes:
        a: The first model.
        b: The second.
        how: What was put together.
        of_first: Whether it is the first one that was put together.
    """

    a: Model
    b: Model
    how: Restored
    of_first: bool


def is_explained(found: Comparison) -> bool:
    """Whether so much of a pair is explained that no other layout needs to be looked for."""
    if found.verdict == "related" and found.relation.kind is RelationKind.LORA and len(found.relation.steps) == 1:
        return True  # every matrix differs by low rank from its counterpart: no other one could be that near
    whole = found.verdict == "related" and found.weights.effect >= WHOLE
    moved = any(s.endswith("permuted") for s in found.relation.steps)
    return whole and not moved and found.relation.kind not in ELSEWHERE


def laid_out(a: Model, b: Model) -> Iterator[View]:
    """The pair with one model's rows, pieces and factors put together as the other model has them."""
    for make in (relaid, restored):
        one = make(a, b)
        if one is not None:
            yield View(a, one.model, one, of_first=False)
        if one is None and make is relaid and _shapes(a) == _shapes(b):
            continue  # rows that one of two equally large models lacks, the other lacks too
        if (found := make(b, a)) is not None:
            yield View(found.model, b, found, of_first=True)


def _shapes(model: Model) -> list[tuple[int, ...]]:
    return sorted(tuple(t.shape) for t in model.weights.values())


def says_more(one: Comparison, other: Comparison) -> bool:
    """Whether the answer in another layout says more: the same function, fewer changes, or much more of the model."""
    if other.verdict != "related":
        return True
    if _changes(one) < _changes(other):
        return one.weights.effect >= other.weights.effect - MORE
    least = other.weights.effect + min(MORE, (1 - other.weights.effect) / 2)
    return one.weights.effect > least


def _changes(found: Comparison) -> tuple[int, int]:
    """How many steps of a relation say that numbers changed, are new or need a map, and how many matrices are new."""
    relation = found.relation
    if relation.kind in SAME_FUNCTION:
        return 0, 0
    steps = sum(s in CHANGES or s.endswith("permuted") for s in relation.steps)
    return 1 + steps, len(relation.parameters.get("new", ()))


def as_stored(a: Model, b: Model, found: Comparison, view: View) -> Comparison:
    """The answer about a view, as one about the models themselves."""
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
    first = tuple(s for s in view.how.steps if s != EXCHANGED or "layers removed" not in steps)  # the rest moved up
    tokens = "tokens removed" if view.of_first else "tokens added"
    first = tuple(tokens if s == FEWER else s for s in first)
    named = Relation(kind, parameters, (*first, *steps), f"{said}; then {relation.reason}")
    evidence_ = tuple(replace(e, inputs=(a.digest, b.digest)) for e in found.evidence)
    deciding = replace(evidence_[0], reason=f"{evidence_[0].reason} ({said})")
    return replace(found, a=a.ref, b=b.ref, relation=named, weights=deciding, evidence=(deciding, *evidence_[1:]))

"""What related models are to a suspect: marks that an operation left, merges, then the geometry of the family."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.ancestry.geometry import Geometry
from stemma.ancestry.merges.regression import Merge, merge_of
from stemma.ancestry.merges.stacked_layers import STACKED
from stemma.ancestry.parenthood import NEAREST, Parenthood, complete, groups
from stemma.ancestry.roles import Kin, Member, Role, Standing
from stemma.ancestry.trace import PROOF, Candidate
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.registry import model_records
from stemma.types import Comparison, Relation, RelationKind, Verdict
from stemma.workspace.number_formats import bits, is_coded

COVERAGE = 0.95
"""Share of suspects whose parent set holds the parent, unless another one is asked for."""

CLOSEST = NEAREST + 4
"""Related candidates that are looked at together."""

AROUND = 32
"""Related candidates that the likely parent may be a merge of, beside the suspect."""


@dataclass(frozen=True)
class Standings:
    """Says what each related candidate is to one suspect.

    In this order: the same network in another form; a mark in the weights of one of the two; a merge of several; the
    parent by the family's geometry, if its probability reaches the calibrated threshold. What is none of these is a
    relative, and what could not be read is unknown.

    Attributes:
        suspect: The model in question.
        parenthood: The model of parents.
        coverage: Share of suspects whose parent set is to hold the parent.
    """

    suspect: Model
    parenthood: Callable[[], Parenthood]
    coverage: float = COVERAGE

    def __call__(self, related: Sequence[tuple[Candidate, Comparison]]) -> Kin:
        """Look at all related candidates together.

        Cost: the closest dozen are read; about half a second for small networks.

        Args:
            related: Candidates with their comparisons (candidate, suspect).

        Returns:
            One standing each, in order, and the set that holds the parent.
        """
        found: list[Standing | None] = [_by_form(c) for _, c in related]
        self._of_another(found, [c for c, _ in related])
        parents = [k for k, s in enumerate(found) if s is not None and s.role in (Role.PARENT, Role.SAME)]
        likely = (Member(tuple(parents), 1.0),) if parents else ()
        open_ones = [k for k, s in enumerate(found) if s is None]
        if open_ones and not parents:
            open_ones.sort(key=lambda k: _closeness(related[k][1]))
            readable = [(k, m) for k in open_ones[:CLOSEST] if (m := _read(related[k][0])) is not None]
            further = [related[k][0] for k in open_ones[CLOSEST:AROUND]]
            standings, likely = self._by_family(readable, further)
            for k, standing in standings.items():
                found[k] = _trained(standing, related[k][1])
        return Kin([s or Standing(Role.RELATIVE if parents else Role.UNKNOWN) for s in found], likely)

    def _of_another(self, found: list[Standing | None], candidates: Sequence[Candidate]) -> None:
        """A relative that bears the mark of an edit is a child of whichever model it is nearest to."""
        marked = [k for k, s in enumerate(found) if s is not None and s.role is Role.CHILD][:CLOSEST]
        others = [k for k, s in enumerate(found) if s is None or s.role is Role.SAME][:CLOSEST]
        if not marked or not others:
            return
        read = {k: m for k in (*marked, *others) if (m := _read(candidates[k])) is not None}
        at = {k: i + 1 for i, k in enumerate(read)}
        geometry = Geometry.of([self.suspect, *read.values()])
        for k in (k for k in marked if k in at):
            own = geometry.squared_distance(0, at[k])
            apart = [geometry.squared_distance(at[o], at[k]) for o in others if o in at]
            if apart and np.isfinite(own) and min(apart) < NEARER * own:
                found[k] = Standing(Role.RELATIVE, None, _ANOTHERS)

    def _by_family(
        self, readable: Sequence[tuple[int, Model]], further: Sequence[Candidate]
    ) -> tuple[Mapping[int, Standing], tuple[Member, ...]]:
        if not readable or model_records.has_no_weights(self.suspect):
            return {}, ()
        models = [m for _, m in readable]
        merge = merge_of(self.suspect, models) if len(models) > 1 else None
        if merge is not None and merge.shown:
            return _of_merge(merge, readable), ()
        geometry = Geometry.of([self.suspect, *models])
        whole = complete(geometry, 0, range(1, len(models) + 1))
        places = [k for k in whole if not is_coded(models[k - 1]) or is_coded(self.suspect)]
        kin = groups(geometry, 0, places)
        model, firsts = self.parenthood(), [group[0] for group in kin]
        probable = dict(zip(firsts, model.probabilities(geometry, 0, firsts), strict=True))
        order = dict(zip(firsts, model.direction.probabilities(geometry, [(i, 0) for i in firsts]), strict=True))
        chosen, open_end = model.parent_set(list(probable.values()), self.coverage) if firsts else ([], True)
        least = model.named_from(len(firsts)) if firsts else 1.0
        merged = {i for i in firsts if probable[i] >= least and self._is_merged_into(models, i - 1, further)}
        kept = [k for k in chosen if firsts[k] not in merged]
        alone = kept[0] if len(kept) == 1 and not open_end else None
        best = firsts[alone] if alone is not None and probable[firsts[alone]] >= least else None
        out: dict[int, Standing] = {}
        for one, *others in kin:
            for k in (one, *others):
                out[readable[k - 1][0]] = self._of_one(geometry, one, best, merged, probable[one], order[one])
        for k in range(1, len(models) + 1):
            if k not in places:
                out[readable[k - 1][0]] = Standing(Role.RELATIVE, None, _LEAF if k in whole else _CUT)
        said = [
            Member(
                tuple(readable[i - 1][0] for i in _original_first(kin[k], geometry)),
                round(float(probable[firsts[k]]), 4),
            )
            for k in kept
        ]
        rest = round(float(max(0.0, 1 - sum(probable.values()))), 4)
        return out, (*said, *([Member((), rest)] if open_end else []))

    def _of_one(
        self, geometry: Geometry, one: int, best: int | None, merged: Collection[int], p: float, order: np.ndarray
    ) -> Standing:
        if one in merged:
            return Standing(Role.CHILD, None, _MERGED)
        if one == best:
            return Standing(Role.PARENT, round(float(p), 4), _REASON)
        if order[1] >= SURE and _below(geometry, one, best):
            return Standing(Role.CHILD, round(float(order[1]), 4), _AFTER)
        return Standing(Role.RELATIVE, round(float(1 - p), 4), _NEITHER)

    def _is_merged_into(self, models: Sequence[Model], at: int, further: Sequence[Candidate]) -> bool:
        """Whether a candidate is reproduced as a merge of the suspect and others: then it is a child, whatever else."""
        read = [m for c in further if (m := _read(c)) is not None]
        others = [*(m for k, m in enumerate(models) if k != at), *read]
        merge = merge_of(models[at], [self.suspect, *others]) if others else None
        return merge is not None and merge.shown and any(p.position == 0 for p in merge.parents)


_REASON = "its relatives branch off where it stands, and what is new is in the suspect"
_NEITHER = "no sign that the suspect was made from it, beyond what siblings show"
_AFTER = "its weights come after the suspect's own"
_MERGED = "it is a merge of the suspect and others"
_CUT = "units or layers are missing from it that the suspect and other relatives have"
_ANOTHERS = "another relative is nearer to it than the suspect: it was made from that one, or from what both come from"
_LEAF = "stored in codes of few bits, which nothing is trained from"

NEARER = 0.8
"""Share of the squared distance to the suspect within which another model is nearer to an edited one."""

SURE = 0.95
"""Probability from which a relative is called a child: nobody asked for it, so it has to be surer than a parent."""


def _original_first(group: Sequence[int], geometry: Geometry) -> list[int]:
    """Of models that hardly differ the one in the widest number format first: it was not made from the others."""
    return sorted(group, key=lambda k: -bits(geometry.entries.values[k]))


def _trained(standing: Standing, found: Comparison) -> Standing:
    """What changed everywhere from a parent to the suspect is called by its name."""
    if standing.role is not Role.PARENT or standing.relation or trained(found.relation) is found.relation:
        return standing
    return replace(standing, relation=RelationKind.FINETUNED.value)


def _below(geometry: Geometry, one: int, parent: int | None) -> bool:
    """Whether a model can be a child of the suspect, who has this parent: then it lies further from that parent."""
    return parent is None or geometry.squared_distance(parent, one) > geometry.squared_distance(0, one)


def directed(found: Comparison, a: Model, b: Model, parenthood: Callable[[], Parenthood]) -> Comparison:
    """Say which of two related models came first, where their weights show it.

    Args:
        found: The comparison (a, b) by weights.
        a: The first model.
        b: The second one.
        parenthood: Holds the model of pairs.

    Returns:
        The comparison with its direction, and how probable it is where that is not a matter of form; `unknown` below
        the calibrated threshold.
    """
    if found.weights.verdict is not Verdict.SUPPORTED:
        return found
    origin = found.relation.parameters.get("made_from")
    if origin:
        return replace(found, direction="a->b" if origin == "a" else "b->a")
    settled = found.relation.kind in (*PROOF, RelationKind.SIBLINGS)
    if settled or model_records.has_no_weights(a) or model_records.has_no_weights(b):
        return found
    model = parenthood()
    p = model.of_pair(Geometry.of([a, b]))
    first = int(np.argmax(p))
    chosen, open_end = model.parent_set([p[first]], COVERAGE)
    if open_end or not chosen or p[first] < model.named_from(1):
        return found
    return replace(
        found,
        relation=trained(found.relation),
        direction=("a->b", "b->a")[first],
        direction_confidence=round(p[first], 4),
    )


def trained(relation: Relation) -> Relation:
    """What changed everywhere between a parent and its child is called by its name, whatever was added beside it.

    Args:
        relation: Of a pair of which the one was made from the other.

    Returns:
        `finetuned` where nothing but its numbers changed, beside tokens that are new; else the relation as it is.
    """
    if relation.kind is not RelationKind.RELATED or relation.steps[-1:] != ("changed",):
        return relation
    return replace(relation, kind=RelationKind.FINETUNED, steps=(*relation.steps[:-1], RelationKind.FINETUNED.value))


def _by_form(found: Comparison) -> Standing | None:
    """What a pair alone settles: the same network, or a mark that only one of the two bears."""
    relation = found.relation
    origin = relation.parameters.get("made_from")
    if origin:
        return Standing(Role.PARENT if origin == "a" else Role.CHILD, None, relation.reason)
    return Standing(Role.SAME, None, relation.reason) if relation.kind in PROOF else None


def _closeness(found: Comparison) -> tuple[float, float]:
    change = found.relation.parameters.get("relative_change")
    return (1e9 if change is None else float(change), -found.weights.effect)


def _read(candidate: Candidate) -> Model | None:
    try:
        model = candidate.load()
    except (StemmaError, OSError):
        return None
    return None if model_records.has_no_weights(model) else model


def _of_merge(merge: Merge, readable: Sequence[tuple[int, Model]]) -> dict[int, Standing]:
    by_position = {p.position: p for p in merge.parents}
    out = {}
    for k, (at, _) in enumerate(readable):
        parent = by_position.get(k)
        if parent is None:
            out[at] = Standing(Role.RELATIVE, None, "no part of the merge")
        else:
            words = f"{merge.method} merge, coefficient {parent.coefficient:.3f}"
            words = merge.reason if merge.method == STACKED else words
            share = float(np.clip(parent.coefficient, 0, 1))
            out[at] = Standing(Role.PARENT, None, words, RelationKind.MERGED.value, share)
    return out

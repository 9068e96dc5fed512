"""Assigns a role to every model related to a suspect: from edits that left traces, merges, and family geometry."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.ancestry.geometry import Geometry
from stemma.ancestry.merges.merge import Merge
from stemma.ancestry.merges.regression import find_merge
from stemma.ancestry.merges.stacked_layers import STACKED
from stemma.ancestry.parent_model import NEAREST, ParentModel, indistinguishable_groups, possible_parents
from stemma.ancestry.roles import PossibleParent, RelativeRole, RelativeRoles, Role
from stemma.ancestry.trace import EXACT_RELATIONS, Candidate
from stemma.checkpoints.model import Model
from stemma.errors import PartlyReadError, StemmaError
from stemma.kinship.axes import NARROWER
from stemma.registry import model_records
from stemma.types import Comparison, Relation, RelationKind, Verdict
from stemma.workspace.number_formats import is_coded, significand_bits

COVERAGE = 0.95
"""Default share of suspects whose parent set holds the parent."""

MAX_READ = NEAREST + 4
"""Related candidates whose weights are read and compared with one another."""

MAX_MERGE_CANDIDATES = 32
"""Related candidates that are read to see whether the likely parent is a merge of the suspect and others."""

NEARER = 0.8
"""Share of the squared distance to the suspect within which another model is nearer to an edited one."""

CHILD_PROBABILITY = 0.95
"""Probability from which a relative is called a child; stricter than for a parent, which is what was asked for."""

_PARENT = "the other relatives branch off at this model, and the model in question contains changes that it lacks"
_RELATIVE = "the weights do not show whether this model is the parent or a sibling of the model in question"
_CHILD = "its weights come after the model in question's"
_MERGE_OF_SUSPECT = "this model is a merge of the model in question and others"
_CUT = "units or layers that the model in question and other relatives have are missing from this model"
_FURTHER = "another model explains the model in question with fewer of the same steps, so this one is its relative"
_EDITED_OTHER = (
    "another relative is nearer to this model than the model in question: it was made from that one or from its "
    "ancestor"
)
_CODED = "stored as integer codes of few bits, from which models are not trained"


@dataclass(frozen=True)
class RoleAssignment:
    """Assigns a role to each candidate related to one suspect.

    In this order: the same network in another form; an edit whose traces only one of the two shows; a merge of several
    models; the parent by family geometry, if its probability reaches the calibrated threshold. All others are
    relatives; models that cannot be read are unknown.

    Attributes:
        suspect: The model in question.
        parent_model: Loads the model of parents.
        coverage: Share of suspects whose parent set is to hold the parent.
    """

    suspect: Model
    parent_model: Callable[[], ParentModel]
    coverage: float = COVERAGE

    def __call__(self, related: Sequence[tuple[Candidate, Comparison]]) -> RelativeRoles:
        """Assign a role to each related candidate, and give the set that holds the parent.

        Cost: the closest dozen are read; about half a second for small networks.

        Args:
            related: Candidates with their comparisons (candidate, suspect).

        Returns:
            Roles in the order of the candidates, and the parent set.
        """
        roles: list[RelativeRole | None] = [_role_from_pair(comparison) for _, comparison in related]
        _keep_nearest_parents(roles, [comparison.relation.steps for _, comparison in related])
        self._correct_children(roles, [c for c, _ in related])
        parents = [k for k, r in enumerate(roles) if r is not None and r.role in (Role.PARENT, Role.SAME)]
        parent_set = (PossibleParent(tuple(parents), 1.0),) if parents else ()
        undecided = [k for k, r in enumerate(roles) if r is None]
        if undecided and not parents:
            undecided.sort(key=lambda k: _closeness(related[k][1]))
            readable = [(k, m) for k in undecided[:MAX_READ] if (m := _read(related[k][0])) is not None]
            further = [related[k][0] for k in undecided[MAX_READ:MAX_MERGE_CANDIDATES]]
            assigned, parent_set = self._roles_from_family(readable, further)
            for k, role in assigned.items():
                roles[k] = _with_finetuned(role, related[k][1])
            if any(NARROWER in related[k][1].relation.steps for k in undecided):
                parent_set = ()  # models of other widths have no calibrated probability
        default = RelativeRole(Role.RELATIVE if parents else Role.UNKNOWN)
        named = [_without_direction(r or default, c) for r, (_, c) in zip(roles, related, strict=True)]
        return RelativeRoles(named, parent_set)

    def _correct_children(self, roles: list[RelativeRole | None], candidates: Sequence[Candidate]) -> None:
        """An edited relative is a child of whichever model it is nearest to, which may not be the suspect."""
        edited = [k for k, r in enumerate(roles) if r is not None and r.role is Role.CHILD][:MAX_READ]
        others = [k for k, r in enumerate(roles) if r is None or r.role is Role.SAME][:MAX_READ]
        if not edited or not others:
            return
        read = {k: m for k in (*edited, *others) if (m := _read(candidates[k])) is not None}
        position = {k: i + 1 for i, k in enumerate(read)}
        geometry = Geometry.of([self.suspect, *read.values()])
        for k in (k for k in edited if k in position):
            to_suspect = geometry.squared_distance(0, position[k])
            to_others = [geometry.squared_distance(position[o], position[k]) for o in others if o in position]
            if to_others and np.isfinite(to_suspect) and min(to_others) < NEARER * to_suspect:
                roles[k] = RelativeRole(Role.RELATIVE, None, _EDITED_OTHER)

    def _roles_from_family(
        self, readable: Sequence[tuple[int, Model]], further: Sequence[Candidate]
    ) -> tuple[Mapping[int, RelativeRole], tuple[PossibleParent, ...]]:
        """Roles by candidate, and the parent set; positions in the geometry are those in `readable` plus one."""
        if not readable or model_records.has_no_weights(self.suspect):
            return {}, ()
        models = [m for _, m in readable]
        merge = _merge(self.suspect, models) if len(models) > 1 else None
        if merge is not None and merge.is_proven:
            return _roles_from_merge(merge, readable), ()
        geometry = Geometry.of([self.suspect, *models])
        complete = possible_parents(geometry, 0, range(1, len(models) + 1))
        possible = [k for k in complete if not is_coded(models[k - 1]) or is_coded(self.suspect)]
        groups = indistinguishable_groups(geometry, 0, possible)
        model, firsts = self.parent_model(), [group[0] for group in groups]
        probability = dict(zip(firsts, model.probabilities(geometry, 0, firsts), strict=True))
        order = dict(zip(firsts, model.direction.probabilities(geometry, [(i, 0) for i in firsts]), strict=True))
        in_set, unknown_in_set = model.parent_set(list(probability.values()), self.coverage) if firsts else ([], True)
        threshold = model.parent_threshold(len(firsts)) if firsts else 1.0
        merged = {
            i for i in firsts if probability[i] >= threshold and self._is_merge_of_suspect(models, i - 1, further)
        }
        kept = [k for k in in_set if firsts[k] not in merged]
        sole = firsts[kept[0]] if len(kept) == 1 and not unknown_in_set else None
        parent = sole if sole is not None and probability[sole] >= threshold else None
        out: dict[int, RelativeRole] = {}
        for first, *others in groups:
            for k in (first, *others):
                out[readable[k - 1][0]] = _role_in_family(
                    geometry, first, parent, merged, probability[first], order[first]
                )
        for k in range(1, len(models) + 1):
            if k not in possible:
                out[readable[k - 1][0]] = RelativeRole(Role.RELATIVE, None, _CODED if k in complete else _CUT)
        parent_set = [
            PossibleParent(
                tuple(readable[i - 1][0] for i in _widest_format_first(groups[k], geometry)),
                round(float(probability[firsts[k]]), 4),
            )
            for k in kept
        ]
        unknown = round(float(max(0.0, 1 - sum(probability.values()))), 4)
        return out, (*parent_set, *([PossibleParent((), unknown)] if unknown_in_set else []))

    def _is_merge_of_suspect(self, models: Sequence[Model], position: int, further: Sequence[Candidate]) -> bool:
        """Whether a candidate is reproduced exactly as a merge of the suspect and others: then it is a child."""
        read = [m for c in further if (m := _read(c)) is not None]
        others = [*(m for k, m in enumerate(models) if k != position), *read]
        merge = _merge(models[position], [self.suspect, *others]) if others else None
        return merge is not None and merge.is_proven and any(p.position == 0 for p in merge.parents)


def _role_in_family(
    geometry: Geometry, k: int, parent: int | None, merged: Collection[int], probability: float, order: np.ndarray
) -> RelativeRole:
    if k in merged:
        return RelativeRole(Role.CHILD, None, _MERGE_OF_SUSPECT)
    if k == parent:
        return RelativeRole(Role.PARENT, round(float(probability), 4), _PARENT)
    if order[1] >= CHILD_PROBABILITY and _can_be_child(geometry, k, parent):
        return RelativeRole(Role.CHILD, round(float(order[1]), 4), _CHILD)
    return RelativeRole(Role.RELATIVE, round(float(1 - probability), 4), _RELATIVE)


def _widest_format_first(group: Sequence[int], geometry: Geometry) -> list[int]:
    """Of almost identical models the one in the widest number format first: it was not made from the others."""
    return sorted(group, key=lambda k: -significand_bits(geometry.entries.values[k]))


def _with_finetuned(role: RelativeRole, comparison: Comparison) -> RelativeRole:
    """A parent from which every layer changed is the parent of a fine-tuned model."""
    if role.role is not Role.PARENT or role.relation or with_finetuned(comparison.relation) is comparison.relation:
        return role
    return replace(role, relation=RelationKind.FINETUNED.value)


def _without_direction(role: RelativeRole, comparison: Comparison) -> RelativeRole:
    """A relative whose direction is not known is `related`: `finetuned` would say which of the two came first."""
    if role.role not in (Role.RELATIVE, Role.UNKNOWN) or role.relation:
        return role
    named = comparison.relation.kind is RelationKind.FINETUNED
    return replace(role, relation=RelationKind.RELATED.value) if named else role


def _can_be_child(geometry: Geometry, k: int, parent: int | None) -> bool:
    """A child of the suspect lies further from the suspect's parent than from the suspect."""
    return parent is None or geometry.squared_distance(parent, k) > geometry.squared_distance(0, k)


def with_direction(comparison: Comparison, a: Model, b: Model, parent_model: Callable[[], ParentModel]) -> Comparison:
    """The comparison of a related pair with its direction and confidence; `unknown` below the calibrated threshold."""
    if comparison.weights.verdict is not Verdict.SUPPORTED:
        return comparison
    origin = comparison.relation.parameters.get("made_from")
    if origin:
        return replace(comparison, direction="a->b" if origin == "a" else "b->a")
    undirected = comparison.relation.kind in (*EXACT_RELATIONS, RelationKind.SIBLINGS)
    if undirected or model_records.has_no_weights(a) or model_records.has_no_weights(b):
        return comparison
    model = parent_model()
    p = model.pair_probabilities(Geometry.of([a, b]))
    first = int(np.argmax(p))
    in_set, unknown_in_set = model.parent_set([p[first]], COVERAGE)
    if unknown_in_set or not in_set or p[first] < model.parent_threshold(1):
        return comparison
    return replace(
        comparison,
        relation=with_finetuned(comparison.relation),
        direction=("a->b", "b->a")[first],
        direction_confidence=round(p[first], 4),
    )


def with_finetuned(relation: Relation) -> Relation:
    """`finetuned` for a parent and child between which only numbers changed, besides new tokens; else unchanged."""
    if relation.kind is not RelationKind.RELATED or relation.steps[-1:] != ("changed",):
        return relation
    return replace(relation, kind=RelationKind.FINETUNED, steps=(*relation.steps[:-1], RelationKind.FINETUNED.value))


def _role_from_pair(comparison: Comparison) -> RelativeRole | None:
    """What a pair alone settles: the same network, or an edit whose traces only one of the two shows."""
    relation = comparison.relation
    origin = relation.parameters.get("made_from")
    if origin:
        return RelativeRole(Role.PARENT if origin == "a" else Role.CHILD, None, relation.reason)
    return RelativeRole(Role.SAME, None, relation.reason) if relation.kind in EXACT_RELATIONS else None


def _keep_nearest_parents(roles: list[RelativeRole | None], steps: Sequence[tuple[str, ...]]) -> None:
    """Where some of the steps from one parent suffice from another, the first is a relative of the second."""
    parents = [k for k, r in enumerate(roles) if r is not None and r.role is Role.PARENT]
    for k in parents:
        if any(set(steps[j]) < set(steps[k]) for j in parents):
            roles[k] = RelativeRole(Role.RELATIVE, None, _FURTHER)


def _closeness(comparison: Comparison) -> tuple[float, float]:
    change = comparison.relation.parameters.get("relative_change")
    return (1e9 if change is None else float(change), -comparison.weights.effect)


def _read(candidate: Candidate) -> Model | None:
    try:
        model = candidate.load()
    except (StemmaError, OSError):
        return None
    return None if model_records.has_no_weights(model) else model


def _merge(child: Model, parents: Sequence[Model]) -> Merge | None:
    """The merge that a model is of others; none where that needs bytes that were not read."""
    try:
        return find_merge(child, parents)
    except PartlyReadError:
        return None


def _roles_from_merge(merge: Merge, readable: Sequence[tuple[int, Model]]) -> dict[int, RelativeRole]:
    by_position = {p.position: p for p in merge.parents}
    out = {}
    for k, (candidate, _) in enumerate(readable):
        parent = by_position.get(k)
        if parent is None:
            out[candidate] = RelativeRole(Role.RELATIVE, None, "not one of the merged models")
        else:
            reason = f"{merge.method} merge, coefficient {parent.coefficient:.3f}"
            reason = merge.reason if merge.method == STACKED else reason
            share = float(np.clip(parent.coefficient, 0, 1))
            out[candidate] = RelativeRole(Role.PARENT, None, reason, RelationKind.MERGED.value, share)
    return out

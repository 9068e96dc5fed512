"""What related models are to a suspect: marks that an operation left, merges, then the geometry of the family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stemma.errors import StemmaError
from stemma.kinship.weights.entries import entries
from stemma.lineage.geometry import Geometry
from stemma.lineage.merges import Merge, merge_of
from stemma.lineage.parenthood import NEAREST, Parenthood
from stemma.lineage.standing import Role, Standing
from stemma.lineage.trace import PROOF, Candidate
from stemma.models.model import Model
from stemma.registry import describe
from stemma.types import Comparison, RelationKind

CLOSEST = NEAREST + 4
"""Related candidates that are looked at together."""


@dataclass(frozen=True)
class Standings:
    """Says what each related candidate is to one suspect.

    In this order: the same network in another form; a mark in the weights of one of the two; a merge of several; the
    parent by the family's geometry, if its probability reaches the calibrated threshold. What is none of these is a
    relative, and what could not be read is unknown.

    Attributes:
        suspect: The model in question.
        parenthood: The model of parents.
    """

    suspect: Model
    parenthood: Callable[[], Parenthood]

    def __call__(self, related: Sequence[tuple[Candidate, Comparison]]) -> list[Standing]:
        """Look at all related candidates together.

        Cost: the closest dozen are read; about half a second for small networks.

        Args:
            related: Candidates with their comparisons (candidate, suspect).

        Returns:
            One standing each, in order.
        """
        found: list[Standing | None] = [_by_form(c) for _, c in related]
        parents = [s for s in found if s is not None and s.role in (Role.PARENT, Role.SAME)]
        open_ones = [k for k, s in enumerate(found) if s is None]
        if open_ones and not parents:
            open_ones.sort(key=lambda k: _closeness(related[k][1]))
            readable = [(k, m) for k in open_ones[:CLOSEST] if (m := _read(related[k][0])) is not None]
            for k, standing in self._by_family(readable).items():
                found[k] = standing
        return [s or Standing(Role.RELATIVE if parents else Role.UNKNOWN) for s in found]

    def _by_family(self, readable: Sequence[tuple[int, Model]]) -> Mapping[int, Standing]:
        if not readable or describe.is_remembered(self.suspect):
            return {}
        models = [m for _, m in readable]
        merge = merge_of(self.suspect, models) if len(models) > 1 else None
        if merge is not None and merge.certain:
            return _of_merge(merge, readable)
        geometry = Geometry(entries([self.suspect, *models], reference=0))
        tested = range(1, len(models) + 1)
        model = self.parenthood()
        p = model.probabilities(geometry, 0, tested)
        order = model.direction.probabilities(geometry, [(i, 0) for i in tested])
        best = int(np.argmax(p))
        out = {}
        for k, (at, _) in enumerate(readable):
            if not np.isfinite(geometry.squared_distance(0, k + 1)):
                continue
            if k == best and p[k] >= model.threshold:
                out[at] = Standing(Role.PARENT, float(p[k]), _REASON)
            elif order[k, 1] >= model.direction.threshold:
                out[at] = Standing(Role.CHILD, float(order[k, 1]), "the suspect's weights come before its own")
            else:
                out[at] = Standing(Role.RELATIVE, float(max(0.0, 1 - p[k])), _NEITHER)
        return out


_REASON = "its relatives branch off where it stands, and what is new is in the suspect"
_NEITHER = "no sign that the suspect was made from it, beyond what siblings show"


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
    return None if describe.is_remembered(model) else model


def _of_merge(merge: Merge, readable: Sequence[tuple[int, Model]]) -> dict[int, Standing]:
    by_position = {p.position: p for p in merge.parents}
    out = {}
    for k, (at, _) in enumerate(readable):
        parent = by_position.get(k)
        if parent is None:
            out[at] = Standing(Role.RELATIVE, None, "no part of the merge")
        else:
            words = f"{merge.method} merge, coefficient {parent.coefficient:.3f}"
            share = float(np.clip(parent.coefficient, 0, 1))
            out[at] = Standing(Role.PARENT, None, words, RelationKind.MERGED.value, share)
    return out

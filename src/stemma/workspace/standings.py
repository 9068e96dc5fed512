"""What related models are to a suspect: marks that an operation left, merges, then the geometry of the family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stemma.errors import StemmaError
from stemma.kinship.weights.entries import entries
from stemma.lineage.geometry import Geometry
from stemma.lineage.merges import Merge, merge_of
from stemma.lineage.parenthood import NEAREST, Parenthood
from stemma.lineage.stacks import STACKED
from stemma.lineage.standing import Role, Standing
from stemma.lineage.trace import PROOF, Candidate
from stemma.models.model import Model
from stemma.registry import describe
from stemma.types import Comparison, RelationKind, Verdict

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
            further = [related[k][0] for k in open_ones[CLOSEST:AROUND]]
            for k, standing in self._by_family(readable, further).items():
                found[k] = standing
        return [s or Standing(Role.RELATIVE if parents else Role.UNKNOWN) for s in found]

    def _by_family(self, readable: Sequence[tuple[int, Model]], further: Sequence[Candidate]) -> Mapping[int, Standing]:
        if not readable or describe.is_remembered(self.suspect):
            return {}
        models = [m for _, m in readable]
        merge = merge_of(self.suspect, models) if len(models) > 1 else None
        if merge is not None and merge.shown:
            return _of_merge(merge, readable)
        geometry = Geometry(entries([self.suspect, *models], reference=0))
        whole = _whole(geometry, len(models))
        places = [k for k in whole if not _coded(models[k - 1]) or _coded(self.suspect)]
        alike = _same_network(geometry, places)
        tested = sorted(set(alike.values()))
        model = self.parenthood()
        p = dict(zip(tested, model.probabilities(geometry, 0, tested), strict=True))
        order = dict(zip(tested, model.direction.probabilities(geometry, [(i, 0) for i in tested]), strict=True))
        likely = sorted((i for i in tested if p[i] >= model.threshold), key=lambda i: -p[i])
        merged = [i for i in likely if self._is_merged_into(models, i - 1, further)]
        best = next((i for i in likely if i not in merged), 0)
        out = {}
        for k, (at, _) in enumerate(readable):
            one = alike.get(k + 1)
            if one is None:
                out[at] = Standing(Role.RELATIVE, None, _LEAF if k + 1 in whole else _CUT)
            elif not np.isfinite(geometry.squared_distance(0, one)):
                continue
            elif one in merged:
                out[at] = Standing(Role.CHILD, None, _MERGED)
            elif one == best:
                out[at] = Standing(Role.PARENT, round(float(p[one]), 4), _REASON)
            elif order[one][1] >= SURE and _below(geometry, one, best or None):
                out[at] = Standing(Role.CHILD, round(float(order[one][1]), 4), _AFTER)
            else:
                out[at] = Standing(Role.RELATIVE, round(float(1 - p[one]), 4), _NEITHER)
        return out

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
_LEAF = "stored in codes of few bits, which nothing is trained from"

EQUAL = 1e-6
"""Squared relative distance of two models that differ by rounding to half precision at most."""


SURE = 0.95
"""Probability from which a relative is called a child: nobody asked for it, so it has to be surer than a parent."""


def _whole(geometry: Geometry, count: int) -> list[int]:
    """Relatives that no more than one tensor (a head) is missing from, of what any of them shares with the suspect.

    A model does not regain units or layers, so what was cut is nobody's parent who has them.

    Returns:
        Their places in the geometry.
    """
    there = geometry.entries.present[1 : count + 1]
    wanted = there.any(axis=0)
    return [k + 1 for k in range(count) if (wanted & ~there[k]).sum() <= 1]


def _coded(model: Model) -> bool:
    """Whether matrices are stored as integer codes."""
    return any(not t.is_float and sum(s > 1 for s in t.shape) >= 2 for t in model.tensors.values())


def _same_network(geometry: Geometry, places: Sequence[int]) -> dict[int, int]:
    """For each model the first one with the same weights: copies would share the probability of one parent."""
    there = geometry.entries.present
    out: dict[int, int] = {}
    for i in places:
        firsts = [f for f in sorted(set(out.values())) if (there[f] == there[i]).all()]
        out[i] = next((f for f in firsts if geometry.squared_distance(f, i) <= EQUAL), i)
    return out


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
    if settled or describe.is_remembered(a) or describe.is_remembered(b):
        return found
    model = parenthood().direction
    [p] = model.probabilities(Geometry(entries([a, b], reference=0)), [(0, 1)])
    first = int(np.argmax(p[:2]))
    if p[first] < model.threshold:
        return found
    return replace(found, direction=("a->b", "b->a")[first], direction_confidence=round(float(p[first]), 4))


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
            words = merge.reason if merge.method == STACKED else words
            share = float(np.clip(parent.coefficient, 0, 1))
            out[at] = Standing(Role.PARENT, None, words, RelationKind.MERGED.value, share)
    return out

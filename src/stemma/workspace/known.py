"""Models that are known from other registries, in a trace: searched apart, added after one's own findings, and marked.

A search of these never changes what was found among the enrolled models: no finding is dropped, no p-value is corrected
for more models, and what could not be tested stays listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from stemma.ancestry.roles import RelativeRole, RelativeRoles, Role
from stemma.ancestry.trace import Candidate, trace
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.registry import Registry, comparisons
from stemma.registry.exchange.known_models import KnownModel
from stemma.types import WEIGHTS_GONE, Comparison, Fingerprint, KnownFrom, NotTested, Trace
from stemma.workspace.comparison_cache import ComparisonCache, told_by

PER_REGISTRY = 16
"""Models of each other registry that are compared with a suspect, by shared tensors and by sketch."""

KINSHIP = ("copy", "descends", "related")


@dataclass(frozen=True)
class KnownSearch:
    """The part of a trace that looks at models known from other registries."""

    registry: Registry
    suspect: Model
    alpha: float

    def __call__(self) -> list[Trace]:
        """A trace for each other registry that tells of any models, each a search of its own."""
        origins = [origin for origin in self.registry.known.origins() if origin.models]
        near = self._near() if origins else ()
        return [self._among([k for k in near if k.told.registry == o.name], o.models) for o in origins]

    def _among(self, near: Sequence[KnownModel], n: int) -> Trace:
        known = {k.name: k for k in near if k.name != self.suspect.name}
        candidates = [_candidate(k) for k in known.values()]

        def compared(c: Candidate) -> Comparison:
            return self._compare(known[c.ref.name])

        result = trace(self.suspect, candidates, compared, alpha=self.alpha, n_searched=n, assign_roles=_undirected,
                       not_tested=_without_sketch(self._sketch is None, n))  # fmt: skip
        return _marked(result, {k.name: k.told for k in known.values()})

    @cached_property
    def _sketch(self) -> Fingerprint | None:
        """Of the suspect, computed once."""
        try:
            return ComparisonCache(self.registry).sketch(self.suspect)
        except StemmaError:
            return None

    def _near(self) -> tuple[KnownModel, ...]:
        model, sketch = self.suspect, self._sketch
        wide = [n for n, t in model.tensors.items() if sum(s > 1 for s in t.shape) >= 2]
        matrices = {model.tensor_digests[n] for n in wide if n in model.tensor_digests}
        bits = None if sketch is None else np.asarray(sketch.values["bits"])
        return self.registry.known.nearest(model.digest, model.names_free_digest, matrices, bits, PER_REGISTRY)

    def _compare(self, known: KnownModel) -> Comparison:
        """By sketch; shapes and names are those of the suspect, which were read here."""
        other = known.opened()
        sketches = (self._sketch, known.sketch)
        found = comparisons.compare_sketches(self.suspect, other, sketches, known.reason, self.alpha)
        return replace(found, a=other.ref, b=self.suspect.ref)


def find_known(registry: Registry, text: str) -> KnownModel | None:
    """The model of this name, or with this digest prefix, that another registry tells of; None without one."""
    found = registry.known.find(text)
    return found[0] if found else None


def _candidate(known: KnownModel) -> Candidate:
    record = known.record
    return Candidate(record.ref, record.names_free_digest, {}, known.opened, record.claims, record.license or "")


def _undirected(pairs: Sequence[tuple[Candidate, Comparison]]) -> RelativeRoles:
    """A sketch shows that two models are related, and never which was first."""
    return RelativeRoles([RelativeRole(Role.UNKNOWN) for _ in pairs])


def _without_sketch(missing: bool, n: int) -> tuple[NotTested, ...]:
    if not missing:
        return ()
    why = f"there is no weight sketch of this model, so that {n:,} models known from other registries were not searched"
    return ({"what": "no-sketch", "model": "", "why": why},)


def _marked(result: Trace, told: Mapping[str, KnownFrom]) -> Trace:
    """The trace with its source beside every finding, and before every reason."""

    def row(found: Mapping[str, Any]) -> dict[str, Any]:
        by = told[found["name"]]
        out = {**found, "known_from": by}
        for field in ("reason", "relation_reason"):
            if field in found:
                said = str(found[field])
                out[field] = said if by.sentence in said else f"{by.sentence}: {said}"
        return out

    parts = {part: tuple(map(row, getattr(result, part))) for part in ("copies", "parents", "relatives", "candidates")}
    return replace(result, **parts)


def added(own: Trace, told: Sequence[Trace], suspect: Model) -> Trace:
    """One's own trace, with what was found among models known from other registries after it.

    The verdict is one's own where that is a relation; else that among the known models where that is a relation, which
    `known_from` then says; else it is inconclusive if any is.

    Args:
        own: The trace among enrolled models.
        told: The traces among models that other registries tell of, one for each registry.
        suspect: The model in question.

    Returns:
        All of them, one after the other.
    """
    if told_by(suspect) is not None:
        why = f"{suspect.notes[0]}: all of this is about what it says that they are"
        own = replace(own, not_tested=(*own.not_tested, {"what": WEIGHTS_GONE, "model": "", "why": why}))
    if not told:
        return own
    mine = tuple({**t, "why": f"of models that are enrolled here, {t['why']}"} if t["what"] == "nothing-searched" else t
                 for t in own.not_tested)  # fmt: skip
    verdict, by = own.verdict, tuple[KnownFrom, ...]()
    kin = [t for t in told if t.verdict in KINSHIP]
    if own.verdict not in KINSHIP and kin:
        verdict = min((t.verdict for t in kin), key=KINSHIP.index)
        by = tuple(dict.fromkeys(r["known_from"] for t in kin for r in (t.copies or (*t.parents, *t.relatives))))
    elif own.verdict not in KINSHIP and any(t.verdict == "inconclusive" for t in told):
        verdict = "inconclusive"

    def whole(part: str) -> tuple[Any, ...]:
        return tuple(row for found in (own, *told) for row in getattr(found, part))

    rows = {part: whole(part) for part in ("copies", "parents", "relatives", "candidates")}
    return replace(
        own,
        verdict=verdict,
        **rows,
        n_searched=own.n_searched + sum(t.n_searched for t in told),
        cannot_see=tuple(dict.fromkeys(whole("cannot_see"))),
        not_tested=(*mine, *whole("not_tested")[len(mine) :]),
        known_from=by,
        own_verdict=own.verdict,
    )


def own_part(found: Trace) -> Trace:
    """What this registry found itself, without what others tell."""
    parts = {
        part: tuple(r for r in getattr(found, part) if not r.get("known_from"))
        for part in ("copies", "parents", "relatives", "candidates")
    }
    return replace(found, verdict=found.own_verdict or found.verdict, known_from=(), **parts)

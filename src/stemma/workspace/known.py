"""Models that are known from other registries, in a trace: searched apart, added after one's own findings, and marked.

A search of these never changes what was found among the enrolled models: no finding is dropped, no p-value is corrected
for more models, and what could not be tested stays listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stemma.ancestry.roles import RelativeRole, RelativeRoles, Role
from stemma.ancestry.trace import Candidate, trace
from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.registry import Registry
from stemma.registry.exchange.known_models import KnownModel
from stemma.types import WEIGHTS_GONE, Comparison, KnownFrom, NotTested, Trace
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

    def __call__(self) -> Trace | None:
        """The trace among them; None where no other registry told of any."""
        n = self.registry.known.count()
        if n == 0:
            return None
        sketch = self._sketch()
        known = {k.name: k for k in self._near(sketch) if k.name != self.suspect.name}
        candidates = [_candidate(k) for k in known.values()]

        def compared(c: Candidate) -> Comparison:
            return self._compare(known[c.ref.name])

        result = trace(self.suspect, candidates, compared, alpha=self.alpha, n_searched=n, assign_roles=_undirected,
                       not_tested=_without_sketch(sketch is None, n))  # fmt: skip
        return _marked(result, {k.name: k.told for k in known.values()})

    def _sketch(self) -> Any:
        try:
            return ComparisonCache(self.registry).sketch(self.suspect)
        except StemmaError:
            return None

    def _near(self, sketch: Any) -> tuple[KnownModel, ...]:
        model = self.suspect
        wide = [n for n, t in model.tensors.items() if sum(s > 1 for s in t.shape) >= 2]
        matrices = {model.tensor_digests[n] for n in wide if n in model.tensor_digests}
        bits = None if sketch is None else np.asarray(sketch.values["bits"])
        return self.registry.known.nearest(model.digest, model.names_free_digest, matrices, bits, PER_REGISTRY)

    def _compare(self, known: KnownModel) -> Comparison:
        """By sketch; shapes and names are those of the suspect, which were read here."""
        return ComparisonCache(self.registry).compare(known.opened(), self.suspect, self.alpha)


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


def added(own: Trace, told: Trace | None, suspect: Model) -> Trace:
    """One's own trace, with what was found among models known from other registries after it.

    The verdict is one's own where that is a relation; else that among the known models where that is a relation, which
    `known_from` then says; else it is inconclusive if either is.

    Args:
        own: The trace among enrolled models.
        told: The trace among models that other registries tell of; None where there are none.
        suspect: The model in question.

    Returns:
        Both, one after the other.
    """
    if told_by(suspect) is not None:
        why = f"{suspect.notes[0]}: all of this is about what it says that they are"
        own = replace(own, not_tested=(*own.not_tested, {"what": WEIGHTS_GONE, "model": "", "why": why}))
    if told is None:
        return own
    mine = tuple({**t, "why": f"of models that are enrolled here, {t['why']}"} if t["what"] == "nothing-searched" else t
                 for t in own.not_tested)  # fmt: skip
    verdict, by = own.verdict, tuple[KnownFrom, ...]()
    if own.verdict not in KINSHIP:
        if told.verdict in KINSHIP:
            rows = told.copies or (*told.parents, *told.relatives)
            verdict, by = told.verdict, tuple(dict.fromkeys(row["known_from"] for row in rows))
        elif "inconclusive" in (own.verdict, told.verdict):
            verdict = "inconclusive"
    return replace(
        own,
        verdict=verdict,
        copies=(*own.copies, *told.copies),
        parents=(*own.parents, *told.parents),
        relatives=(*own.relatives, *told.relatives),
        candidates=(*own.candidates, *told.candidates),
        n_searched=own.n_searched + told.n_searched,
        cannot_see=tuple(dict.fromkeys((*own.cannot_see, *told.cannot_see))),
        not_tested=(*mine, *told.not_tested),
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

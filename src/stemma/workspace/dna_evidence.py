"""Model DNA beside the other evidence on function: kept fingerprints, and when it decides."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from stemma.errors import RegistryError, StemmaError
from stemma.fingerprints.dna import DNA, MIN_PROBES, is_valid
from stemma.kinship.function.closest_dna_of_many import ClosestDnaOfMany
from stemma.kinship.function.model_dna import CloserDnaThanIndependent
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.registry import Registry
from stemma.training import shipped_dna
from stemma.types import Digest, Evidence, Fingerprint

if TYPE_CHECKING:
    from stemma.probes import Probes

HEADS, GRADIENTS = "their output heads differ", "one of them provides no gradients"
"""Why DNA decides: the other methods are limited for such a pair."""


@dataclass(frozen=True)
class DnaAxis:
    """Computes Model DNA on probes, or uses what a registry keeps of it; `alpha` is the level of decisions."""

    registry: Registry
    probes: "Probes"
    alpha: float

    @cached_property
    def method(self) -> DNA:
        """DNA with the encoder that ships for these probes."""
        return DNA(encoder=shipped_dna(self.probes.kind))

    def fingerprint(self, party: Subject, weights: Digest | None = None) -> Fingerprint | str:
        """The DNA of a model, given the digest of its weights where known; or why there is none."""
        key = "dna", self.method.spec.digest, self.probes.digest
        if key not in party.kept:
            party.kept[key] = self._fingerprint(party, weights)
        return party.kept[key]

    def _fingerprint(self, party: Subject, weights: Digest | None) -> Fingerprint | str:
        known = weights or (party.sketch.model if party.sketch is not None else None)
        if known is not None:
            stored = self.registry.functional(known, self.probes.digest, self.method.spec)
            if stored is not None and is_valid(stored) and not _run_by_other_code(party, stored):
                return stored
        if party.load is None:
            return f"the weights of {party.name} are no longer available, and no DNA was kept for these probes"
        try:
            computed = self.method(party.load(), self.probes)
        except StemmaError as e:
            return str(e)
        if weights is not None:
            with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
                if self.registry.by_digest(weights):
                    self.registry.put_functional(weights, computed)
        return computed

    def on_pair(self, a: Subject, b: Subject, null: NullModels, digests: Sequence[Digest | None]) -> Evidence | str:
        """Evidence on a pair, given the digests of the weights of both; or why there is none."""
        if len(self.probes) < MIN_PROBES:
            return f"Model DNA needs at least {MIN_PROBES} probes"
        dna_a, dna_b = (self.fingerprint(p, d) for p, d in zip((a, b), digests, strict=True))
        if isinstance(dna_a, str) or isinstance(dna_b, str):
            return dna_a if isinstance(dna_a, str) else str(dna_b)
        stored, left_out = self._null_fingerprints(null)
        test = CloserDnaThanIndependent(self.alpha, self.method.encoder)
        evidence = test(dna_a, dna_b, stored, null.source, left_out)
        return _with_decision(evidence, why_dna_decides(a, b, dna_a, dna_b))

    def on_search(
        self, suspect: Subject, candidates: Sequence[tuple[Subject, Digest]], null: NullModels, digest: Digest | None
    ) -> Mapping[int, Evidence]:
        """Evidence on a suspect and each candidate that has a DNA, by position of the candidate."""
        own = self.fingerprint(suspect, digest) if len(self.probes) >= MIN_PROBES else ""
        if isinstance(own, str):
            return {}
        computed = {i: self.fingerprint(p, w) for i, (p, w) in enumerate(candidates)}
        fingerprints = {i: d for i, d in computed.items() if isinstance(d, Fingerprint)}
        stored, left_out = self._null_fingerprints(null)
        test = ClosestDnaOfMany(self.alpha, self.method.encoder)
        answers = test(own, list(fingerprints.values()), stored, null.source, left_out)
        return {
            i: _with_decision(e, why_dna_decides(candidates[i][0], suspect, fingerprints[i], own))
            for i, e in zip(fingerprints, answers, strict=True)
        }

    def _null_fingerprints(self, null: NullModels) -> tuple[list[Fingerprint], list[str]]:
        computed = [(n.name, self.fingerprint(n)) for n in null]
        stored, identities = [], set()
        left_out = list(null.left_out) + [f"{name}: {d}" for name, d in computed if isinstance(d, str)]
        for name, d in computed:
            if isinstance(d, str):
                continue
            identity = (d.model, np.asarray(d.values["code"]).tobytes())
            if identity in identities:
                left_out.append(f"{name}: duplicate of another control model")
                continue
            identities.add(identity)
            stored.append(d)
        return stored, left_out


def _run_by_other_code(party: Subject, stored: Fingerprint) -> bool:
    """Whether what is kept is of the same weights, run by other code."""
    try:
        return party.load is not None and party.load().network.digest != stored.model
    except StemmaError:
        return False


def why_dna_decides(a: Subject, b: Subject, dna_a: Fingerprint, dna_b: Fingerprint) -> str:
    """Why DNA is the best evidence on a pair; empty where gradient fields and outputs are informative."""
    if dna_a.values["head"][0] != dna_b.values["head"][0]:
        return HEADS
    parties = [p.load() for p in (a, b) if p.load is not None]
    if any(m.black_box or not m.network.differentiable for m in parties):
        return GRADIENTS
    return ""


def _with_decision(evidence: Evidence, why: str) -> Evidence:
    return replace(evidence, details={**evidence.details, "decides": why})

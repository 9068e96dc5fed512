"""Model DNA beside the other evidence on function: what is kept of it, and where it decides."""

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

HEADS, GRADIENTS = "their heads differ", "one of them gives no gradients"
"""Why DNA decides: other methods see less of such a pair."""


@dataclass(frozen=True)
class DnaAxis:
    """Asks models for their DNA, or takes what is kept of it.

    Attributes:
        registry: Keeps DNAs of enrolled models.
        probes: What is asked.
        alpha: Level of decisions.
    """

    registry: Registry
    probes: "Probes"
    alpha: float

    @cached_property
    def method(self) -> DNA:
        """DNA with the encoder that ships for these probes."""
        return DNA(encoder=shipped_dna(self.probes.kind))

    def of(self, party: Subject, weights: Digest | None = None) -> Fingerprint | str:
        """The DNA of a model.

        Args:
            party: The model, or what is kept of it.
            weights: Digest of its weights, where known.

        Returns:
            The DNA, or why there is none.
        """
        known = weights or (party.sketch.model if party.sketch is not None else None)
        if known is not None:
            kept = self.registry.functional(known, self.probes.digest, self.method.spec)
            if kept is not None and is_valid(kept) and not _other_code(party, kept):
                return kept
        if party.load is None:
            return f"{party.name} is gone, and no DNA for these probes is kept"
        try:
            made = self.method(party.load(), self.probes)
        except StemmaError as e:
            return str(e)
        if weights is not None:
            with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
                if self.registry.by_digest(weights):
                    self.registry.put_functional(weights, made)
        return made

    def on_pair(self, a: Subject, b: Subject, null: NullModels, digests: Sequence[Digest | None]) -> Evidence | str:
        """Test a pair.

        Args:
            a: The one.
            b: The other.
            null: Independent models.
            digests: Of the weights of both.

        Returns:
            The evidence, or why there is none.
        """
        if len(self.probes) < MIN_PROBES:
            return f"a DNA needs at least {MIN_PROBES} probes"
        one, two = (self.of(p, d) for p, d in zip((a, b), digests, strict=True))
        if isinstance(one, str) or isinstance(two, str):
            return one if isinstance(one, str) else str(two)
        kept, left_out = self._null(null)
        test = CloserDnaThanIndependent(self.alpha, self.method.encoder)
        found = test(one, two, kept, null.source, left_out)
        return _deciding(found, reason(a, b, one, two))

    def on_search(
        self, suspect: Subject, candidates: Sequence[tuple[Subject, Digest]], null: NullModels, digest: Digest | None
    ) -> Mapping[int, Evidence]:
        """Test a suspect against the candidates that have a DNA.

        Args:
            suspect: The model in question.
            candidates: What it may come from, with the digests of their weights.
            null: Independent models.
            digest: Of the suspect's weights.

        Returns:
            Evidence by position of the candidate.
        """
        own = self.of(suspect, digest) if len(self.probes) >= MIN_PROBES else ""
        if isinstance(own, str):
            return {}
        found = {i: d for i, (p, w) in enumerate(candidates) if isinstance(d := self.of(p, w), Fingerprint)}
        kept, left_out = self._null(null)
        test = ClosestDnaOfMany(self.alpha, self.method.encoder)
        answers = test(own, list(found.values()), kept, null.source, left_out)
        return {
            i: _deciding(e, reason(candidates[i][0], suspect, found[i], own))
            for i, e in zip(found, answers, strict=True)
        }

    def _null(self, null: NullModels) -> tuple[list[Fingerprint], list[str]]:
        made = [(n.name, self.of(n)) for n in null]
        kept, seen = [], set()
        left_out = list(null.left_out) + [f"{name}: {d}" for name, d in made if isinstance(d, str)]
        for name, d in made:
            if isinstance(d, str):
                continue
            identity = (d.model, np.asarray(d.values["code"]).tobytes())
            if identity in seen:
                left_out.append(f"{name}: the same network again")
                continue
            seen.add(identity)
            kept.append(d)
        return kept, left_out


def _other_code(party: Subject, kept: Fingerprint) -> bool:
    """Whether what is kept is of the same weights, run by other code."""
    try:
        return party.load is not None and party.load().network.digest != kept.model
    except StemmaError:
        return False


def reason(a: Subject, b: Subject, one: Fingerprint, two: Fingerprint) -> str:
    """Why DNA is the best evidence on the function of a pair.

    Args:
        a: The one model.
        b: The other.
        one: DNA of the one.
        two: Of the other.

    Returns:
        A few words; empty where fields and answers see more.
    """
    if one.values["head"][0] != two.values["head"][0]:
        return HEADS
    parties = [p.load() for p in (a, b) if p.load is not None]
    if any(m.black_box or not m.network.differentiable for m in parties):
        return GRADIENTS
    return ""


def _deciding(found: Evidence, why: str) -> Evidence:
    return replace(found, details={**found.details, "decides": why})

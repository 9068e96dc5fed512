"""The function axis with what a registry remembers: sketches, null models, distances."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, RegistryError, StemmaError
from stemma.kinship.axes import FORGOTTEN, both_axes
from stemma.kinship.compare import function_of, unaskable, with_forgotten, with_partitions
from stemma.kinship.function import combined
from stemma.kinship.function.closer_than_independent import ObservationPlan
from stemma.kinship.function.closest_of_many import ClosestOfMany
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.kinship.function.selection import Selection
from stemma.kinship.function.sketches import FunctionalSketch
from stemma.measures.base import AbstractMeasure, summarise
from stemma.registry import Registry
from stemma.registry.model_records import has_no_weights
from stemma.registry.records import Progress
from stemma.types import Comparison, Digest, Distance, Evidence, Fingerprint, Verdict
from stemma.workspace.control_models import Independent
from stemma.workspace.dna_evidence import DnaAxis

if TYPE_CHECKING:
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.probes import Probes

BESIDE = (FORGOTTEN, "agreement", "accuracy", "null_agreement", "null_accuracy", "measures", "missing_measures")
"""What is told of answers and fields where DNA decides."""

Nulls = str | Sequence[Path | Model] | NullModels | None
"""A recipe of the zoo, paths and models, or None for enrolled models."""


@dataclass(frozen=True)
class FunctionAxis:
    """Asks models, with what is kept of them.

    Attributes:
        registry: Keeps sketches.
        probes: What is asked.
        alpha: Level of decisions.
        progress: Called with what is being done, how much is done and of how much.
        enrolled: The models of the registry.
    """

    registry: Registry
    probes: "Probes | Selection"
    alpha: float
    progress: Progress
    enrolled: Callable[[], Sequence[Candidate]]

    @property
    def given(self) -> "Probes":
        """The probes themselves."""
        return self.probes.probes if isinstance(self.probes, Selection) else self.probes

    @cached_property
    def dna(self) -> DnaAxis:
        """Asks the same models for their DNA."""
        return DnaAxis(self.registry, self.given, self.alpha)

    def kept(self, model: Digest) -> Fingerprint | None:
        """What is kept of a model's function for these probes.

        Returns:
            A functional sketch, None where there is none.
        """
        return self.registry.functional(model, self.given.digest, FunctionalSketch.of(self.given).spec)

    def party(self, model: Model) -> Subject:
        """A model as one to be asked; where its weights are gone, what is kept of it.

        Returns:
            The party.
        """
        if model.black_box:
            return Subject.of(model)
        gone = has_no_weights(model)
        kept = self.kept(model.digest)
        if not gone and kept is not None and kept.model != _network_digest(model):
            kept = None  # kept of the same weights, run by other code
        return Subject(model.name, None if gone else lambda: model, kept)

    def enrolled_party(self, c: Candidate) -> Subject:
        """An enrolled model: what is kept of its function, else the model itself.

        Returns:
            The party.
        """
        kept = self.kept(c.ref.digest)
        if kept is not None:
            return Subject(c.ref.name, None, kept)
        return replace(self.party(c.load()), name=c.ref.name)

    def independent(self, asked: Sequence[Model], null: Nulls, beside: Sequence[Candidate] = ()) -> NullModels:
        """Null models for a question.

        Returns:
            Them, and those left out.
        """
        choose = Independent(self.registry, self.enrolled_party, self.progress)
        return choose(asked, self.given, null, self.alpha, beside, self.enrolled)

    def on_pair(self, found: Comparison, a: Model, b: Model, null: Nulls) -> Comparison:
        """Put the function axis beside the weights of a pair.

        Args:
            found: The comparison by weights.
            a: The one model.
            b: The other.
            null: What independence looks like.

        Returns:
            The comparison with both axes.
        """
        parties = self.party(a), self.party(b)
        if why := unaskable(*parties):
            return both_axes(found, why, self.alpha)
        chosen = self.independent([a, b], null)
        function = function_of(*parties, self.probes, chosen, alpha=self.alpha, progress=self.progress)
        by_dna = self.dna.on_pair(*parties, chosen, [a.digest, b.digest])
        seen = _side_by_side(found, function, by_dna, self.alpha)
        seen = with_partitions(seen, *parties, self.probes, chosen, alpha=self.alpha)
        seen = self._with_modalities(seen, a, b)
        gone = [p.name for p in parties if p.load is None]
        if gone and seen.function is not None:
            seen = replace(seen, cannot_see=(*seen.cannot_see, f"the function of {' and '.join(gone)} but by a sketch"))
        return seen

    def _with_modalities(self, found: Comparison, a: Model, b: Model) -> Comparison:
        """Whether the two lean on the same modalities, where the probes are of several."""
        if not self.given.parts or self.given.labelled:
            return found
        from stemma.multimodal.contribution import ContributionTest

        try:
            leaning = ContributionTest().compare(a, b, self.given, self.alpha)
        except StemmaError as error:
            return replace(found, cannot_see=(*found.cannot_see, f"modality shares ({error})"))
        return replace(found, evidence=(*found.evidence, leaning))

    def on_search(self, suspect: Model, candidates: Sequence[Candidate], null: Nulls) -> Mapping[int, Evidence | str]:
        """The function axis of a suspect and all candidates, corrected for their number.

        Args:
            suspect: The model in question.
            candidates: What it may come from.
            null: What independence looks like.

        Returns:
            By `id` of a candidate, the evidence or why there is none.
        """
        own = self.party(suspect)
        if why := unaskable(own):
            return {id(c): why for c in candidates}
        chosen = self.independent([suspect], null, beside=candidates)
        parties = [self.party_of(c) for c in candidates]
        found = ClosestOfMany(self.alpha)(own, parties, self.given, chosen, self.progress)
        pairs = [(p, c.ref.digest) for c, p in zip(candidates, parties, strict=True)]
        by_dna = self.dna.on_search(own, pairs, chosen, suspect.digest)
        deciding = {i for i, e in by_dna.items() if e.details["decides"]}
        times = 2 if 0 < len(deciding) < len(found) else 1  # two searches, each at its own level, share alpha
        out: dict[int, Evidence | str] = {}
        for i, (c, party, evidence) in enumerate(zip(candidates, parties, found, strict=True)):
            best = by_dna[i] if i in deciding else evidence
            out[id(c)] = best if isinstance(best, str) else _paid(best, times, self.alpha)
            if i not in deciding and not isinstance(evidence, str):
                out[id(c)] = with_forgotten(_paid(evidence, times, self.alpha), party, own, self.given)
        return out

    def party_of(self, c: Candidate) -> Subject:
        """A candidate with its sketch, which is kept where the candidate is enrolled.

        Returns:
            The party.
        """
        party = self.enrolled_party(c)
        if party.sketch is not None or party.load is None:
            return party
        with contextlib.suppress(StemmaError):  # whoever asks it is told
            made = ObservationPlan.of(self.given, sketched=True, labelled=False).sketched(party, self.given)
            with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
                if self.registry.by_digest(c.ref.digest):
                    self.registry.put_functional(c.ref.digest, made)
            return replace(party, sketch=made)
        return party

    def distance(
        self, a: Model, b: Model, method: "AbstractFingerprinter | None", measure: AbstractMeasure | None
    ) -> Distance:
        """How far apart two models are in what they do.

        Args:
            a: The one.
            b: The other.
            method: The fingerprinter.
            measure: The measure.

        Returns:
            The distance. Where a model is gone it is that of the sketches, and its spec says so.

        Raises:
            MisuseError: If only a sketch is left and it does not hold what is asked for.
        """
        if method is None:
            method, default = combined.METHODS[0]
            measure = measure or default
        if measure is None:
            measure = next((m for f, m in combined.METHODS if f.produces == method.produces), None)
        if measure is None:
            raise MisuseError(f"no measure was given for {method.name}")
        if has_no_weights(a) or has_no_weights(b):
            return self._of_sketches(a, b, method, measure)
        if not measure.probewise:
            return measure(method(a, self.given), method(b, self.given))
        from stemma.measures.pairwise import pairwise

        found = pairwise([a, b], self.given, method, measure)
        ends = [Fingerprint(m.network.digest, self.given.digest, method.spec, {}) for m in (a, b)]
        return summarise(*ends, measure.spec, found.per_probe[0, 1], counted=measure.counted)

    def _of_sketches(self, a: Model, b: Model, method: "AbstractFingerprinter", measure: AbstractMeasure) -> Distance:
        labelled = self.given.labels is not None
        eyes = ObservationPlan.of(self.given, sketched=True, labelled=labelled)
        through = next((f for f, _ in eyes.methods if f.spec == method.spec or _unsketched(f) == method.spec), None)
        if through is None:
            of = a.name if has_no_weights(a) else b.name
            raise MisuseError(f"only a sketch is left of {of}: {_held([f for f, _ in eyes.methods], method)}")
        seen = [eyes.observe(self.party(m), self.given) for m in (a, b)]
        if labelled and seen[0].shape != seen[1].shape:
            eyes = replace(eyes, labelled=False)
            seen = [eyes.observe(self.party(m), self.given) for m in (a, b)]
        key = through.spec.digest
        lacking = [s for s in seen if key not in s.fingerprints]
        if lacking:
            raise MisuseError(next(iter(lacking[0].missing.values()), f"nothing of {lacking[0].name} is kept"))
        return measure(seen[0].fingerprints[key], seen[1].fingerprints[key])


def _side_by_side(
    found: Comparison, function: Evidence | str, by_dna: Evidence | str, alpha: float
) -> Comparison:  # fmt: skip
    """The better of two pieces of evidence decides, which one is settled by what can be asked; the other is listed."""
    if isinstance(by_dna, str):
        return both_axes(found, function, alpha)
    if not by_dna.details["decides"] and not isinstance(function, str):
        seen = both_axes(found, function, alpha)
        return replace(seen, evidence=(*seen.evidence, by_dna))
    why = by_dna.details["decides"]
    chosen = replace(by_dna, reason=f"{by_dna.reason} (DNA decides, for {why})" if why else by_dna.reason)
    if isinstance(function, str):
        return both_axes(found, chosen, alpha)
    kept = {k: v for k, v in function.details.items() if k in BESIDE}
    seen = both_axes(found, replace(chosen, details={**kept, **chosen.details}), alpha)
    return replace(seen, evidence=(*seen.evidence, function))


def _paid(evidence: Evidence, times: int, alpha: float) -> Evidence:
    """Evidence whose p-value pays for a second search beside its own."""
    if times == 1 or evidence.p_value is None:
        return evidence
    p = min(1.0, times * evidence.p_value)
    paid = replace(evidence, p_value=p, log10_p=math.log10(p))
    if evidence.verdict is Verdict.SUPPORTED and p > alpha:
        why = (
            f"{evidence.reason}; twice that p-value, for two tests were used, is above {alpha:g}: give more null models"
        )
        return replace(paid, verdict=Verdict.INCONCLUSIVE, reason=why)
    return paid


def _unsketched(method: "AbstractFingerprinter") -> object:
    """The spec of the method that a sketch is of."""
    return replace(method, sketch=0).spec if hasattr(method, "sketch") else method.spec  # ty: ignore


def _held(methods: "Sequence[AbstractFingerprinter]", wanted: "AbstractFingerprinter") -> str:
    """What a sketch holds instead of what was asked for."""
    for method in methods:
        if method.name == wanted.name:
            own, other = method.spec.params, wanted.spec.params
            differ = [k for k in own if own[k] != other.get(k) and k != "sketch"]
            held = " ".join(f"-P {k}={own[k]}" for k in differ)
            return f"it holds {method.name} with {held}, not {' '.join(f'{k}={other[k]}' for k in differ)}"
    return f"it holds {', '.join(dict.fromkeys(m.name for m in methods))}, not {wanted.name}"


def _network_digest(model: Model) -> Digest | None:
    try:
        return model.network.digest
    except StemmaError:
        return None

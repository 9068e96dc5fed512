"""The function axis with what a registry keeps: functional sketches, control models, distances."""

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
from stemma.fingerprints.dna import MIN_PROBES
from stemma.kinship.axes import FORGOTTEN, both_axes
from stemma.kinship.compare import function_of, reason_not_comparable, with_forgotten, with_partitions
from stemma.kinship.function import combined
from stemma.kinship.function.asked_once import AskedOnce
from stemma.kinship.function.closer_than_independent import ObservationPlan
from stemma.kinship.function.closest_of_many import ClosestOfMany
from stemma.kinship.function.label_observations import observe_labels
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.kinship.function.partition_agreement import PartitionAgreement
from stemma.kinship.function.selection import Selection
from stemma.kinship.function.sketches import FunctionalSketch
from stemma.measures.base import AbstractMeasure, summarise
from stemma.registry import Registry
from stemma.registry.model_records import has_no_weights
from stemma.registry.records import Progress
from stemma.types import Comparison, Digest, Distance, Evidence, Fingerprint, Verdict
from stemma.workspace.control_models import ControlSelection
from stemma.workspace.dna_evidence import DnaAxis

if TYPE_CHECKING:
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.probes import Probes

KEPT_DETAILS = (FORGOTTEN, "agreement", "accuracy", "null_agreement", "null_accuracy", "measures", "missing_measures")
"""Details of outputs and fields that are kept where DNA decides."""

Nulls = str | Sequence[Path | Model] | NullModels | None
"""A recipe of the zoo, paths and models, or None for enrolled models."""


@dataclass(frozen=True)
class FunctionAxis:
    """Compares models on probes, with what a registry keeps of them; `alpha` is the level of decisions."""

    registry: Registry
    probes: "Probes | Selection"
    alpha: float
    progress: Progress
    enrolled: Callable[[], Sequence[Candidate]]

    @property
    def given_probes(self) -> "Probes":
        """The probes without their selection."""
        return self.probes.probes if isinstance(self.probes, Selection) else self.probes

    @cached_property
    def dna(self) -> DnaAxis:
        """The DNA of the same models."""
        return DnaAxis(self.registry, self.given_probes, self.alpha)

    def stored_sketch(self, model: Digest) -> Fingerprint | None:
        """The functional sketch that is kept of a model for these probes, or None."""
        return self.registry.functional(model, self.given_probes.digest, FunctionalSketch.of(self.given_probes).spec)

    def party(self, model: Model) -> Subject:
        """A model to be compared, or what is kept of it where its weights are gone."""
        if model.black_box:
            return Subject.of(model)
        without_weights = has_no_weights(model)
        stored_sketch = self.stored_sketch(model.digest)
        if not without_weights and stored_sketch is not None and stored_sketch.model != _network_digest(model):
            stored_sketch = None  # kept of the same weights, run by other code
        return Subject(model.name, None if without_weights else lambda: model, stored_sketch)

    def enrolled_party(self, c: Candidate) -> Subject:
        """An enrolled model to be compared: what is kept of its function, else the model itself."""
        stored_sketch = self.stored_sketch(c.ref.digest)
        if stored_sketch is not None:
            return Subject(c.ref.name, None, stored_sketch)
        return replace(self.party(c.load()), name=c.ref.name)

    def control_models(self, models: Sequence[Model], null: Nulls, candidates: Sequence[Candidate] = ()) -> NullModels:
        """Control models for a question."""
        choose = ControlSelection(self.registry, self.enrolled_party, self.progress)
        return choose(models, self.given_probes, null, self.alpha, candidates, self.enrolled)

    def on_pair(self, comparison: Comparison, a: Model, b: Model, null: Nulls) -> Comparison:
        """The comparison of a pair by weights, completed with the function axis."""
        sketched = False
        asked = AskedOnce(self.given_probes, lambda s: self._keep(s, sketched=sketched))
        parties = asked.party(self.party(a)), asked.party(self.party(b))
        if why := reason_not_comparable(*parties):
            return both_axes(comparison, why, self.alpha)
        chosen = asked.controls(self.control_models([a, b], null))
        sketched = any(p.load is None for p in (*parties, *chosen))
        function = function_of(*parties, self.probes, chosen, alpha=self.alpha, progress=self.progress)
        if any(m.black_box for m in (a, b)) and not isinstance(function, str) and not function.details["measures"]:
            labels = PartitionAgreement(self.alpha)(*parties, self.probes, chosen)  # all that labels alone can show
            return both_axes(comparison, labels, self.alpha)
        by_dna = self.dna.on_pair(*parties, chosen, [a.digest, b.digest])
        updated = _combine(comparison, function, by_dna, self.alpha)
        updated = with_partitions(updated, *parties, self.probes, chosen, alpha=self.alpha)
        updated = self._with_modalities(updated, a, b)
        unloadable = [p.name for p in parties if p.load is None]
        if unloadable and updated.function is not None:
            updated = replace(
                updated,
                cannot_see=(
                    *updated.cannot_see,
                    f"the function of {' and '.join(unloadable)}, of which only a functional sketch is kept",
                ),
            )
        return updated

    def _with_modalities(self, comparison: Comparison, a: Model, b: Model) -> Comparison:
        """Add whether both rely on the same modalities, where the probes have several."""
        if not self.given_probes.parts or self.given_probes.labelled:
            return comparison
        from stemma.multimodal.contribution import ContributionTest

        try:
            leaning = ContributionTest().compare(a, b, self.given_probes, self.alpha)
        except StemmaError as error:
            return replace(comparison, cannot_see=(*comparison.cannot_see, f"modality shares ({error})"))
        return replace(comparison, evidence=(*comparison.evidence, leaning))

    def on_search(self, suspect: Model, candidates: Sequence[Candidate], null: Nulls) -> Mapping[int, Evidence | str]:
        """Evidence on a suspect and each candidate by its `id`, corrected for their number; or why there is none."""
        asked = AskedOnce(self.given_probes, lambda s: self._keep(s, sketched=None))
        own = asked.party(self.party(suspect))
        if why := reason_not_comparable(own):
            return {id(c): why for c in candidates}
        chosen = asked.controls(self.control_models([suspect], null, candidates=candidates))
        parties = [self.candidate_party(c, asked) for c in candidates]
        comparison = ClosestOfMany(self.alpha)(own, parties, self.given_probes, chosen, self.progress)
        pairs = [(p, c.ref.digest) for c, p in zip(candidates, parties, strict=True)]
        by_dna = self.dna.on_search(own, pairs, chosen, suspect.digest)
        deciding = {i for i, e in by_dna.items() if e.details["decides"]}
        times = 2 if 0 < len(deciding) < len(comparison) else 1  # two searches, each at its own level, share alpha
        out: dict[int, Evidence | str] = {}
        for i, (c, party, evidence) in enumerate(zip(candidates, parties, comparison, strict=True)):
            best = by_dna[i] if i in deciding else evidence
            out[id(c)] = best if isinstance(best, str) else _with_doubled_p(best, times, self.alpha)
            if i not in deciding and not isinstance(evidence, str):
                out[id(c)] = with_forgotten(_with_doubled_p(evidence, times, self.alpha), party, own, self.given_probes)
        return out

    def _keep(self, subject: Subject, *, sketched: bool | None) -> None:
        """Take what later methods need of a model that is loaded: its DNA, and its labels unless `sketched` is None."""
        if len(self.given_probes) >= MIN_PROBES:
            self.dna.fingerprint(subject)
        if sketched is None:
            return
        probes = self.given_probes
        used = FunctionalSketch.of(probes).probes(probes) if sketched else probes
        with contextlib.suppress(StemmaError):  # the error is reported where labels are compared
            subject.kept["labels", used.digest] = observe_labels(subject, probes, used)

    def candidate_party(self, c: Candidate, asked: AskedOnce) -> Subject:
        """A candidate with its sketch, which is kept where the candidate is enrolled."""
        party = asked.other(self.enrolled_party(c))
        if party.sketch is not None or party.load is None:
            return party
        with contextlib.suppress(StemmaError):  # the error is reported when the model is compared
            made = ObservationPlan.of(self.given_probes, sketched=True, labelled=False).sketched(
                party, self.given_probes
            )
            with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
                if self.registry.by_digest(c.ref.digest):
                    self.registry.put_functional(c.ref.digest, made)
            return replace(party, sketch=made)
        return party

    def distance(
        self, a: Model, b: Model, method: "AbstractFingerprinter | None", measure: AbstractMeasure | None
    ) -> Distance:
        """Functional distance of two models; where one is gone, that of the kept sketches, as its spec says."""
        if method is None:
            method, default = combined.METHODS[0]
            measure = measure or default
        if measure is None:
            measure = next((m for f, m in combined.METHODS if f.produces == method.produces), None)
        if measure is None:
            raise MisuseError(f"{method.name} has no default measure: give one with --measure")
        if has_no_weights(a) or has_no_weights(b):
            return self._of_sketches(a, b, method, measure)
        if not measure.probewise:
            return measure(method(a, self.given_probes), method(b, self.given_probes))
        from stemma.measures.pairwise import pairwise

        comparison = pairwise([a, b], self.given_probes, method, measure)
        ends = [Fingerprint(m.network.digest, self.given_probes.digest, method.spec, {}) for m in (a, b)]
        return summarise(*ends, measure.spec, comparison.per_probe[0, 1], counted=measure.counted)

    def _of_sketches(self, a: Model, b: Model, method: "AbstractFingerprinter", measure: AbstractMeasure) -> Distance:
        labelled = self.given_probes.labels is not None
        views = ObservationPlan.of(self.given_probes, sketched=True, labelled=labelled)
        fingerprinter = next(
            (f for f, _ in views.methods if f.spec == method.spec or _spec_without_sketch(f) == method.spec), None
        )
        if fingerprinter is None:
            of = a.name if has_no_weights(a) else b.name
            raise MisuseError(
                f"only a functional sketch of {of} is kept: {_sketch_contents([f for f, _ in views.methods], method)}"
            )
        observations = [views.observe(self.party(m), self.given_probes) for m in (a, b)]
        if labelled and observations[0].shape != observations[1].shape:
            views = replace(views, labelled=False)
            observations = [views.observe(self.party(m), self.given_probes) for m in (a, b)]
        key = fingerprinter.spec.digest
        lacking = [s for s in observations if key not in s.fingerprints]
        if lacking:
            raise MisuseError(
                next(
                    iter(lacking[0].missing.values()),
                    f"no functional sketch of {lacking[0].name} is kept for these probes",
                )
            )
        return measure(observations[0].fingerprints[key], observations[1].fingerprints[key])


def _combine(
    comparison: Comparison, function: Evidence | str, by_dna: Evidence | str, alpha: float
) -> Comparison:  # fmt: skip
    """Of two pieces of evidence the better one decides, by the kind of models; the other is listed."""
    if isinstance(by_dna, str):
        return both_axes(comparison, function, alpha)
    if not by_dna.details["decides"] and not isinstance(function, str):
        updated = both_axes(comparison, function, alpha)
        return replace(updated, evidence=(*updated.evidence, by_dna))
    why = by_dna.details["decides"]
    chosen = replace(by_dna, reason=f"{by_dna.reason} (Model DNA decides, because {why})" if why else by_dna.reason)
    if isinstance(function, str):
        return both_axes(comparison, chosen, alpha)
    stored_sketch = {k: v for k, v in function.details.items() if k in KEPT_DETAILS}
    updated = both_axes(comparison, replace(chosen, details={**stored_sketch, **chosen.details}), alpha)
    return replace(updated, evidence=(*updated.evidence, function))


def _with_doubled_p(evidence: Evidence, times: int, alpha: float) -> Evidence:
    """Evidence whose p-value is corrected for a second search."""
    if times == 1 or evidence.p_value is None:
        return evidence
    p = min(1.0, times * evidence.p_value)
    paid = replace(evidence, p_value=p, log10_p=math.log10(p))
    if evidence.verdict is Verdict.SUPPORTED and p > alpha:
        why = f"{evidence.reason}; doubled for two tests, the p-value is above {alpha:g}: give more control models"
        return replace(paid, verdict=Verdict.INCONCLUSIVE, reason=why)
    return paid


def _spec_without_sketch(method: "AbstractFingerprinter") -> object:
    """The spec of the method that a sketch is of."""
    return replace(method, sketch=0).spec if hasattr(method, "sketch") else method.spec  # ty: ignore


def _sketch_contents(methods: "Sequence[AbstractFingerprinter]", wanted: "AbstractFingerprinter") -> str:
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

"""Test of a pair: is B closer to A in function than independently trained models are?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import numpy as np

from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.evaluation import compute_outputs
from stemma.kinship.function import combined
from stemma.kinship.function.beyond_labels import beyond_labels
from stemma.kinship.function.consensus import roots
from stemma.kinship.function.few_controls import ASSUMPTION, FEWEST, NORMALITY
from stemma.kinship.function.null_models import CLAIM, NullModels, Subject, check_alpha, models_needed, too_few_sentence
from stemma.kinship.function.observations import (
    CONSTANT_ANSWERS,
    Methods,
    Observation,
    Progress,
    agreement,
    constant_answers,
    distance,
    mean_distances,
    observe,
    observe_each,
    without_fields,
)
from stemma.kinship.function.rank_test import (
    TASK_MARGIN,
    NullModelDistances,
    RankTest,
    distance_entry,
    null_summary,
    rank_test,
    same_task,
)
from stemma.kinship.function.selection import Selection
from stemma.kinship.function.sketches import FunctionalSketch, from_sketch
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict

MEMORY = 1 << 27
"""Bytes that the fields of one model may take (three are held at a time); larger ones are compared by sketches."""


@dataclass(frozen=True, eq=False)
class ObservationPlan:
    """How one test observes its models: the same way for all of them.

    Attributes:
        methods: Fingerprinters and measures.
        probes: The inputs.
        sketch: The sketch that is compared instead of whole gradient fields; None for whole fields.
        labelled: Whether the labels are used.
    """

    methods: Methods
    probes: Probes
    sketch: FunctionalSketch | None
    labelled: bool

    @classmethod
    def of(cls, probes: Probes, *, sketched: bool, labelled: bool) -> "ObservationPlan":
        """The methods of the test on whole fields, or on sketches."""
        if not sketched:
            return cls(combined.METHODS, probes, None, labelled)
        sketch = FunctionalSketch.of(probes)
        return cls(sketch.methods, sketch.probes(probes), sketch, labelled)

    def observe(self, subject: Subject, probes: Probes) -> Observation:
        """Observe one model; raises `StemmaError` if it cannot be run, or is gone without a sketch."""
        if self.sketch is None:
            if subject.load is None:
                raise StemmaError(f"the weights of {subject.name} are not available, only its sketch")
            return observe(subject.load(), probes, self.methods, labelled=self.labelled)
        return from_sketch(self.sketched(subject, probes), subject.name, probes.kind, labelled=self.labelled)

    def sketched(self, subject: Subject, probes: Probes) -> Fingerprint:
        """The model's functional sketch: the stored one where it fits, else computed."""
        method, kept = self.sketch or FunctionalSketch.of(probes), subject.sketch
        if kept is not None and kept.spec.digest == method.spec.digest and kept.probes == probes.digest:
            return kept
        if subject.load is None:
            raise StemmaError(
                f"{subject.name} is no longer available, and no functional sketch for these probes is stored"
            )
        return method(subject.load(), probes)


def output_shape(subject: Subject, probes: Probes) -> tuple[int, ...]:
    """Shape of one answer of a model, without the probe axis."""
    if subject.load is not None:
        return compute_outputs(subject.load(), probes.take(slice(0, 1))).shape[1:]
    kept = subject.sketch
    return () if kept is None else tuple(int(s) for s in np.asarray(kept.values["shape"]))


def labels_apply(a: tuple[int, ...], b: tuple[int, ...], probes: Probes) -> bool:
    """Whether the labels are valid for both models: equal output shapes with one score per class."""
    return probes.labels is not None and a == b and len(a) == 1 and int(probes.labels.max(initial=0)) < a[0]


def _refuse_labels(a: tuple[int, ...], b: tuple[int, ...], probes: Probes, names: str) -> None:
    if probes.labels is not None and a == b and len(a) == 1 and not labels_apply(a, b, probes):
        raise MisuseError(
            f"the probes have labels up to {int(probes.labels.max())}, but {names} have {a[0]} outputs: "
            "give probes with labels in that range, or omit the labels"
        )


def fields_too_large(probes: Probes, *subjects: Subject) -> bool:
    """Whether the gradient fields of one model would exceed `MEMORY`."""
    steps = sum(getattr(f, "steps", 1) for f, _ in combined.METHODS if f.produces == "field")
    width = 1
    if probes.kind == "tokens":
        specs = [p.load().network.input_spec for p in subjects if p.load is not None]
        width = 1 + int(max([probes.inputs.max(initial=0), *(s.high for s in specs if s is not None)]))
    return 4 * steps * probes.inputs.size * width > MEMORY


@dataclass(frozen=True)
class CloserThanIndependent:
    """Conformal test of shared function: the rank of a pair's distance among independently trained models.

    If b was made without a, it is one more independent model, so its distance from a is exchangeable with the null
    models' distances from a; likewise for a as observed from b. Each rank test gives an exact p-value, and the larger
    is reported: it is valid if either assumption holds. Null models stand in for a model only if they have its output
    shape. They must have its architecture in one of the rank tests (which then decides) and, where true labels are
    known, about its accuracy. Otherwise the test is inconclusive, because task or architecture alone reduces distances.

    Several distances are combined by `combined.statistics`, which treats the m + 1 models alike.
    Cost: all fingerprints of the pair and of every null model.

    Attributes:
        alpha: Significance level.
        task_margin: How far the median accuracy of the null models may lie below the model's.
    """

    alpha: float = 0.01
    task_margin: float = TASK_MARGIN

    name = "closer-than-independent"
    version = 3

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    @property
    def spec(self) -> Spec:
        """Identity of the test, its level and all methods."""
        return Spec(self.name, self.version, combined.identity(self))

    def __call__(
        self, a: Subject, b: Subject, probes: Probes | Selection, null: NullModels, progress: Progress | None = None
    ) -> Evidence:
        """Test a pair.

        Args:
            a: The first model.
            b: The second model.
            probes: Inputs of all models; a selection refuses null models that it was made on.
            null: Independently trained models.
            progress: Called with a message, the number of models done and their total.

        Returns:
            `SUPPORTED` where p <= alpha, else `INCONCLUSIVE`: the test never proves independence.

        Raises:
            MisuseError: If the labels are out of range, or the null models were used to select the probes.
            StemmaError: If a or b cannot be run on these probes.
        """
        selection = probes if isinstance(probes, Selection) else None
        probes = probes.probes if isinstance(probes, Selection) else probes
        sketched = fields_too_large(probes, a, b) or any(p.load is None for p in (a, b, *null))
        output_shapes = output_shape(a, probes), output_shape(b, probes)
        _refuse_labels(*output_shapes, probes, f"{a.name} and {b.name}")
        plan = ObservationPlan.of(probes, sketched=sketched, labelled=labels_apply(*output_shapes, probes))
        one, two = plan.observe(a, probes), plan.observe(b, probes)
        measured: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def observed(subject: Subject) -> Observation:
            found = plan.observe(subject, probes)
            both = mean_distances(one, found, plan.methods), mean_distances(found, two, plan.methods)
            slim = replace(without_fields(found), roots=roots(found))  # the fields of one control at a time
            measured[id(slim)] = both
            return slim

        observations, left_out = observe_each(null, observed, (one, two), progress)
        if selection is not None:
            selection.refuse_used([(o.name, o.digest) for o in observations])
        distances = [NullModelDistances(o, *measured[id(o)]) for o in observations]
        return self.evidence(plan, one, two, distances, NullModels(null.source, (), tuple(left_out)))

    def evidence(
        self,
        plan: ObservationPlan,
        a: Observation,
        b: Observation,
        seen: Sequence[NullModelDistances],
        null: NullModels,
    ) -> Evidence:
        """Evidence from observations of the pair and of the null models."""
        pair = mean_distances(a, b, plan.methods)
        views = (
            rank_test(b, a, pair, [(s.observation, s.from_a) for s in seen], plan.probes, models_needed(self.alpha)),
            rank_test(a, b, pair, [(s.observation, s.from_b) for s in seen], plan.probes, models_needed(self.alpha)),
        )
        tested = [v for v in views if v.p_value is not None]
        if any(v.same_architecture for v in tested):
            tested = [v for v in tested if v.same_architecture is not False]
        enough = models_needed(self.alpha)
        deciding = max(tested, key=lambda v: v.deciding_p_value(enough) or 0.0) if tested else views[0]
        p, size = deciding.deciding_p_value(enough), deciding.size if tested else 0
        least = min((v.size for v in tested), default=0)
        shown = [distance(a, b, f, m) for f, m in plan.methods]
        value = next((d.value for d in shown if d is not None), 0.0)
        verdict, reason = self._verdict(p, size, least, tested, deciding, null)
        if p is not None and p <= self.alpha and constant_answers(a, b, plan.methods):
            verdict, reason = Verdict.INCONCLUSIVE, CONSTANT_ANSWERS
        missing = {**a.missing, **b.missing}
        if not np.isfinite(pair).any():
            reason = (
                f"no measure applies to both models: {'; '.join(missing.values()) or 'every distance is undefined'}"
            )
        entries = [
            {**distance_entry(d), **null_summary(deciding.null[:, i])} for i, d in enumerate(shown) if d is not None
        ]
        details: dict[str, Any] = {
            "measures": entries, "n_probes": len(plan.probes), "labels": _labels(plan),
            "agreement": agreement(a, b), "accuracy": [views[1].accuracies[0], views[0].accuracies[0]],
            "null_agreement": deciding.agreements[1], "null_accuracy": deciding.accuracies[1],
            "views": [v.to_dict() for v in views], "null_models": [s.observation.name for s in seen],
            "left_out": list(null.left_out), "missing_measures": missing, "sketched": plan.sketch is not None,
            "null_models_missing": max(0, models_needed(self.alpha) - least),
            "same_task": _same_task(tested, self.task_margin),
            "same_architecture": [v.same_architecture for v in tested],
            "p_values": _p_values(deciding, enough),
        }  # fmt: skip
        if (beyond := beyond_labels(a, b, plan.probes)) is not None:
            details["beyond_labels"] = beyond.to_dict()
        kept = Null(null.source, size, 1 / (size + 1), tuple(sorted(deciding.statistics)))
        effect = min((v.effect for v in tested), default=0.0)
        return Evidence(
            claim=CLAIM,
            axis=Axis.FUNCTION,
            statistic=self.name,
            value=value,
            null=kept,
            p_value=p,
            log10_p=None if p is None else log10(p),
            effect=effect,
            verdict=verdict,
            reason=reason,
            spec=self.spec,
            inputs=(a.digest, b.digest),
            details=details,
        )

    def _verdict(
        self,
        p: float | None,
        size: int,
        least: int,
        tested: Sequence[RankTest],
        deciding: RankTest,
        null: NullModels,
    ) -> tuple[Verdict, str]:
        lacking = models_needed(self.alpha) - least
        if p is None:
            why = f" ({len(null.left_out)} were left out)" if null.left_out else ""
            return Verdict.INCONCLUSIVE, (
                f"no control model to compare with{why}: {lacking} are needed for alpha {self.alpha:g} (from {FEWEST} "
                "on a normal law is tried)"
            )
        enough = models_needed(self.alpha)
        as_near = sum(v <= (deciding.statistic or 0.0) for v in deciding.statistics)
        near = f"{as_near or 'none'} of {size} control models {{}} as close"
        if lacking > 0 and not all(v.size >= enough or v.extrapolates(enough) for v in tested):
            few = _not_extrapolated(tested, least, lacking, self.alpha)
            return Verdict.INCONCLUSIVE, f"{near.format('are')}, and {few}" if as_near else few
        if lacking > 0 and p > self.alpha:
            return Verdict.INCONCLUSIVE, (
                f"none of {size} control models is as close, but {_extrapolated(p)}, above {self.alpha:g}; "
                f"{too_few_sentence(least, 1 / (least + 1), lacking, self.alpha)}"
            )
        if p > self.alpha:
            return Verdict.INCONCLUSIVE, f"{near.format('are')}; this does not prove independence"
        if _same_task(tested, self.task_margin) is False:
            rates = ", ".join(f"{v.model} {v.accuracies[0]:.0%} against {v.accuracies[1]:.0%}" for v in tested)
            return Verdict.INCONCLUSIVE, (
                f"{near.format('is')}, but their accuracy is {_higher_or_lower(tested)} ({rates}), so the shared task "
                "may explain the closeness: give control models of the same task"
            )
        if all(v.same_architecture is False for v in tested):
            return Verdict.INCONCLUSIVE, (
                f"{near.format('is')}, but they have other architectures, which may explain the closeness: give "
                f"{models_needed(self.alpha)} control models with the architecture of {tested[0].model} or "
                f"{tested[0].observer}"
            )
        if all(v.stands_in is False for v in tested):
            return Verdict.INCONCLUSIVE, (
                f"{near.format('is')}, but they answer otherwise than {deciding.model}, which they stand for, so their "
                f"training or data may explain the closeness: give control models that were trained as {deciding.model}"
                " was"
            )
        if lacking > 0:
            return Verdict.SUPPORTED, f"{near.format('is')}, and {_extrapolated(p)}"
        return Verdict.SUPPORTED, near.format("is")


def _extrapolated(p: float) -> str:
    return f"p = {p:.2g} if {ASSUMPTION}"


def _not_extrapolated(tested: Sequence[RankTest], least: int, lacking: int, alpha: float) -> str:
    """Why the control models are too few, and nothing was extrapolated from them."""
    few = too_few_sentence(least, 1 / (least + 1), lacking, alpha)
    if any(v.law is not None and not v.law.fits for v in tested):
        return f"{few} (their log distances follow no normal law, p < {NORMALITY:g}, so nothing is extrapolated)"
    if 0 < least < FEWEST:
        return f"{few} (from {FEWEST} on a normal law is tried)"
    return few


def _p_values(deciding: RankTest, enough: int) -> dict[str, Any]:
    """Both p-values of the view that decides, which of them counts, and what that assumes."""
    by_law, tested = deciding.extrapolates(enough), deciding.p_value is not None
    return {
        "exact": deciding.p_value,
        "normal_law": None if deciding.law is None else deciding.law.p_value,
        "decides": "normal law" if by_law else "exact" if tested else None,
        "assumes": ASSUMPTION if by_law else "the control models and the model they stand for are exchangeable",
    }


def _same_task(views: Sequence[RankTest], margin: float) -> bool | None:
    """Whether the null models of at least one rank test do the task about as well; None without true labels."""
    each = [same_task(v.accuracies[0], v.observer_accuracy, v.accuracies[1], margin) for v in views]
    known = [found for found in each if found is not None]
    return any(known) if known else None


def _higher_or_lower(views: Sequence[RankTest]) -> str:
    own, null = views[0].accuracies
    return "higher" if (null or 0.0) > (own or 0.0) else "lower"


def _labels(plan: ObservationPlan) -> str:
    if plan.labelled:
        return f"stored answers of {plan.probes.labelled}" if plan.probes.labelled else "of the probes"
    return "none" if plan.probes.labels is None else "not used (the models have different outputs)"

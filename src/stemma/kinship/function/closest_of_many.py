"""Test of one suspect against many candidates by functional sketches."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

from stemma.errors import StemmaError
from stemma.kinship.function import combined
from stemma.kinship.function.closer_than_independent import ObservationPlan, labels_apply
from stemma.kinship.function.multiple_testing import CorrectedPValues, correct_for_candidates
from stemma.kinship.function.null_models import (
    CLAIM,
    NullModels,
    Subject,
    check_alpha,
    duplicate_reason,
    models_needed,
    too_few_sentence,
)
from stemma.kinship.function.observations import (
    CONSTANT_ANSWERS,
    Observation,
    Progress,
    accuracy,
    agreement,
    constant_answers,
    distance,
    identity,
    mean_distances,
)
from stemma.kinship.function.rank_test import TASK_MARGIN, distance_entry, null_summary, of_same_architecture, same_task
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict


@dataclass(frozen=True, eq=False)
class _SketchObservations:
    """One model as its sketch shows it, with the fields of the labels and without labels."""

    labelled: Observation
    unlabelled: Observation

    def given(self, labelled: bool) -> Observation:
        return self.labelled if labelled else self.unlabelled


@dataclass(frozen=True)
class ClosestOfMany:
    """Is the suspect closer to a candidate than an independent model is to its closest candidate?

    Null models take the suspect's place (see `correct_for_candidates`). So they have to be independent of suspect and
    candidates, and have the suspect's output shape, architecture and, where true labels are known, about its accuracy.
    All models are compared by functional sketches, stored or computed.

    Attributes:
        alpha: Significance level of the whole search.
        task_margin: How far the median accuracy of the null models may lie below the suspect's.
    """

    alpha: float = 0.01
    task_margin: float = TASK_MARGIN

    name = "closest-of-many"
    version = 1

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    @property
    def spec(self) -> Spec:
        """Identity of the test, its level and all methods."""
        return Spec(self.name, self.version, combined.identity(self))

    def __call__(
        self,
        suspect: Subject,
        candidates: Sequence[Subject],
        probes: Probes,
        null: NullModels,
        progress: Progress | None = None,
    ) -> list[Evidence | str]:
        """Test a suspect against all candidates.

        Args:
            suspect: The model in question.
            candidates: Its possible origins.
            probes: Inputs of all models.
            null: Independently trained models.
            progress: Called with a message, the number of models done and their total.

        Returns:
            For each candidate the evidence, with p-values corrected for the whole search, or why there is none.

        Raises:
            StemmaError: If the suspect cannot be run.
        """
        total, done = 1 + len(candidates) + len(null), iter(range(1 + len(candidates) + len(null)))

        def observed(subject: Subject) -> _SketchObservations | str:
            if progress is not None:
                progress(f"running {subject.name}", next(done), total)
            try:
                unlabelled = ObservationPlan.of(probes, sketched=True, labelled=False)
                kept = Subject(subject.name, subject.load, unlabelled.sketched(subject, probes))
                given = ObservationPlan.of(probes, sketched=True, labelled=probes.labels is not None)
                return _SketchObservations(given.observe(kept, probes), unlabelled.observe(kept, probes))
            except StemmaError as e:
                return str(e)

        own = observed(suspect)
        if isinstance(own, str):
            raise StemmaError(own)
        others = [observed(c) for c in candidates]
        shape = own.unlabelled.shape
        null_models, left_out, known = [], list(null.left_out), {identity(own.unlabelled): suspect.name}
        for n in null:
            found = observed(n)
            if isinstance(found, str):
                left_out.append(f"{n.name}: {found}")
            elif found.unlabelled.shape != shape:
                left_out.append(
                    f"{n.name}: output shape {list(found.unlabelled.shape)}, but {suspect.name} has {list(shape)}"
                )
            elif why := duplicate_reason(n.name, identity(found.unlabelled), known):
                left_out.append(why)
            else:
                null_models.append(found)
        kept, same_architecture = of_same_architecture(
            own.unlabelled, [(s.unlabelled, s) for s in null_models], models_needed(self.alpha)
        )
        left_out += [f"{s.unlabelled.name}: another architecture" for s in null_models if s not in [k for _, k in kept]]
        nulls = NullModels(null.source, (), tuple(left_out))
        return self._evidence_of_all(own, others, [s for _, s in kept], probes, nulls, same_architecture)

    def _evidence_of_all(
        self,
        own: _SketchObservations,
        others: Sequence[_SketchObservations | str],
        null_models: Sequence[_SketchObservations],
        probes: Probes,
        null: NullModels,
        same_architecture: bool | None,
    ) -> list[Evidence | str]:
        known = [c for c in others if not isinstance(c, str)]
        plan = [
            ObservationPlan.of(
                probes, sketched=True, labelled=labels_apply(own.unlabelled.shape, c.unlabelled.shape, probes)
            )
            for c in known
        ]
        methods = ObservationPlan.of(probes, sketched=True, labelled=False).methods

        def distances(query: _SketchObservations) -> np.ndarray:
            rows = [
                mean_distances(c.given(e.labelled), query.given(e.labelled), methods)
                for c, e in zip(known, plan, strict=True)
            ]
            return np.array(rows).reshape(len(known), len(methods))

        suspect = distances(own)
        table = np.array([distances(s) for s in null_models]).reshape(len(null_models), len(known), len(methods))
        for i, s in enumerate(null_models):
            for j, c in enumerate(known):
                if identity(s.unlabelled) == identity(c.unlabelled):
                    table[i, j] = suspect[j]
        result = correct_for_candidates(suspect, table, self.alpha)
        tasks = _accuracies(own, null_models, plan[0].probes if plan else probes)
        evidence = iter([
            self._evidence(j, own, c, e, methods, suspect, table, result, (tasks, same_architecture), null)
            for j, (c, e) in enumerate(zip(known, plan, strict=True))
        ])  # fmt: skip
        return [c if isinstance(c, str) else next(evidence) for c in others]

    def _evidence(
        self, j: int, own: _SketchObservations, c: _SketchObservations, plan: ObservationPlan, methods: Any,
        suspect: np.ndarray, table: np.ndarray, result: CorrectedPValues,
        known: tuple[tuple[float | None, float | None], bool | None], null: NullModels,
    ) -> Evidence:  # fmt: skip
        tasks, same_architecture = known
        a, b = c.given(plan.labelled), own.given(plan.labelled)
        size = len(table)
        p = float(result.p_values[j]) if np.isfinite(result.p_values[j]) else None
        shown = [(d, i) for i, (f, m) in enumerate(methods) if (d := distance(a, b, f, m)) is not None]
        measures, gone = [], []
        for d, i in shown:
            beside = table[:, j, i]
            measures.append({**distance_entry(d), **null_summary(beside)})
            middle = measures[-1].get("null_median")
            gone += [1 - d.value / middle] if middle else []
        same = same_task(tasks[0], accuracy(a, plan.probes), tasks[1], self.task_margin)
        verdict, reason = self._verdict(p, size, result, (*tasks, same), same_architecture)
        if verdict is Verdict.SUPPORTED and constant_answers(a, b, methods):
            verdict, reason = Verdict.INCONCLUSIVE, CONSTANT_ANSWERS
        single = result.uncorrected[j]
        details = {
            "measures": measures, "corrected_for": len(suspect), "correction": result.method,
            "uncorrected_p_value": float(single) if np.isfinite(single) else None,
            "agreement": agreement(a, b), "accuracy": [accuracy(a, plan.probes), tasks[0]], "null_accuracy": tasks[1],
            "missing_measures": {**a.missing, **b.missing}, "same_task": same,
            "labels_used": plan.labelled, "n_probes": len(plan.probes),
            "same_architecture": same_architecture, "left_out": list(null.left_out),
            "null_models_missing": max(0, models_needed(self.alpha) - size), "sketched": True,
        }  # fmt: skip
        effect = float(np.clip(np.mean(gone), 0, 1)) if gone else 0.0
        kept = Null(
            null.source, size, result.smallest_p, tuple(sorted(v for v in result.null[:, j].tolist() if v == v))
        )
        value = shown[0][0].value if shown else 0.0
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
        result: CorrectedPValues,
        tasks: tuple[Any, Any, bool | None],
        same_architecture: bool | None,
    ) -> tuple[Verdict, str]:
        lacking = models_needed(self.alpha) - size
        if size == 0:
            return Verdict.INCONCLUSIVE, f"no control model to compare with: {lacking} are needed"
        if p is None:
            return Verdict.INCONCLUSIVE, "no measure applies to both models"
        if lacking > 0:
            return Verdict.INCONCLUSIVE, too_few_sentence(size, result.smallest_p, lacking, self.alpha)
        if p > self.alpha:
            return Verdict.INCONCLUSIVE, f"control models are as close to one of the candidates (p = {p:.3g})"
        near = f"closer than {size} control models are to any candidate (p = {p:.3g})"
        if tasks[2] is False:
            how = "higher" if tasks[1] > tasks[0] else "lower"
            return Verdict.INCONCLUSIVE, (
                f"{near}, but their accuracy is {how} ({tasks[1]:.0%} against {tasks[0]:.0%}), so the shared task may "
                "explain the closeness: give control models of the same task"
            )
        if same_architecture is False:
            return Verdict.INCONCLUSIVE, (
                f"{near}, but they have other architectures than the model in question, which may explain the closeness"
            )
        return Verdict.SUPPORTED, near


def _accuracies(
    own: _SketchObservations, null_models: Sequence[_SketchObservations], probes: Probes
) -> tuple[float | None, float | None]:
    null = [found for s in null_models if (found := accuracy(s.unlabelled, probes)) is not None]
    return accuracy(own.unlabelled, probes), float(np.median(null)) if null else None

"""Provenance from hard labels alone: does a suspect share more of a model's partition of the probes than controls?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import log10
from typing import Any, Literal

import numpy as np

from stemma.errors import MisuseError
from stemma.kinship.function.label_observations import (
    PartitionComparison,
    compare_with_controls,
    constant_labels,
    observe_labels,
    recorded_labels,
    subsampled,
)
from stemma.kinship.function.null_models import (
    CLAIM,
    NullModels,
    Subject,
    check_alpha,
    duplicate_reason,
    models_needed,
    too_few_sentence,
)
from stemma.kinship.function.observations import CONSTANT_ANSWERS, Observation, Progress, agreement, observe_each
from stemma.kinship.function.partitions import PARTS, adjusted_rand
from stemma.kinship.function.rank_test import TASK_MARGIN, same_task
from stemma.kinship.function.selection import Selection
from stemma.kinship.function.sketches import FunctionalSketch
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict

SMALLEST_DOUBLE = 5e-324
"""No p-value is below the smallest double."""

POSITIONS = 32
"""Default number of evenly spaced positions of a sequence that are used: neighbours add little."""


@dataclass(frozen=True)
class PartitionAgreement:
    """The black-box test of provenance, for classifiers of any label space and for next tokens.

    A model's hard labels partition the probes. The candidate and the controls, which stand in for it, are compared by
    how well their partition predicts the suspect's, probe by probe. Names of classes do not matter, so a new head with
    other classes can be tested. There are two p-values:

    - over models: the rank among the controls, exact if the candidate is exchangeable with them, for any probes;
    - over probes: one-sided paired tests that the candidate exceeds *every* control on further probes. The largest
      p-value is valid for that claim (intersection-union test); `holm` corrects them for their number as the source
      does, which costs power.

    The first generalises to independent models, the second only to these controls: an independent candidate exceeds
    all m with probability 1 / (m + 1), and enough probes make that significant. Provenance is claimed only where all
    controls are exceeded. Controls stand in for a model only with its output shape, and its architecture where there
    are enough.

    Cost: one forward pass per model; then linear in models times probes.

    Attributes:
        alpha: Significance level.
        parts: Statistics per probe, names out of `partitions.PARTS`: `common-errors`, `information`, and
            `agreement` for heads whose labels mean the same (the published statistic).
        correction: `largest` or `holm`, of the p-values over probes.
        over: The reported p-value: over `models`, over `probes`, or `both` (the larger).
        stands_for: `first`: controls stand for the first model, the candidate, and the second observes (they are
            exchanged where no control can stand for the first). `either`: both observe in turn, and the larger p-value
            counts, which is valid if either is exchangeable with the controls.
        task_margin: How far the median accuracy of the controls may lie below the model's, and what share of the
            probes a renaming of labels may gain: where it gains more, the labels have another meaning.
        positions: Positions of a sequence that are used.

    Source: Nikolic, Baluta and Saxena 2025, arXiv:2502.00706. Departures: tests are paired; partitions, not labels,
    are compared; the test over models, which decides by default. Berger 1982 for the largest p.
    """

    alpha: float = 0.01
    parts: tuple[str, ...] = ("common-errors", "information")
    correction: Literal["largest", "holm"] = "largest"
    over: Literal["models", "probes", "both"] = "models"
    stands_for: Literal["first", "either"] = "first"
    task_margin: float = TASK_MARGIN
    positions: int = POSITIONS

    name = "partition-agreement"
    version = 1

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise MisuseError(f"parts must be one or more of {', '.join(PARTS)}, not {', '.join(self.parts) or 'none'}")
        if self.correction not in ("largest", "holm"):
            raise MisuseError(f"correction must be 'largest' or 'holm', not {self.correction!r}")
        if self.over not in ("models", "probes", "both") or self.stands_for not in ("first", "either"):
            raise MisuseError(
                f"over must be 'models', 'probes' or 'both' and stands_for 'first' or 'either', not {self.over!r} and "
                f"{self.stands_for!r}"
            )
        if self.positions < 1:
            raise MisuseError(f"positions must be at least 1, not {self.positions}")

    @property
    def spec(self) -> Spec:
        """Identity of the test with its parameters."""
        return Spec(self.name, self.version, {f.name: getattr(self, f.name) for f in fields(self)})

    def __call__(
        self, a: Subject, b: Subject, probes: Probes | Selection, null: NullModels, progress: Progress | None = None
    ) -> Evidence:
        """Test a pair.

        Args:
            a: The candidate.
            b: The suspect, which may come from it.
            probes: Inputs of all models; a selection refuses controls that it was made on.
            null: The controls: independently trained models of the same task.
            progress: Called with a message, the number of models done and their total.

        Returns:
            `SUPPORTED` where p <= alpha and all controls are exceeded, else `INCONCLUSIVE`: the test never proves
            independence.

        Raises:
            MisuseError: If the controls were used to select the probes.
            StemmaError: If a or b cannot be run on these probes.
        """
        selection = probes if isinstance(probes, Selection) else None
        given = probes.probes if isinstance(probes, Selection) else probes
        sketched = any(p.load is None for p in (a, b, *null))
        used = FunctionalSketch.of(given).probes(given) if sketched else given
        one, two = (observe_labels(p, given, used) for p in (a, b))
        observations, left_out = observe_each(null, lambda n: observe_labels(n, given, used), (one, two), progress)
        left_out += [f"{o.name}: its answers are not class scores" for o in observations if o.classes is None]
        controls = [o for o in observations if o.classes is not None]
        if selection is not None:
            selection.refuse_used([(o.name, o.digest) for o in controls])
        return self.evidence(one, two, controls, used, NullModels(null.source, (), tuple(left_out)))

    def of_labels(
        self,
        a: np.ndarray,
        b: np.ndarray,
        controls: Mapping[str, np.ndarray],
        names: tuple[str, str] = ("a", "b"),
        source: str = "labels given",
    ) -> Evidence:
        """Test recorded labels, for example of a remote service.

        Args:
            a: Labels `[n]` of the candidate, or `[n, t]` for t positions of each probe.
            b: Labels of the suspect, for the same probes.
            controls: Labels of independently trained models by name; models with equal labels on all probes count once.
            names: Of a and b.
            source: Where the controls come from, as shown to users.

        Returns:
            The evidence, as for models.

        Raises:
            MisuseError: If these are no labels of the same probes.
        """
        if twice := sorted({n for n in names if [*names, *controls].count(n) > 1}):
            raise MisuseError(f"every model needs a unique name, but {twice[0]} is given twice")
        one, two, *others = (
            recorded_labels(n, v, np.shape(a)) for n, v in ((names[0], a), (names[1], b), *controls.items())
        )
        seen, left_out, known = [], [], {}
        for s in others:
            if why := duplicate_reason(s.name, np.asarray(s.classes, np.int64).tobytes().hex(), known):
                left_out.append(why)
            else:
                seen.append(s)
        probes = Probes.of(np.zeros((len(np.asarray(a)), 1), np.float32))
        return self.evidence(one, two, seen, probes, NullModels(source, (), tuple(left_out)))

    def evidence(
        self, a: Observation, b: Observation, seen: Sequence[Observation], probes: Probes, null: NullModels
    ) -> Evidence:
        """Evidence from the labels of the pair and of the controls."""
        pair = subsampled(a, self.positions), subsampled(b, self.positions)
        views = self._views(pair, [subsampled(s, self.positions) for s in seen], probes)
        deciding = max(views, key=self.p_value) if views else None
        p = None if deciding is None else self.p_value(deciding)
        least = min((len(v.controls) for v in views), default=0)
        verdict, reason = self._verdict(a, b, views, deciding, null)
        if verdict is Verdict.SUPPORTED and constant_labels(a, b):
            verdict, reason = Verdict.INCONCLUSIVE, CONSTANT_ANSWERS
        value = adjusted_rand(*(s.classes.ravel() for s in pair)) if views else 0.0  # ty: ignore
        details: dict[str, Any] = {
            "adjusted_rand": value, "agreement": agreement(a, b), "n_probes": len(probes),
            "views": [v.to_dict() for v in views], "controls": [s.name for s in seen],
            "null_models_missing": max(0, models_needed(self.alpha) - least), "left_out": list(null.left_out),
        }  # fmt: skip
        size = 0 if deciding is None else len(deciding.controls)
        floor = 0.0 if self.over == "probes" else 1 / (size + 1)
        kept = Null(null.source, size, floor, tuple(sorted(deciding.statistics)) if deciding else ())
        effect = min((v.effect for v in views), default=0.0)
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

    def _views(
        self, pair: tuple[Observation, Observation], controls: Sequence[Observation], probes: Probes
    ) -> list[PartitionComparison]:
        """The comparisons that count; the one in which controls stand for the first model comes first."""
        how = controls, probes, self.parts, models_needed(self.alpha), self.task_margin
        first = compare_with_controls(*pair, *how)
        if self.stands_for == "first" and first is not None and first.same_architecture is not False:
            return [first]
        found = [v for v in (first, compare_with_controls(*pair[::-1], *how)) if v is not None]
        if any(v.same_architecture for v in found):
            found = [v for v in found if v.same_architecture is not False]
        return found[:1] if self.stands_for == "first" else found

    def p_value(self, rank_test: PartitionComparison) -> float:
        """p-value of one comparison: over models, over probes, or the larger of both."""
        probes = max(rank_test.p_value_over_probes(self.correction), SMALLEST_DOUBLE)
        return {
            "models": rank_test.p_value_over_models,
            "probes": probes,
            "both": max(rank_test.p_value_over_models, probes),
        }[self.over]

    def _verdict(
        self,
        a: Observation,
        b: Observation,
        views: Sequence[PartitionComparison],
        deciding: PartitionComparison | None,
        null: NullModels,
    ) -> tuple[Verdict, str]:
        for s in (a, b):
            if s.classes is None:
                return Verdict.INCONCLUSIVE, f"the answers of {s.name} are not class scores"
        if deciding is None:
            why = f" ({len(null.left_out)} were left out)" if null.left_out else ""
            return Verdict.INCONCLUSIVE, (
                f"no control model to compare with{why}: {models_needed(self.alpha)} are needed for alpha "
                f"{self.alpha:g}"
            )
        least, size = min(len(v.controls) for v in views), len(deciding.controls)
        lacking, further = models_needed(self.alpha) - least, deciding.p_value_over_probes(self.correction)
        if self.over != "probes" and lacking > 0:
            shares = f"{deciding.controls_below} of {size} control models share less of the partition"
            return Verdict.INCONCLUSIVE, f"{shares}; {too_few_sentence(least, 1 / (least + 1), lacking, self.alpha)}"
        if deciding.controls_below < size:
            return Verdict.INCONCLUSIVE, (
                f"{size - deciding.controls_below} of {size} control models share as much of the partition; this "
                "does not prove independence"
            )
        found = f"all {size} control models share less of the partition"
        if further > self.alpha and self.over != "models":
            return Verdict.INCONCLUSIVE, (
                f"{found}, but this may not hold on further probes (p = {further:.2g}): use more probes, or probes on "
                "which models differ"
            )
        if further > self.alpha:
            found += f" (may not hold on further probes: p = {further:.2g})"
        return self._explained(views, found, lacking)

    def _explained(self, views: Sequence[PartitionComparison], found: str, lacking: int) -> tuple[Verdict, str]:
        """Whether task or architecture alone may explain what is shared."""
        tasks = [same_task(v.accuracies[0], v.accuracies[1], v.accuracies[2], self.task_margin) for v in views]
        known = [t for t in tasks if t is not None]
        if known and not any(known):
            return Verdict.INCONCLUSIVE, (
                f"{found}, but their accuracy differs, so the shared task may explain it: give control models of the "
                "same task"
            )
        if all(v.same_architecture is False for v in views):
            return Verdict.INCONCLUSIVE, (f"{found}, but they have other architectures, which may explain it")
        if lacking > 0:
            found += f"; this compares with these models only: {lacking} more are needed for a general conclusion"
        return Verdict.SUPPORTED, found

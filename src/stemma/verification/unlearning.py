"""Test of unlearning: is an unlearned model distinguishable from models retrained without the forget set?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log10
from typing import Any, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict
from stemma.verification.distances import INTERNAL_VIEWS, VIEWS, Progress, ViewDistances, ViewInputs, measure_distances
from stemma.verification.equivalence import Excess, excess_over_group
from stemma.verification.few_retrained import SampleTests, SampleVerdict
from stemma.verification.permutation_test import (
    COMBINATIONS,
    TIE_TOLERANCE,
    permutation_test,
    required_group_size,
    smallest_p_value,
)
from stemma.verification.sample_answers import judge_samples
from stemma.verification.sample_distances import COUNTED

SAMPLES = "samples-of-inputs"
"""Name of the statistic where inputs are the samples: the decimal logarithm of the p-value, negated."""

CLAIM = "the model behaves as if it had never seen the forget set"


@final
@dataclass(frozen=True)
class UnlearningTest:
    """Unlearned models against models that were retrained without the forget set, by exact label permutation.

    Under the claim an unlearned model is one more draw of the retrained ones, so each of them could carry the label
    "unlearned". The statistic is how much further the labelled models are from the others than these are from each
    other, on the forget set: standardised over the labellings for each of several views, and averaged. With one
    unlearned model this is a leave-one-out rank test. Models are the unit of replication: more probes make distances
    more precise, but no p-value smaller.

    Rejection refutes the claim. Not rejecting proves nothing. The claim is supported only where the upper confidence
    limit of the excess lies below a margin set beforehand, in every view that detects the original model; one of these
    has to be a view of hidden layers, because outputs alone can be masked.

    Attributes:
        alpha: Significance level of the test and of each limit. 5 % and not the 1 % of other commands, because every
            further retrained model is a training from scratch.
        margin: Largest excess that counts as equivalent, as a fraction of the mean distance between retrained models.
        combine: How the views are joined, one of `permutation_test.COMBINATIONS`. Chosen, like the views, on networks
            and a forgotten class that no reported rate uses.
        views: Names from `distances.VIEWS`; one that cannot be computed for all models is left out.
        steps: Nodes per path of the gradient fields.
        ridge: Of the linear probe.
        unrecovered: Share of the original's hidden response that a model that never saw the forget set leaves
            unrecovered at least; decides only where there is no retrained model.
        most: Largest number of labellings that are evaluated.
        seed: Of the sample where there are more.

    Source: docs/methods/unlearning.md. The published use of gradient fields (Song et al., ICCV 2023, after Jia et al.,
    ICLR 2022) compares one distance between original and unlearned model with that of one retrained model, no null.
    """

    alpha: float = 0.05
    margin: float = 0.25
    combine: str = "mean"
    views: tuple[str, ...] = VIEWS
    steps: int = 4
    ridge: float = 0.1
    unrecovered: float = SampleTests.unrecovered
    most: int = 20_000
    seed: int = 0

    name = "retrained-permutation"
    version = 2

    def __post_init__(self) -> None:
        unknown = [v for v in self.views if v not in VIEWS]
        if unknown or not self.views:
            raise MisuseError(f"views have to be some of {', '.join(VIEWS)}, but are {', '.join(unknown) or 'none'}")
        if self.combine not in COMBINATIONS:
            raise MisuseError(f"combine has to be {' or '.join(COMBINATIONS)}, but is '{self.combine}'")
        if not 0 < self.unrecovered < COUNTED:
            raise MisuseError(f"unrecovered has to lie between 0 and {COUNTED}, but is {self.unrecovered}")
        if not 0 < self.alpha < 1 or self.margin <= 0:
            raise MisuseError(
                f"alpha has to lie between 0 and 1 and margin above 0, but they are {self.alpha} and {self.margin}"
            )

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(
        self,
        original: Model,
        unlearned: Sequence[Model],
        forget: Probes,
        retrained: Sequence[Model] = (),
        retained: Probes | None = None,
        progress: Progress | None = None,
        unseen: Probes | None = None,
    ) -> Evidence:
        """Test the claim.

        Args:
            original: The model before.
            unlearned: One model, or several runs of one method.
            forget: Inputs of the forget set, with their labels where they have any.
            retrained: Models trained in the same way without the forget set, each from its own initialisation.
            retained: The retain set, from which a linear probe separates the forget set in hidden layers.
            progress: Called with what happens, how much is done and of how much.
            unseen: Inputs of the same kind as the forget set that no model was trained on.

        Returns:
            The evidence. With fewer retrained models than the permutation needs it is `REFUTED` or `INCONCLUSIVE`.

        Raises:
            MisuseError: If nothing was given to test, a model was given twice, or the probes do not fit.
        """
        models = [*unlearned, *retrained, original]
        given_sets = {"forget": forget, "retained": retained, "unseen": unseen}
        _distinct(original, unlearned, retrained)
        given = ViewInputs(forget, retained, self.steps, self.ridge)
        measured = measure_distances(models, given, self.views, progress)
        if not measured.distances:
            reasons = "; ".join(f"{k}: {v}" for k, v in measured.unavailable.items())
            raise MisuseError(f"no view could compare the models ({reasons})")
        inputs = tuple(m.network.digest for m in models)
        report = {
            "original": original.name,
            "unlearned": [m.name for m in unlearned],
            "retrained": [m.name for m in retrained],
            "forget_probes": len(forget),
            "retained_probes": 0 if retained is None else len(retained),
            "left_out": dict(measured.unavailable),
            **_accuracies(measured, given, len(unlearned)),
        }
        found = self.conclude(measured.distances, len(unlearned), inputs, report)
        if not found.details["missing"] and unseen is None:
            return found
        tests = SampleTests(self.alpha, self.unrecovered, seed=self.seed)
        sets = {name: probes for name, probes in given_sets.items() if probes is not None}
        samples = judge_samples(tests, original, unlearned, retrained, sets, progress)
        return self.with_samples(found, samples)

    def with_samples(self, found: Evidence, samples: SampleVerdict) -> Evidence:
        """The evidence with what samples of inputs say; that decides where there are too few retrained models."""
        missing = found.details["missing"]
        details = {**found.details, "samples": samples.to_dict(self.alpha)}
        if found.verdict == Verdict.SUPPORTED and samples.verdict == Verdict.REFUTED:
            reason = f"{found.reason}, but {samples.reason}"
            return replace(found, verdict=Verdict.INCONCLUSIVE, reason=reason, details=details)
        if not missing or not samples.findings:
            return replace(found, details=details)
        decided = any(f.usable(self.alpha / len(samples.findings)) for f in samples.findings)
        p = samples.p_value if decided else None
        source = f"samples of inputs, {len(found.details['retrained'])} retrained models"
        return replace(
            found, statistic=SAMPLES, value=0.0 if p is None else -log10(p), null=Null(source, None, 0.0), p_value=p,
            log10_p=None if p is None else log10(p), effect=0.0, verdict=samples.verdict,
            reason=f"{samples.reason}. {_more(missing)}" if samples.verdict != Verdict.REFUTED else samples.reason,
            details=details,
        )  # fmt: skip

    def conclude(
        self,
        distances: Mapping[str, np.ndarray],
        suspects: int,
        inputs: Sequence[Any] = (),
        details: Mapping[str, Any] | None = None,
    ) -> Evidence:
        """The evidence from known distances.

        Args:
            distances: By view `[n, n]`, symmetric: the unlearned models first, the original last, the retrained ones
                between.
            suspects: Number of unlearned models.
            inputs: Network digests.
            details: To report beside the figures.

        Returns:
            As the test itself.
        """
        group = len(next(iter(distances.values()))) - suspects - 1
        required = required_group_size(suspects, self.alpha)
        least = smallest_p_value(suspects, group, self.most)
        null = Null(f"{group} retrained models, labels permuted", None, least)
        report = {**(details or {}), "alpha": self.alpha, "margin": self.margin, "missing": max(0, required - group)}
        if group < 2:
            report["views"] = {v: _without_group(d, suspects) for v, d in distances.items()}
            return self._evidence(0.0, null, None, 0.0, Verdict.INCONCLUSIVE, _missing(required, group, self.alpha),
                                  inputs, report)  # fmt: skip
        without_original = {v: d[:-1, :-1] for v, d in distances.items()}
        rows = [suspects + group, *range(suspects, suspects + group)]
        with_original = {v: d[np.ix_(rows, rows)] for v, d in distances.items()}
        found = permutation_test(list(without_original.values()), suspects, self.combine, self.most, self.seed)
        control = permutation_test(list(with_original.values()), 1, self.combine)
        null = Null(null.source, len(found.values), found.smallest_p_value, tuple(sorted(found.values.tolist())))
        report["control_p_value"] = control.p_value
        figures = {
            v: _figures(d, without_original[v], with_original[v], suspects, self.alpha, self.margin)
            for v, d in distances.items()
        }
        report["views"] = figures
        counted = {v: f for v, f in figures.items() if f["sees_the_original"]}
        shares = [min(1.0, max(0.0, f["share_of_original"])) for f in counted.values()]
        effect = 1 - max(shares) if shares else 0.0
        if found.smallest_p_value > self.alpha * (1 + TIE_TOLERANCE):
            verdict, reason = Verdict.INCONCLUSIVE, _missing(required, group, self.alpha)
        elif found.p_value <= self.alpha * (1 + TIE_TOLERANCE):
            over, worst = max((f["excess"], v) for v, f in figures.items())
            verdict = Verdict.REFUTED
            reason = (
                f"distinguishable from retrained models: {over:.0%} further from them than they are apart, in {worst}"
            )
        else:
            verdict, reason = self._equivalent(counted, group)
        return self._evidence(found.value, null, found.p_value, effect, verdict, reason, inputs, report)

    def _equivalent(self, counted: Mapping[str, Mapping[str, Any]], group: int) -> tuple[Verdict, str]:
        """The verdict where the test does not reject: is the excess small in views that detect the original?"""
        prefix = f"not distinguishable from {group} retrained models, but "
        if not counted:
            return Verdict.INCONCLUSIVE, prefix + "neither is the original: more probes or retrained models are needed"
        if not INTERNAL_VIEWS & set(counted):
            return (
                Verdict.INCONCLUSIVE,
                prefix + "no view of hidden layers detects the original: the class may only be hidden",
            )
        above = [v for v, f in counted.items() if f["excess_high"] >= self.margin]
        if above:
            high = max(counted[v]["excess_high"] for v in above)
            return Verdict.INCONCLUSIVE, (
                f"{prefix}the excess distance in {', '.join(above)} may be up to {high:.0%} (margin {self.margin:.0%})"
            )
        return Verdict.SUPPORTED, (
            f"equivalent to retrained models within {self.margin:.0%} in {', '.join(counted)}, views that detect the "
            "original"
        )

    def _evidence(
        self, value: float, null: Null, p: float | None, effect: float, verdict: Verdict, reason: str,
        inputs: Sequence[Any], details: Mapping[str, Any],
    ) -> Evidence:  # fmt: skip
        return Evidence(
            claim=CLAIM,
            axis=Axis.FUNCTION,
            statistic=self.name,
            value=value,
            null=null,
            p_value=p,
            log10_p=None if p is None else log10(p),
            effect=effect,
            verdict=verdict,
            reason=reason,
            spec=self.spec,
            inputs=tuple(inputs),
            details=details,
        )


def _distinct(original: Model, unlearned: Sequence[Model], retrained: Sequence[Model]) -> None:
    if not unlearned:
        raise MisuseError("no unlearned model was given")
    measured: dict[str, str] = {}
    for model in (*unlearned, *retrained):
        digest = str(model.network.digest)
        if digest in measured and model.black_box:
            raise MisuseError(f"two black boxes are called '{model.name}': give them different names")
        if digest in measured:
            raise MisuseError(
                f"{model.name} and {measured[digest]} are the same model: each must be a separate training run, "
                "because models are the unit of replication"
            )
        measured[digest] = model.name
    if str(original.network.digest) in [str(m.network.digest) for m in retrained]:
        raise MisuseError(f"{original.name} is given as the original and among the retrained models")


def _missing(required: int, group: int, alpha: float) -> str:
    have = "no retrained models were given" if group == 0 else f"{group} retrained models are too few"
    return f"{have}: rejection at {alpha:g} needs {required}, so {required - group} more are needed"


def _more(missing: int) -> str:
    return f"Only the permutation over models can support unlearning: {missing} more are needed"


def _without_group(distances: np.ndarray, suspects: int) -> dict[str, Any]:
    return {"to_original": float(distances[:suspects, -1].mean())}


def _figures(
    distances: np.ndarray, without_original: np.ndarray, with_original: np.ndarray, suspects: int, alpha: float,
    margin: float,
) -> dict[str, Any]:  # fmt: skip
    """The figures of one view: distances in the view's unit, excess as a fraction of that between retrained models."""
    found, original = (_excess(d, n, alpha) for d, n in ((without_original, suspects), (with_original, 1)))
    detects = original is not None and original.low > margin
    group = len(without_original) - suspects
    out = {
        "to_original": float(distances[:suspects, -1].mean()),
        "to_retrained": float(distances[:suspects, suspects:-1].mean()),
        "original_to_retrained": float(distances[-1, suspects:-1].mean()),
        "between_retrained": float(without_original[suspects:, suspects:].sum() / (group * (group - 1))),
        "sees_the_original": detects,
    }  # fmt: skip
    if found is None or original is None:
        inside = out["between_retrained"] or 1.0
        return {**out, "excess": out["to_retrained"] / inside - 1, "excess_low": None, "excess_high": None,
                "share_of_original": 0.0}  # fmt: skip
    share = found.share / original.share if original.share > 0 else 0.0
    return {**out, "excess": found.share, "excess_low": found.low, "excess_high": found.high,
            "share_of_original": share}  # fmt: skip


def _excess(distances: np.ndarray, suspects: int, alpha: float) -> Excess | None:
    return excess_over_group(distances, suspects, alpha) if len(distances) - suspects >= 3 else None


def _accuracies(measured: ViewDistances, given: ViewInputs, suspects: int) -> dict[str, Any]:
    """Accuracy of each kind of model, where there are labels and one score per class."""
    out: dict[str, Any] = {}
    for name, probes, answers in (
        ("forget_accuracy", given.forget, measured.outputs),
        ("retained_accuracy", given.retained, measured.retained_outputs),
    ):
        if probes is None or probes.labels is None or any(a.ndim != 2 for a in answers):
            continue
        right = np.array([(a.argmax(1) == probes.labels).mean() for a in answers])
        out[name] = {"unlearned": float(right[:suspects].mean()), "original": float(right[-1])}
        if len(right) > suspects + 1:
            out[name]["retrained"] = float(right[suspects:-1].mean())
    return out

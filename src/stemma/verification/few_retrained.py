"""Unlearning judged on samples of inputs, with no, one or a few retrained models.

The permutation of labels over models needs 19 retrained models or more. Here inputs are the samples. What is gained is
a level that holds at any number of inputs; what is lost is any knowledge of how much trainings differ, so that each
form names an assumption, and none of them ever supports unlearning: they refute, or they do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stemma.types import Verdict
from stemma.verification.sample_distances import (
    COUNTED,
    MOST_SAMPLES,
    Answers,
    blind,
    labels_differ,
    nearer_in_outputs,
    nearer_inside,
    place,
    sample_views,
    unrecovered,
)
from stemma.verification.two_sample import aggregated_mmd, mean_above_zero


@dataclass(frozen=True, slots=True)
class Finding:
    """What one form says.

    Attributes:
        form: `unseen`, `recovery` or `relative`.
        p_value: Of the unlearned models; small ones refute.
        original_p_value: Of the original in the same test: unless it is small, the test has no power here.
        control: What must not be refuted, for a person.
        control_p_value: The smallest of the models that must not be refuted; None where there are none.
        assumption: What has to hold beyond the sampling of inputs, in one sentence.
        figures: Further figures of the form.
    """

    form: str
    p_value: float
    original_p_value: float
    control: str
    control_p_value: float | None
    assumption: str
    figures: Mapping[str, float]

    def powerful(self, alpha: float) -> bool:
        """Whether the original is refuted by the same test."""
        return self.original_p_value <= alpha

    def sound(self, alpha: float) -> bool:
        """Whether nothing is refuted that must not be."""
        return self.control_p_value is None or self.control_p_value > alpha

    def named(self, alpha: float) -> str:
        """The form, with the views in which it refutes the original where it has several."""
        start = "original_p_value_"
        views = [n.removeprefix(start) for n, p in self.figures.items() if n.startswith(start) and p <= alpha]
        return f"{self.form} ({' and '.join(views)})" if views else self.form

    def usable(self, alpha: float) -> bool:
        """Whether the form may conclude anything here."""
        return self.powerful(alpha) and self.sound(alpha)


@dataclass(frozen=True, slots=True)
class SampleVerdict:
    """What all forms say together.

    Attributes:
        verdict: `REFUTED` or `INCONCLUSIVE`, never `SUPPORTED`.
        reason: In one sentence.
        p_value: The smallest, corrected for the number of forms; None where no form could be used.
        findings: By form.
        left_out: Why a form was not used, by form.
    """

    verdict: Verdict
    reason: str
    p_value: float | None
    findings: tuple[Finding, ...]
    left_out: Mapping[str, str]

    def to_dict(self, alpha: float) -> dict[str, Any]:
        """As it stands in the details of the evidence."""
        level = alpha / max(len(self.findings), 1)
        forms = {
            f.form: {**{k: v for k, v in asdict(f).items() if k != "form"},
                     "shown_to_have_power": f.powerful(level), "sound": f.sound(level)}
            for f in self.findings
        }  # fmt: skip
        return {"verdict": self.verdict.value, "reason": self.reason, "p_value": self.p_value, "forms": forms,
                "left_out": dict(self.left_out)}  # fmt: skip


@dataclass(frozen=True)
class SampleTests:
    """The three forms, and what they conclude together.

    `unseen`: a model that never saw the forget set answers it as it answers inputs of the same kind that no model was
    trained on; aggregated maximum mean discrepancy, exact by permutation. `recovery`, where there is no retrained
    model: how much of the original's hidden response to the forget set a linear map recovers, fitted on retained inputs
    only. `relative`, with one or more: is the model nearer to the original than to the retrained models? Both judge
    means of bounded values by betting, at any number of inputs.

    Attributes:
        alpha: Level, divided by the number of forms.
        unrecovered: Share of the original's hidden response that a model that never saw the forget set leaves
            unrecovered at least; chosen on networks and a class that no reported rate uses.
        permutations: Divisions that are drawn for the kernel test.
        ridge: Of the linear map, relative to the mean square of a feature vector.
        seed: Of whatever is drawn.
        describe: Whether `relative` also gives figures that decide nothing: the place of the models, and whether they
            differ from retrained ones at all.
    """

    alpha: float = 0.05
    unrecovered: float = 0.05
    permutations: int = 499
    ridge: float = 0.1
    seed: int = 0
    describe: bool = True

    def __call__(
        self,
        original: Answers,
        unlearned: Sequence[Answers],
        retrained: Sequence[Answers] = (),
        labels: Mapping[str, np.ndarray] | None = None,
        shuffled: Answers | None = None,
    ) -> SampleVerdict:
        """Judge the unlearned models.

        Args:
            original: The model before.
            unlearned: One or more runs of one method.
            retrained: Models that never saw the forget set.
            labels: True classes by set of inputs, where known.
            shuffled: A network of the same architecture that knows nothing: the control of `recovery`.

        Returns:
            The verdict with everything it rests on.
        """
        findings, left_out = [], {}
        makers: dict[str, Callable[[], Finding | str]] = {
            "unseen": lambda: self._unseen(original, unlearned, retrained, labels or {}),
            "recovery": lambda: self._recovery(original, unlearned, retrained, shuffled),
            "relative": lambda: self._relative(original, unlearned, retrained),
        }
        for name, make in makers.items():
            found = make()
            if isinstance(found, Finding):
                findings.append(found)
            else:
                left_out[name] = found
        if retrained and (why := blind((original, *unlearned, *retrained))):
            left_out["hidden layers"] = why
        return self._concluded(findings, left_out)

    def _concluded(self, findings: Sequence[Finding], left_out: Mapping[str, str]) -> SampleVerdict:
        if not findings:
            why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            return SampleVerdict(Verdict.INCONCLUSIVE, f"no test on samples was possible ({why})", None, (), left_out)
        level = self.alpha / len(findings)
        usable = [f for f in findings if f.usable(level)]
        p = min(1.0, min(f.p_value for f in usable or findings) * len(findings))
        refuting = [f for f in usable if f.p_value <= level]
        if refuting:
            found = min(refuting, key=lambda f: f.p_value)
            reason, verdict = f"{_REFUTED[found.form]}. {found.assumption}", Verdict.REFUTED
        elif usable:
            named = " and ".join(f.named(level) for f in usable)
            reason = f"not refuted by {named}, which refutes the original{self._harmless(usable, level)}"
            verdict = Verdict.INCONCLUSIVE
        else:
            reason = "; ".join(self._useless(f, level) for f in findings)
            verdict = Verdict.INCONCLUSIVE
        return SampleVerdict(verdict, reason, p, tuple(findings), left_out)

    @staticmethod
    def _harmless(usable: Sequence[Finding], level: float) -> str:
        """Whether there is a change that is none towards the original: retrained models differ among themselves too."""
        for found in usable:
            if found.figures.get("differs_p_value", 1.0) <= level:
                nearer = found.figures["nearer_to_retrained_p_value"] <= level
                return "; it differs from retrained models, but " + (
                    "is nearer to them than to the original" if nearer else "is not shown to be nearer to the original"
                )
        return ""

    @staticmethod
    def _useless(found: Finding, level: float) -> str:
        if not found.powerful(level):
            return f"{found.form} has no power here: the original itself is not refuted"
        return f"{found.form} cannot be relied on here: it refutes {found.control}"

    def _unseen(
        self, original: Answers, unlearned: Sequence[Answers], retrained: Sequence[Answers],
        labels: Mapping[str, np.ndarray],
    ) -> Finding | str:  # fmt: skip
        if "unseen" not in original.outputs:
            return "no unseen inputs of the same kind were given"
        if labels_differ(labels or {}):
            return "the labels of the forget set and of the unseen inputs differ, so they were not drawn alike"

        def p_value(model: Answers) -> float:
            pairs = [sample_views(model, name, labels) for name in ("forget", "unseen")]
            shared = [v for v in pairs[0] if v in pairs[1]]
            a, b = ([pair[v][:MOST_SAMPLES] for v in shared] for pair in pairs)
            return aggregated_mmd(a, b, self.permutations, self.seed).p_value

        return Finding(
            "unseen", _smallest(map(p_value, unlearned)), p_value(original), "a retrained model",
            _smallest(map(p_value, retrained)) if retrained else None,
            "This assumes that the unseen inputs were drawn like the forget set and that no model was trained on them.",
            {"forget": len(original.outputs["forget"]), "unseen": len(original.outputs["unseen"]),
             "smallest_p_value": 1 / (self.permutations + 1)},
        )  # fmt: skip

    def _recovery(
        self, original: Answers, unlearned: Sequence[Answers], retrained: Sequence[Answers], shuffled: Answers | None
    ) -> Finding | str:
        if retrained:
            return "the retrained models take its place"
        if why := blind((original, *unlearned)):
            return why
        lost = [unrecovered(m, original, self.ridge) for m in unlearned]

        def p_value(values: np.ndarray) -> float:
            return mean_above_zero((self.unrecovered - np.minimum(values, COUNTED)) / COUNTED, self.seed)

        nothing = None if shuffled is None else unrecovered(shuffled, original, self.ridge)
        return Finding(
            "recovery", _smallest(map(p_value, lost)), p_value(unrecovered(original, original, self.ridge)),
            "a network with shuffled weights", None if nothing is None else p_value(nothing),
            f"This assumes that a model which never saw the forget set leaves {self.unrecovered:.0%} of the original's "
            "hidden response to it unrecovered.",
            {"unrecovered": float(min(v.mean() for v in lost)), "threshold": self.unrecovered,
             **({} if nothing is None else {"shuffled_unrecovered": float(nothing.mean())})},
        )  # fmt: skip

    def _relative(self, original: Answers, unlearned: Sequence[Answers], retrained: Sequence[Answers]) -> Finding | str:
        if not retrained:
            return "no retrained models were given"
        inside = not blind((original, *unlearned, *retrained))

        def nearer(model: Answers, references: Sequence[Answers]) -> dict[str, np.ndarray]:
            found = {"outputs": nearer_in_outputs(model, original, references, self.seed)}
            return found | ({"inside": nearer_inside(model, original, references, self.ridge)} if inside else {})

        def p_value(model: Answers, references: Sequence[Answers]) -> float:
            return _smallest(mean_above_zero(v, self.seed) for v in nearer(model, references).values())

        others = [p_value(m, [r for r in retrained if r is not m]) for m in retrained] if len(retrained) > 1 else []
        seen = {view: mean_above_zero(v, self.seed) for view, v in nearer(original, retrained).items()}
        away = [mean_above_zero(-v, self.seed) for m in unlearned for v in nearer(m, retrained).values()]
        count = len(retrained)
        return Finding(
            "relative", _smallest(p_value(m, retrained) for m in unlearned), _smallest(seen.values()),
            "a retrained model", min(others, default=None),
            "This assumes that retrained models differ from each other less than from the original, "
            + ("which one of them cannot show." if count == 1 else f"as these {count} do, which are few."),
            {"nearer_to_retrained_p_value": max(away), **{f"original_p_value_{view}": p for view, p in seen.items()},
             **(self._described(original, unlearned, retrained, inside) if self.describe else {})},
        )  # fmt: skip

    def _described(
        self, original: Answers, unlearned: Sequence[Answers], retrained: Sequence[Answers], inside: bool
    ) -> dict[str, float]:
        """Where the models stand, and whether they differ from retrained ones at all."""
        places = [place(m, original, retrained, self.ridge, inside=inside) for m in unlearned]
        differs = _smallest(self._differs(m, r) for m in unlearned for r in retrained)
        return {"differs_p_value": differs, **{f"place_{v}": float(max(p[v] for p in places)) for v in places[0]}}

    def _differs(self, model: Answers, reference: Answers) -> float:
        """Do two models answer differently at all? Each answers another half of the inputs, so the test is exact."""
        halves = [
            sample_views(m, "forget", {})["outputs"][i::2][:MOST_SAMPLES] for i, m in enumerate((model, reference))
        ]
        return aggregated_mmd(halves[:1], halves[1:], self.permutations, self.seed).p_value


_REFUTED = {
    "unseen": "the forget set is answered otherwise than unseen inputs of the same kind",
    "recovery": "the hidden layers still hold the original's response to the forget set",
    "relative": "nearer to the original than to the retrained models",
}
"""By form: what a refutation means."""


def _smallest(values: Any) -> float:
    found = list(values)
    return min(1.0, min(found) * len(found))

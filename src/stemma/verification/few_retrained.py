"""Unlearning judged on samples of inputs, with no, one or a few retrained models.

The permutation of labels over models needs 19 retrained models or more. Here inputs are the samples. What is gained is
a level that holds at any number of inputs; what is lost is any knowledge of how much trainings differ, so that each
form names an assumption, and none of them ever supports unlearning: they refute, or they do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stemma.measures.jensen_shannon import JensenShannon
from stemma.measures.scores import probabilities
from stemma.types import Verdict
from stemma.verification.two_sample import aggregated_mmd, mean_above_zero

MOST_SAMPLES = 1000
"""At most so many inputs of each sample enter the kernel test, whose cost grows with their square."""

HALFWAY = 0.5
"""Place between the retrained models (0) and the original (1) beyond which a model is nearer to the original."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers and what its last hidden layer holds, by set of inputs.

    Attributes:
        name: Name of the model.
        outputs: `[n, …]` by set: `forget`, and `unseen` where given.
        features: `[n, p]` by set: `forget`, `retained` and `unseen`, as far as given; empty for a black box.
    """

    name: str
    outputs: Mapping[str, np.ndarray]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


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
    """

    alpha: float = 0.05
    unrecovered: float = 0.05
    permutations: int = 499
    ridge: float = 0.1
    seed: int = 0

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
        if retrained and (why := _blind((original, *unlearned, *retrained))):
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
            named = " and ".join(f.form for f in usable)
            differs = any(f.figures.get("differs_p_value", 1.0) <= level for f in usable)
            reason = f"not refuted by {named}, which refutes the original" + (
                "; it differs from retrained models, but not towards the original" if differs else ""
            )
            verdict = Verdict.INCONCLUSIVE
        else:
            reason = "; ".join(self._useless(f, level) for f in findings)
            verdict = Verdict.INCONCLUSIVE
        return SampleVerdict(verdict, reason, p, tuple(findings), left_out)

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

        def p_value(model: Answers) -> float:
            pairs = [_views(model, name, labels) for name in ("forget", "unseen")]
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
        if why := _blind((original, *unlearned)):
            return why
        lost = [unrecovered(m, original, self.ridge) for m in unlearned]

        def p_value(values: np.ndarray) -> float:
            return mean_above_zero(self.unrecovered - values, self.seed)

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
        inside = not _blind((original, *unlearned, *retrained))

        def p_value(model: Answers, references: Sequence[Answers]) -> float:
            nearer = [nearer_in_outputs(model, original, references)]
            nearer += [nearer_inside(model, original, references, self.ridge)] if inside else []
            return min(1.0, len(nearer) * min(mean_above_zero(v, self.seed) for v in nearer))

        others = [p_value(m, [r for r in retrained if r is not m]) for m in retrained] if len(retrained) > 1 else []
        places = [place(m, original, retrained, self.ridge, inside=inside) for m in unlearned]
        count = len(retrained)
        return Finding(
            "relative", _smallest(p_value(m, retrained) for m in unlearned), p_value(original, retrained),
            "a retrained model", min(others, default=None),
            "This assumes that retrained models differ from each other less than from the original, "
            + ("which one of them cannot show." if count == 1 else f"as these {count} do, which are few."),
            {"differs_p_value": _smallest(self._differs(m, r) for m in unlearned for r in retrained),
             **{f"place_{view}": float(max(p[view] for p in places)) for view in places[0]}},
        )  # fmt: skip

    def _differs(self, model: Answers, reference: Answers) -> float:
        """Do two models answer differently at all? Each answers another half of the inputs, so the test is exact."""
        halves = [_views(m, "forget", {})["outputs"][i::2][:MOST_SAMPLES] for i, m in enumerate((model, reference))]
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


def _blind(models: Sequence[Answers]) -> str:
    """Why hidden layers cannot be read; empty where they can."""
    if "retained" not in models[0].features and models[0].features:
        return "no retained inputs were given"
    shut = [m.name for m in models if not {"forget", "retained"} <= set(m.features)]
    return f"the hidden layers of {shut[0]} cannot be read" if shut else ""


def _views(model: Answers, name: str, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Samples of one set, by view: probabilities, features, and the loss where the true class is known."""
    p, _ = probabilities({"outputs": model.outputs[name]}, {"outputs": model.outputs[name]}, "aggregated-mmd")
    out = {"outputs": p.reshape(len(p), -1, p.shape[-1]).mean(1)}
    if name in model.features:
        out["features"] = model.features[name]
    if name in labels and p.ndim == 2 and labels[name].max() < p.shape[1]:
        out["loss"] = -np.log(np.clip(p[np.arange(len(p)), labels[name]], 1e-12, 1))[:, None]
    return out


def unrecovered(model: Answers, original: Answers, ridge: float) -> np.ndarray:
    """How little of the original's hidden response to each forget input the model's hidden layer yields: 0 is all.

    A linear map from the one's features to the other's is fitted on retained inputs only; per forget input, the squared
    error as a share of itself and the squared response. A new last layer, a mask or a rotation change nothing.

    Args:
        model: The model whose hidden layer is read.
        original: The model whose response is sought.
        ridge: Of the map, relative to the mean square of a feature vector.

    Returns:
        `[n]` in [0, 1].
    """
    seen, sought = (m.features["retained"].astype(np.float64) for m in (model, original))
    asked, wanted = (m.features["forget"].astype(np.float64) for m in (model, original))
    spread = seen.std(0)
    live = spread > 0
    x, x_new = ((v - seen.mean(0))[:, live] / spread[live] for v in (seen, asked))
    scale = np.concatenate([sought, wanted]).std(0)
    moves = scale > 0
    y, y_new = ((v - sought.mean(0))[:, moves] / scale[moves] for v in (sought, wanted))
    if x.shape[1] <= len(x):
        penalty = ridge / max(x.shape[1], 1)
        found = x_new @ np.linalg.solve(x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ y / len(x))
    else:
        penalty = ridge / x.shape[1] * len(x)
        found = (x_new @ x.T) @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)
    error, response = np.square(found - y_new).sum(1), np.square(y_new).sum(1)
    return np.where(error > 0, error / np.maximum(error + response, 1e-300), 0.0)


def apart(a: Answers, b: Answers) -> np.ndarray:
    """Jensen-Shannon distance of two models' answers to each forget input."""
    return JensenShannon().distances({"outputs": a.outputs["forget"]}, {"outputs": b.outputs["forget"]})


def nearer_in_outputs(model: Answers, original: Answers, retrained: Sequence[Answers]) -> np.ndarray:
    """By how much each answer is nearer to the original's than to the retrained models', in [-1, 1]."""
    return np.mean([apart(model, r) for r in retrained], axis=0) - apart(model, original)


def nearer_inside(model: Answers, original: Answers, retrained: Sequence[Answers], ridge: float) -> np.ndarray:
    """By how much less than half as much as in the retrained models is unrecovered, per input, in [-1, 1]."""
    reference = np.mean([unrecovered(r, original, ridge) for r in retrained], axis=0)
    return HALFWAY * reference - unrecovered(model, original, ridge)


def place(
    model: Answers, original: Answers, retrained: Sequence[Answers], ridge: float, *, inside: bool
) -> dict[str, float]:
    """Where the model stands by view, between the retrained models (0) and the original (1)."""
    far = float(apart(model, original).mean())
    near = float(np.mean([apart(model, r).mean() for r in retrained]))
    out = {"outputs": near / (near + far) if near + far > 0 else HALFWAY}
    if inside:
        left = float(unrecovered(model, original, ridge).mean())
        reference = float(np.mean([unrecovered(r, original, ridge).mean() for r in retrained]))
        out["inside"] = 1 - left / reference if reference > 0 else HALFWAY
    return out

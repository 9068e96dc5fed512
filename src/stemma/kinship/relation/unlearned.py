"""Detection of unlearning: one class that one of two models no longer recognises, while all others are unchanged."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.probes import Probes


@dataclass(frozen=True)
class Forgotten:
    """A class of probes that one of two models no longer recognises.

    Attributes:
        label: The class.
        before: Accuracy on the class of the model that recognises it.
        after: Accuracy on the class of the other model.
        others_before: Accuracy on all other probes of the model that recognises the class.
        others_after: Accuracy on all other probes of the other model.
        probes: Number of probes of the class.
        by: Which of the two no longer recognises it: `a` or `b`.
        log10_p: log10 p-value of the loss relative to other classes, corrected for the number of classes.
    """

    label: int
    before: float
    after: float
    others_before: float
    others_after: float
    probes: int
    by: str
    log10_p: float

    def to_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Forgetting:
    """Test whether one model lost accuracy on a single class of probes.

    Without true labels the first model's answers are used instead; probes of tokens need labels (the topic or passage
    of each probe), and an answer there is the next token.

    Attributes:
        known: Least accuracy of the first model, on the class and on all others (three times chance for tokens).
        fall: Least loss of accuracy (for tokens, relative to the accuracy before).
        spared: Largest loss on all other probes, as a share of that loss.
        least: Probes that a class needs.
        alpha: Significance level of the exact test, over all classes and both directions.
    """

    known: float = 0.5
    fall: float = 0.4
    spared: float = 0.34
    least: int = 8
    alpha: float = 0.01

    name = "forgetting"

    def between(self, a: Model, b: Model, probes: Probes) -> Forgotten | None:
        """The class that one of two models lost, or None; costs one forward pass of each model per probe."""
        from stemma.fingerprints.evaluation import compute_outputs

        if probes.kind == "tokens" and probes.labels is None:
            return None
        return self.of_answers(compute_outputs(a, probes), compute_outputs(b, probes), probes)

    def of_answers(self, a: np.ndarray, b: np.ndarray, probes: Probes) -> Forgotten | None:
        """The same from outputs `[n, classes]`, or `[n, length, vocabulary]` for tokens; None if shapes differ."""
        if a.shape != b.shape or a.ndim not in (2, 3):
            return None
        found = [self._forgotten_class(a, b, probes, "b"), self._forgotten_class(b, a, probes, "a")]
        candidates = [f for f in found if f is not None]
        return min(candidates, key=lambda f: f.log10_p) if candidates else None

    def _forgotten_class(
        self, before_answers: np.ndarray, after_answers: np.ndarray, probes: Probes, by: str
    ) -> Forgotten | None:
        labels = probes.labels
        if before_answers.ndim == 3:
            if labels is None:
                return None
            right = [(x[:, :-1].argmax(-1) == probes.inputs[:, 1:]).mean(1) for x in (before_answers, after_answers)]
        else:
            labels = before_answers.argmax(1) if labels is None else labels
            right = [(x.argmax(1) == labels).astype(float) for x in (before_answers, after_answers)]
        classes = [c for c in np.unique(labels) if (labels == c).sum() >= self.least]
        if len(classes) < 3:
            return None
        falls = {c: self._fall(right, labels == c) for c in classes}
        label = max(classes, key=lambda c: falls[c])
        of_class = labels == label
        before, after = (float(r[of_class].mean()) for r in right)
        others = [float(r[~of_class].mean()) for r in right]
        relative = falls[label]
        least = self.fall if before_answers.ndim == 2 else self.fall * before
        known = self.known if before_answers.ndim == 2 else 3 * float(1 / before_answers.shape[-1])
        if min(before, others[0]) < known or relative < least:
            return None
        if others[0] - others[1] > self.spared * relative * min(1.0, others[0] / before):
            return None
        log10_p = self._log10_p(right, of_class) + float(np.log10(2 * len(classes)))
        if log10_p > np.log10(self.alpha):
            return None
        return Forgotten(int(label), before, after, *others, int(of_class.sum()), by, min(0.0, log10_p))

    @staticmethod
    def _fall(right: list[np.ndarray], of_class: np.ndarray) -> float:
        return float(right[0][of_class].mean() - right[1][of_class].mean())

    @staticmethod
    def _log10_p(right: list[np.ndarray], of_class: np.ndarray) -> float:
        """Rank test: loss of accuracy of one class compared with all other probes."""
        from scipy.stats import mannwhitneyu

        fall = right[0] - right[1]
        p = mannwhitneyu(fall[of_class], fall[~of_class], alternative="greater").pvalue
        return float(np.log10(max(float(p), 1e-300)))

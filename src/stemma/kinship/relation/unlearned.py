"""Unlearned: answers to one kind of probes are gone in the child, all others are as they were in the parent."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.probes import Probes


@dataclass(frozen=True)
class Forgotten:
    """A class of probes that one of two models no longer answers.

    Attributes:
        label: The class.
        before: Share of right answers to it by the model that knows it.
        after: By the model that forgot it.
        others_before: Share of right answers to all other probes, by the first.
        others_after: By the second.
        probes: How many probes of the class there are.
        by: Which of the two forgot: `a` or `b`.
        log10_p: Of so large a fall beside that of the others, corrected for the number of classes.
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
        """The figures by name.

        Returns:
            Plain values.
        """
        return dict(self.__dict__)


@dataclass(frozen=True)
class Forgetting:
    """Look for one class of probes that fell alone.

    Where no true labels are known the first model's answers stand in for them; probes of tokens need labels (which
    topic or passage each probe is of), and an answer there is the next token.

    Attributes:
        known: Least share of right answers beforehand, to the class and to all others (three times chance for tokens).
        fall: Least fall of the share of right answers (of tokens, as a share of what was right before).
        spared: Largest fall of all other probes, as a share of that fall.
        least: Probes that a class needs.
        alpha: Level of the exact test, over all classes and both directions.
    """

    known: float = 0.5
    fall: float = 0.4
    spared: float = 0.34
    least: int = 8
    alpha: float = 0.01

    name = "forgetting"

    def between(self, a: Model, b: Model, probes: Probes) -> Forgotten | None:
        """Which class one of two models forgot.

        Cost: one forward pass of each model per probe.

        Args:
            a: One model.
            b: The other.
            probes: What both are asked.

        Returns:
            The class; None where none fell alone, or the two do not choose among the same answers.

        Raises:
            StemmaError: If a model cannot be asked.
        """
        from stemma.fingerprints.evaluation import compute_outputs

        return self.of_answers(compute_outputs(a, probes), compute_outputs(b, probes), probes)

    def of_answers(self, a: np.ndarray, b: np.ndarray, probes: Probes) -> Forgotten | None:
        """The same from answers.

        Args:
            a: Outputs of the one model, `[n, classes]`, or `[n, length, vocabulary]` for tokens.
            b: Those of the other.
            probes: What was asked.

        Returns:
            The class, or None.
        """
        if a.shape != b.shape or a.ndim not in (2, 3):
            return None
        found = [self._fallen(a, b, probes, "b"), self._fallen(b, a, probes, "a")]
        told = [f for f in found if f is not None]
        return min(told, key=lambda f: f.log10_p) if told else None

    def _fallen(self, first: np.ndarray, second: np.ndarray, probes: Probes, by: str) -> Forgotten | None:
        labels = probes.labels
        if first.ndim == 3:
            if labels is None:
                return None
            right = [(x[:, :-1].argmax(-1) == probes.inputs[:, 1:]).mean(1) for x in (first, second)]
        else:
            labels = first.argmax(1) if labels is None else labels
            right = [(x.argmax(1) == labels).astype(float) for x in (first, second)]
        classes = [c for c in np.unique(labels) if (labels == c).sum() >= self.least]
        if len(classes) < 3:
            return None
        falls = {c: self._fall(right, labels == c) for c in classes}
        label = max(classes, key=lambda c: falls[c])
        mine = labels == label
        before, after = (float(r[mine].mean()) for r in right)
        others = [float(r[~mine].mean()) for r in right]
        relative = falls[label]
        least = self.fall if first.ndim == 2 else self.fall * before
        known = self.known if first.ndim == 2 else 3 * float(1 / first.shape[-1])
        if min(before, others[0]) < known or relative < least:
            return None
        if others[0] - others[1] > self.spared * relative * min(1.0, others[0] / before):
            return None
        log10_p = self._log10_p(right, mine) + float(np.log10(2 * len(classes)))
        if log10_p > np.log10(self.alpha):
            return None
        return Forgotten(int(label), before, after, *others, int(mine.sum()), by, min(0.0, log10_p))

    @staticmethod
    def _fall(right: list[np.ndarray], mine: np.ndarray) -> float:
        return float(right[0][mine].mean() - right[1][mine].mean())

    @staticmethod
    def _log10_p(right: list[np.ndarray], mine: np.ndarray) -> float:
        """Rank test: the falls of one class beside those of all other probes."""
        from scipy.stats import mannwhitneyu

        fall = right[0] - right[1]
        p = mannwhitneyu(fall[mine], fall[~mine], alternative="greater").pvalue
        return float(np.log10(max(float(p), 1e-300)))

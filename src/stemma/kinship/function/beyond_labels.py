"""What two models share beyond the true labels, without any control model: an e-value, which decides nothing."""

from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np

from stemma.kinship.function.observations import Observation
from stemma.probes import Probes

ASSUMPTION = "an independent model agrees with either of the two no more often than the true labels do"
"""What the e-value assumes."""

BROKEN_BY = "models that learned from the same data break this, so it shows no descent and decides nothing"
"""Who shares more than that without a common origin, as measured by `benchmarks/few_controls.py`."""

LARGEST_LOG = 690.0
"""Bound of the logarithm of an e-value, so that it is a finite number."""


@dataclass(frozen=True)
class BeyondLabels:
    """How two models agree in mistakes, with the true labels as a third, independent answer.

    Two networks of one task and one accuracy agree about as often as each is right (the equality of disagreement and
    test error; Jiang et al. 2022), if they come from independent data. Where they agree more often, they share
    something: training data, architecture, or one learned from the other. These cannot be told apart without controls.

    Attributes:
        alike_wrong: Probes that both answer with the same wrong class.
        first_right: Probes that the first model alone answers right.
        second_right: Probes that the second model alone answers right.
        e_value: Evidence against `ASSUMPTION`: its mean is at most 1 where that holds and probes are independent draws.

    Source: the truth as a third model; betting against a fair coin, Shafer 2021 and Vovk and Wang 2021.
    """

    alike_wrong: int
    first_right: int
    second_right: int
    e_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the evidence's details."""
        return {
            "alike_wrong": self.alike_wrong, "first_right": self.first_right, "second_right": self.second_right,
            "e_value": self.e_value, "assumes": ASSUMPTION, "broken_by": BROKEN_BY,
        }  # fmt: skip


def beyond_labels(a: Observation, b: Observation, probes: Probes) -> BeyondLabels | None:
    """Count where two classifiers agree against the true labels, and where one of them alone is right.

    Args:
        a: The first model.
        b: The second model.
        probes: Inputs of both; their labels are the truth.

    Returns:
        The counts with the e-value; None without true labels that apply to both models.
    """
    truth = probes.labels
    if truth is None or probes.labelled or a.classes is None or b.classes is None or a.shape != b.shape:
        return None
    if a.classes.shape != truth.shape or len(a.shape) != 1 or int(truth.max(initial=0)) >= a.shape[0]:
        return None
    return counted(a.classes, b.classes, truth)


def counted(a: np.ndarray, b: np.ndarray, truth: np.ndarray) -> BeyondLabels:
    """The counts and the e-value of labels `[n]` of two models and true labels."""
    alike = int(((a == b) & (a != truth)).sum())
    first, second = int(((a == truth) & (b != truth)).sum()), int(((b == truth) & (a != truth)).sum())
    return BeyondLabels(alike, first, second, e_value(alike, max(first, second)))


def e_value(alike: int, apart: int) -> float:
    """Evidence that a coin which fell `alike` times on one side and `apart` on the other favours the first.

    Args:
        alike: Times the first side.
        apart: Times the other side.

    Returns:
        The likelihood ratio against a fair coin, averaged over all coins that favour the first side.
    """
    from scipy.special import betainc, betaln

    a, b = alike + 1, apart + 1
    favours = float(betainc(b, a, 0.5))  # probability that the coin favours the first side
    if favours <= 0:
        return 0.0
    return exp(min(LARGEST_LOG, (alike + apart + 1) * log(2) + float(betaln(a, b)) + log(favours)))

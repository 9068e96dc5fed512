"""A p-value with few control models: the tail of their distances, extrapolated by a normal law of the logarithms."""

from dataclasses import dataclass

import numpy as np

from stemma.kinship.function import combined

FEWEST = 3
"""Fewest control models whose spread is estimated."""

CHECKED = 8
"""From this many control models on, their distances are tested for a normal law."""

UNCHECKED = 2.0
"""With fewer, the p-value is multiplied by this: nothing checks the law, and a wrong accusation is the worst fault."""

NORMALITY = 0.05
"""Level of that test: below it, nothing is extrapolated."""

OWN_ENOUGH = 8
"""With this many control models of a model's own architecture, those of others do not count."""

ASSUMPTION = "log distances of independent models follow a normal law"
"""What the extrapolated p-value assumes."""


@dataclass(frozen=True)
class NormalLaw:
    """The tail of the control models' distances, extrapolated.

    Attributes:
        p_value: Probability that one more independent model comes as close as the pair; doubled with fewer than
            `CHECKED` controls.
        t: The statistic: how many standard deviations of a new model's distance the pair lies from the controls.
        fit_p: p-value of Shapiro's and Wilk's test that the controls follow a normal law; None with few of them.
    """

    p_value: float
    t: float
    fit_p: float | None

    @property
    def fits(self) -> bool:
        """Whether the controls' distances are compatible with the law."""
        return self.fit_p is None or self.fit_p >= NORMALITY


def normal_law(suspect: np.ndarray, null: np.ndarray) -> NormalLaw | None:
    """Extrapolate the controls' distances by Student's predictive law.

    The logarithms of all distances are divided by their spread over all m + 1 models and added with the weights of
    `combined`. Where the logarithms of the m + 1 models are draws of one multivariate normal law, the sum of the
    suspect less the controls' mean, over its estimated error, follows Student's law of m - 1 degrees of freedom
    exactly, although the spread is estimated: weights that depend on the total scatter alone keep it (Läuter).

    Args:
        suspect: Distances `[measures]` of the model in question; NaN where one does not apply.
        null: Distances `[m, measures]` of the control models.

    Returns:
        The law; None with fewer than `FEWEST` controls, or where they do not differ.

    Source: Läuter, Glimm and Kropf 1996, Biometrical Journal 38, for sums standardised by the total scatter.
    """
    if len(null) < FEWEST:
        return None
    table = np.vstack([suspect[None], null]).astype(float)
    used = np.isfinite(table).all(0)
    least = np.maximum(combined.SMALLEST_SHARE * np.median(table, 0), np.finfo(float).tiny)
    logs = np.log(np.maximum(table, least))[:, used]
    logs = logs - logs.mean(0)
    spread = np.sqrt((logs**2).sum(0))
    summed = (logs / np.where(spread > 0, spread, 1) * combined.shares(len(suspect))[used]).sum(1)
    own, others = float(summed[0]), summed[1:]
    m, error = len(others), float(others.std(ddof=1))
    if not used.any() or error <= 1e-12 * max(1.0, float(np.abs(summed).max())):
        return None
    from scipy.stats import shapiro
    from scipy.stats import t as student

    t = (own - float(others.mean())) / (error * np.sqrt(1 + 1 / m))
    fit = float(shapiro(others).pvalue) if m >= CHECKED else None
    p = float(student.cdf(t, m - 1)) * (UNCHECKED if fit is None else 1.0)
    return NormalLaw(min(1.0, max(p, np.finfo(float).tiny)), float(t), fit)

"""Combination of several functional distances into one statistic, the same for suspect and null models."""

import json
from dataclasses import fields
from functools import lru_cache
from importlib import resources

import numpy as np

from stemma.errors import MisuseError
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import Outputs
from stemma.measures.base import AbstractMeasure
from stemma.measures.field_cosine import FieldCosine
from stemma.measures.label_disagreement import LabelDisagreement

METHODS: tuple[tuple[AbstractFingerprinter, AbstractMeasure], ...] = (
    (GradientField(), FieldCosine()),
    (Outputs(), LabelDisagreement()),
)
"""Fingerprinters with their measures; the first one gives the distance that is shown."""

LOWER_QUANTILE = 0.1586552539
"""The quantile that lies one standard deviation below the median of a normal law."""

SMALLEST_SHARE = 1e-3
"""Distances below this share of the median count as equal: nothing is closer than a copy."""


@lru_cache(maxsize=1)
def weights() -> tuple[float, ...]:
    """Weight of each of `METHODS`, measured on models that no reported result uses."""
    kept = json.loads((resources.files("stemma.kinship.function") / "combination.json").read_text())
    return tuple(float(m["weight"]) for m in kept["measures"])


@lru_cache(maxsize=1)
def deviation_weight() -> float:
    """Weight of the shared deviations (`consensus`), which need all models at once and are no measure of a pair."""
    kept = json.loads((resources.files("stemma.kinship.function") / "combination.json").read_text())
    return float(kept["shared_deviations"]["weight"])


def shares(columns: int) -> np.ndarray:
    """Weights of distances in `columns` columns: those of `METHODS`, then the shared deviations where they are given.

    Args:
        columns: As many as `METHODS`, or one more.

    Returns:
        The weights `[columns]`.
    """
    return np.array([*weights(), deviation_weight()][:columns])


def identity(test: object) -> dict[str, object]:
    """Parameters of a test for its spec: its own fields, and the fingerprinters and measures it uses."""
    own = {f.name: getattr(test, f.name) for f in fields(test)}  # ty: ignore[invalid-argument-type]
    return {**own, "methods": [[f.spec, m.spec] for f, m in METHODS]}


def statistics(suspect: np.ndarray, null: np.ndarray) -> tuple[float, np.ndarray]:
    """Combined statistic of the suspect and of each null model; smaller is closer.

    The logarithm of each distance is put in units of its own spread towards the close side, over all m + 1 models, and
    turned into the logarithm of a normal law's lower tail; the statistic is the weighted mean of these. A measure
    without signal adds about nothing, one that shows a near copy decides alone. The test does not assume normality:
    all m + 1 models are treated alike, so under exchangeability every rank of the statistic is equally likely.

    Args:
        suspect: Distances `[measures]` of the suspect, as `METHODS` lists them, and after them that of the shared
            deviations where they were taken; NaN where one does not apply.
        null: Distances `[m, measures]` of the null models.

    Returns:
        The suspect's statistic and the null models' `[m]`. A measure that is NaN anywhere is left out for all.

    Raises:
        MisuseError: If no measure is left.

    Source: Fisher's combination of tails, 1932, as a statistic to be ranked, not as a p-value.
    """
    table = np.vstack([suspect[None], null]).astype(float)
    used = np.isfinite(table).all(0)
    if not used.any():
        raise MisuseError("none of the distances is defined for all models: use other probes or other control models")
    table, share = table[:, used], shares(table.shape[1])[used]
    # Not a matrix product: its rounding would depend on the order of the rows.
    scores = (log_lower_tails(table, table) * share).sum(1) / share.sum()
    return float(scores[0]), scores[1:]


def log_lower_tails(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Log lower tail of a normal law fitted to the logarithms of `base` `[m, …]`, at `values` `[n, …]`."""
    from scipy.stats import norm

    least = np.maximum(SMALLEST_SHARE * np.median(base, 0), np.finfo(float).tiny)
    values, base = np.log(np.maximum(values, least)), np.log(np.maximum(base, least))
    middle = np.median(base, 0)
    spread = middle - np.quantile(base, LOWER_QUANTILE, 0)
    spread = np.where(spread > 0, spread, np.maximum(base.std(0), np.finfo(float).eps))
    return norm.logcdf((values - middle) / spread)

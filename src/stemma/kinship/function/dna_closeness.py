"""How close the DNAs of several models are to one another, every model treated alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np

from stemma.kinship.function.dna_population import Population

RIDGE = 0.3
"""Added to the diagonal of correlations: with few models what the others explain is estimated less well."""

MIN_CALIBRATION = 8
"""Control models that a probability needs."""

INTERCEPT, SLOPE = -2.483, 1.728
"""Log-odds of shared provenance, at even priors, by standardised closeness (`benchmarks/dna_outside.py`)."""


@dataclass(frozen=True, eq=False)
class ProvenanceClassifier:
    """A score of shared provenance from correlations of DNA channels."""

    arrays: Mapping[str, np.ndarray]

    def log_odds(self, correlations: np.ndarray) -> np.ndarray:
        """Scores `[…]` of correlations `[…, channels]`: log-odds if learnt; without weights, the mean."""
        if "kin.inner" not in self.arrays:
            return correlations.mean(-1)
        w = self.arrays
        seen = correlations[..., : len(w["kin.linear"])]
        hidden = np.tanh(seen @ w["kin.inner"] + w["kin.bias"])
        return hidden @ w["kin.outer"] + seen @ w["kin.linear"] + w["kin.offset"][0]

    def channel_weights(self, channels: int) -> np.ndarray:
        """How much each channel contributes to the log-odds, `[channels]`, of mean 1."""
        alone = self.log_odds(0.3 * np.eye(channels)) - self.log_odds(np.zeros(channels))
        kept = np.maximum(alone, 0.05 * max(float(alone.max()), 1e-9))
        return kept / kept.mean()

    def probability(self, log_odds: float) -> float | None:
        """The probability of given log-odds; None where nothing was learnt."""
        return float(1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))) if "kin.inner" in self.arrays else None


def partial_correlations(codes: np.ndarray) -> np.ndarray:
    """Correlation of each two codes beyond what all the other ones explain, per channel `[n, n, channels]`.

    The other models carry what the task has in common; a pair is compared in what is left. Exchanging two models
    exchanges their rows, so that ranks among them stay exact. Cost: one inverse of `[n, n]` per channel.

    Args:
        codes: `[n, probes, channels]`, n at least 2.

    Returns:
        Partial correlations, with the diagonal 0.
    """
    seen = Population.plain(codes)(codes)
    inverse = np.linalg.inv(np.einsum("ipc,jpc->cij", seen, seen) + RIDGE * np.eye(len(codes)))
    size = np.sqrt(np.einsum("cii->ci", inverse))
    found = -inverse / (size[:, :, None] * size[:, None, :])
    found[:, np.arange(len(codes)), np.arange(len(codes))] = 0
    return np.moveaxis(found, 0, -1)


def partial_to_others(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Partial correlations `[n, k, channels]` of each of n codes with each of k others, given the rest of the n.

    Unlike in `partial_correlations`, the k do not explain one another: relatives among them hide nothing.

    Args:
        codes: `[n, probes, channels]`.
        others: `[k, probes, channels]`.

    Returns:
        The partial correlations.
    """
    population = Population.plain(codes)
    seen, new = population(codes), population(others)
    inverse = np.linalg.inv(np.einsum("ipc,jpc->cij", seen, seen) + RIDGE * np.eye(len(codes)))
    along = np.einsum("cij,jpc,kpc->cik", inverse, seen, new, optimize=True)
    cross = np.einsum("ipc,kpc->cik", seen, new)
    own = np.einsum("kpc,kpc->ck", new, new) + RIDGE - (cross * along).sum(1)
    rest = 1 / np.maximum(own, 1e-9)[:, None]
    size = np.sqrt((np.einsum("cii->ci", inverse)[:, :, None] + along**2 * rest) * rest)
    return np.moveaxis(along * rest / size, 0, -1)


def standardised_rows(values: np.ndarray) -> np.ndarray:
    """Each entry of a square matrix in units of the spread of its row, itself and the diagonal left out."""
    n = len(values)
    if n < 4:
        return values
    kept = np.where(np.eye(n, dtype=bool), 0, values)
    count = n - 2
    mean = (kept.sum(1, keepdims=True) - kept) / count
    square = (np.square(kept).sum(1, keepdims=True) - kept**2) / count - mean**2
    return (kept - mean) / np.sqrt(np.maximum(square * count / (count - 1), 1e-12))


def pair_p_value(values: np.ndarray) -> float:
    """Rank of the pair (0, 1) among all pairs of n models that are exchangeable; larger values are closer.

    Each pair of n exchangeable models is equally likely to be the closest, so that the smallest p-value is
    1 / (n (n - 1) / 2), where a rank among single models has 1 / (n - 1).

    Args:
        values: Symmetric scores `[n, n]`.

    Returns:
        The p-value.
    """
    rows = standardised_rows(values)
    both = (rows + rows.T)[np.triu_indices(len(values), 1)]
    return float((both >= both[0] - 1e-12).mean())


def pairs_needed(alpha: float) -> int:
    """Smallest number of control models whose pairs allow a p-value of alpha."""
    m = 1
    while round(comb(m + 2, 2) * alpha, 9) < 1:
        m += 1
    return m


def standardised_closeness(value: float, null: list[float]) -> float | None:
    """A value in units of the spread of null values, as of a normal distribution; None with too few of them."""
    from scipy.special import ndtri, stdtr

    m = len(null)
    spread = float(np.std(null, ddof=1)) if m > 1 else 0.0
    if m < MIN_CALIBRATION or spread <= 0:
        return None
    t = (value - float(np.mean(null))) / (spread * np.sqrt(1 + 1 / m))
    return float(np.clip(-ndtri(max(float(stdtr(m - 1, -abs(t))), 1e-12)) * np.sign(t), -7, 7))


def calibrated(closeness: float | None) -> tuple[float | None, float | None]:
    """Log-odds and probability of shared provenance at even priors; None without enough control models."""
    if closeness is None:
        return None, None
    odds = INTERCEPT + SLOPE * closeness
    return odds, float(1 / (1 + np.exp(-odds)))

"""Several kinds of evidence for candidates pooled by one symmetric rule, with nothing learned and nothing chosen."""

import numpy as np

FEWEST = 3
"""Candidates from which each can be compared with the spread of the others."""


def pooled_tails(parts: np.ndarray) -> np.ndarray:
    """How far a candidate stands out above the others, over all parts together.

    In each part a candidate is compared with the mean and the spread of the other candidates: were all drawn alike
    from one normal law, its upper tail under Student's law would be exact. What is summed over the parts is minus the
    logarithm of these tails. So a part in which one candidate stands out counts much, one that separates nobody counts
    little, and the order of parts and of candidates counts nothing. With two candidates nobody has a spread to be
    compared with, and the mean rank over the parts is taken.

    Args:
        parts: Scores `[parts, candidates, children]`, larger for nearer, comparable within a column of one part;
            what is not finite says nothing for its candidate.

    Returns:
        Pooled scores `[candidates, children]`, larger for nearer.

    Source: the rule of Fisher 1925, section 21.1, as a ranking; tails that are taken together are not independent, so
    a sum is no p-value.
    """
    from scipy.stats import rankdata

    finite = _lowest_where_not_finite(np.asarray(parts, float))
    count = finite.shape[1]
    if count < FEWEST:
        return rankdata(finite, axis=1).mean(0)
    return -_log_upper_tails(finite).sum(0)


def _lowest_where_not_finite(parts: np.ndarray) -> np.ndarray:
    known = np.isfinite(parts)
    lowest = np.where(known, parts, np.inf).min(1, keepdims=True)
    return np.where(known, parts, np.where(np.isfinite(lowest), lowest, 0.0))


def _log_upper_tails(parts: np.ndarray) -> np.ndarray:
    """Logarithms of Student's upper tails of each candidate among the others, `[parts, candidates, children]`."""
    from scipy.stats import t

    others = parts.shape[1] - 1
    mean = (parts.sum(1, keepdims=True) - parts) / others
    square = (np.square(parts).sum(1, keepdims=True) - np.square(parts)) / others
    spread = np.sqrt(np.maximum(square - np.square(mean), 0) * others / (others - 1))
    return t.logsf((parts - mean) / np.maximum(spread, 1e-12) / np.sqrt(1 + 1 / others), others - 1)

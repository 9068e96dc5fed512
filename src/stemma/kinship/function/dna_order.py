"""Which of two related models came first, by DNA and reference models of either one's task."""

import numpy as np

from stemma.kinship.function.dna_population import Population, channel_correlations


def order_by_references(
    first: np.ndarray, second: np.ndarray, like_first: np.ndarray, like_second: np.ndarray
) -> float:
    """How much rather the first of two related models is the source than the second.

    A child keeps something of its source's task, so that it resembles independent models of that task more than
    independent models of its own task do. Nothing is said about models of one task.

    Args:
        first: Code of one model, `[probes, channels]`.
        second: Code of the other model.
        like_first: Codes of independent models of the first one's task, `[models, probes, channels]`, at least 3.
        like_second: Codes of independent models of the second one's task.

    Returns:
        Positive where the first is the source, negative where the second is; in units of the references' spread.
    """
    return _resemblance(second, like_second, like_first) - _resemblance(first, like_first, like_second)


def _resemblance(code: np.ndarray, own_task: np.ndarray, other_task: np.ndarray) -> float:
    """How much more a model resembles references of the other task than references of its own task do."""
    population = Population.plain(np.concatenate([own_task, other_task]))
    found = channel_correlations(population(np.concatenate([code[None], own_task])), population(other_task))
    likeness = found.mean((1, 2))
    return float((likeness[0] - likeness[1:].mean()) / max(float(likeness[1:].std(ddof=1)), 1e-9))

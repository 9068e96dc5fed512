"""The trivial tests beside the verdicts: a cosine of the weights, as they lie and after weight matching.

Weight matching is told what belongs together, and a threshold is chosen where the truth is known, which no tool is
given. A copy that is permuted and has noise of .1 of each tensor's deviation stands for what has to be found.
"""

from typing import Any

import numpy as np

from testbeds import verdict_scores as scores
from testbeds.disguises import damage, symmetries
from testbeds.disguises.alignment import Effort, agreement, aligned, whole_cosine
from testbeds.varied import training
from testbeds.varied.structure import Arrays
from testbeds.varied.training import Design

Rng = np.random.Generator
EFFORT = Effort(starts=3)


def after_matching(first: Arrays, second: Arrays, design: Design, rng: Rng) -> float:
    """Mean cosine of the tensors after weight matching; 0 where shapes differ."""
    if any(n not in second or second[n].shape != x.shape for n, x in first.items()):
        return 0.0
    return round(agreement(first, aligned(first, second, training.structure(design), rng, EFFORT)), 4)


def noisy_copy(arrays: Arrays, design: Design, rng: Rng) -> Arrays:
    moved = symmetries.permute_everything(arrays, training.structure(design), rng)
    return damage.noisy(moved, 0.1, rng)


def beside(first: Arrays, second: Arrays, design: Design, rng: Rng) -> dict[str, float]:
    """Both cosines of a pair, and both of the first one's noisy copy."""
    copy = noisy_copy(first, design, rng)
    return {
        "cosine": round(whole_cosine(first, second), 4),
        "cosine_of_a_copy": round(whole_cosine(first, copy), 4),
        "matched": after_matching(first, second, design, rng),
        "matched_of_a_copy": after_matching(first, copy, design, rng),
    }


def best_threshold(related: np.ndarray, apart: np.ndarray) -> float:
    """The cosine above which to say `related`: most balanced accuracy where it was chosen."""
    at = np.unique(np.concatenate([related, apart]))
    score = [(related > t).mean() + (apart <= t).mean() for t in at]
    return float(at[int(np.argmax(score))])


def measured(fit: tuple[list[float], list[float]], rest: tuple[list[float], list[float]]) -> dict[str, Any]:
    """A threshold from some (related, apart) cosines, and what it does on others."""
    if not all((*fit, *rest)):
        return {}
    threshold = best_threshold(*map(np.array, fit))
    return {
        "threshold": round(threshold, 4),
        "related_found": scores.share(sum(x > threshold for x in rest[0]), len(rest[0])),
        "apart_taken_for_related": scores.share(sum(x > threshold for x in rest[1]), len(rest[1])),
    }


def in_halves(related: list[float], apart: list[float], seed: int) -> dict[str, Any]:
    """The best threshold of one half of the pairs, measured on the other half."""
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(np.array(x)), 2) for x in (related, apart)]
    fit, rest = (tuple(h[i].tolist() for h in halves) for i in (0, 1))
    return measured(fit, rest)

"""Bounds on the probability of a parent by what its kind of evidence can show on networks of any make."""

from collections.abc import Mapping

import numpy as np

from stemma.kinship.learned.evidence import EVEN, ODD
from stemma.kinship.learned.heads import head_factor

ORDER_ALONE = 0.5
"""Highest probability of a parent that has no other relative beside it and no other head than the child.

The learned traces of order (norms, decay, new directions) depend on how a model was trained. On makes of networks that
no training saw they can point backwards with confidence; so they alone name no parent."""

HEADS = 0.9
"""Highest probability of a parent whose odds heads raised: a sibling that hardly moved looks the same."""

ZEROS, GRID, WRITTEN = 0.1, 0.3, 0.9
"""Shares of zeros and of distinct values that one of the two lacks from which pruning or a grid is written in the
weights, and the highest probability of a parent by that alone."""


def bounded(found: np.ndarray, question: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probabilities with the evidence of heads, and no higher than what was seen allows; the rest is unordered.

    Args:
        found: Of each candidate, and of unordered.
        question: As `v3_question` makes it.

    Returns:
        The same, which still sum to 1.
    """
    out = found.copy()
    most = np.ones(len(out))
    for row, at in enumerate(question["place"]):
        pair = question["pairs"][row + 1, 0]
        heads = _number(pair, "heads"), *(_number(pair, n) for n in ("weaker head", "stronger head", "heads differ"))
        factor = head_factor(*heads)
        out[at] *= factor
        if factor > 1:
            most[at] = HEADS
        elif not question["together"][row].any():
            written = abs(_number(pair, "zeros")) >= ZEROS or abs(_number(pair, "grid")) >= GRID
            most[at] = WRITTEN if written else ORDER_ALONE
    out = np.minimum(out / out.sum(), most)
    out[-1] += 1 - out.sum()
    return out


def _number(pair: np.ndarray, name: str) -> float:
    return float(pair[ODD.index(name) if name in ODD else 2 * len(ODD) + EVEN.index(name)])

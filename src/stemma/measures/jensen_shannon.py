"""Jensen-Shannon distance of predicted probabilities."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.scores import mean_over_positions, probabilities


@final
@dataclass(frozen=True)
class JensenShannon(AbstractMeasure):
    """Mean over probes of the Jensen-Shannon distance between the softmax of two outputs.

    The distance is the root of the divergence in base 2 (so its square is in bits): 0 for the same probabilities, 1 for
    disjoint ones. The root satisfies the triangle inequality. For one score per token, the mean over the positions.

    Source: Lin 1991, IEEE Trans. Inf. Theory 37 (the divergence); Endres and Schindelin 2003, ibid. 49 (the root).
    """

    name = "jensen-shannon"
    accepts = frozenset({"outputs"})
    probewise = True
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE, Law.BOUNDED, Law.SHIFT})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[k]`."""
        from scipy.special import rel_entr

        p, q = probabilities(a, b, self.name)
        middle = (p + q) / 2
        bits = (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / (2 * np.log(2))
        return mean_over_positions(np.sqrt(np.clip(bits, 0, 1)))

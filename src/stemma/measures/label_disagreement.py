"""Disagreement of predicted classes."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values
from stemma.measures.scores import class_scores, mean_over_positions


@final
@dataclass(frozen=True)
class LabelDisagreement(AbstractMeasure):
    """Share of probes (of positions, for one score per token) with different predicted classes.

    The class is that of the largest score, the first of equal ones. Services that return only labels can be compared.
    """

    name = "label-disagreement"
    accepts = frozenset({"outputs"})
    probewise = True
    counted = True
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE, Law.BOUNDED, Law.SCALING, Law.SHIFT})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[k]`."""
        x, y = class_scores(a, b, self.name)
        return mean_over_positions((x.argmax(-1) != y.argmax(-1)).astype(float))

"""Field cosine: gradient fields compared by direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np

from stemma.errors import MisuseError
from stemma.measures.base import AbstractMeasure, Law, Values


@final
@dataclass(frozen=True)
class FieldCosine(AbstractMeasure):
    """Mean over probes and steps of 1 - cosine between two curves of a gradient field.

    0 for parallel fields, 1 for orthogonal ones (nearly so for unrelated networks in many dimensions), 2 for opposite
    ones. Invariant to positive scales of either potential. Steps with an undefined field are left out; a probe without
    defined steps is undefined.

    Attributes:
        epsilon: Smallest product of lengths that a cosine is divided by. Published: 1e-8, which suppresses the short
            first curves from about 200 Gauss-Legendre steps on; 0 does not.

    Source: Song et al., ModelGiF, ICCV 2023.
    """

    epsilon: float = 0.0

    name = "field-cosine"
    accepts = frozenset({"field"})
    probewise = True
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.BOUNDED, Law.SCALING})
    top = 2.0

    @classmethod
    def official(cls) -> Self:
        """The published measure, for fingerprints of `GradientField.official()`."""
        return cls(epsilon=1e-8)

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[k]`."""
        _same_shape(a, b)
        u, v = (self._scaled(s) for s in (a, b))
        lengths = np.linalg.norm(u, axis=2) * np.linalg.norm(v, axis=2)
        return self._averaged(np.einsum("ktd,ktd->kt", u, v), lengths, a, b)

    def gram(self, models: Sequence[Values]) -> np.ndarray:
        """See `AbstractMeasure.gram`: one product of matrices per probe and step."""
        for other in models[1:]:
            _same_shape(models[0], other)
        curves = np.stack([self._scaled(m) for m in models])  # [m, k, t, d]
        length = np.linalg.norm(curves, axis=3)
        across = curves.transpose(1, 2, 0, 3)
        products = across @ across.swapaxes(2, 3)  # [k, t, m, m]
        out = np.zeros((len(models), len(models), curves.shape[1]))
        for i, a in enumerate(models):
            for j in range(i, len(models)):
                out[i, j] = out[j, i] = self._averaged(products[:, :, i, j], length[i] * length[j], a, models[j])
        return out

    def _scaled(self, values: Values) -> np.ndarray:
        """The curves; of double precision with largest entry one, so that no square of theirs vanishes."""
        curve = np.asarray(values["curve"])
        if self.epsilon or curve.dtype != np.float64:
            return curve.astype(np.float64)
        largest = np.abs(curve).max(2, keepdims=True)
        return curve / np.where(largest > 0, largest, 1)

    def _averaged(self, dot: np.ndarray, lengths: np.ndarray, a: Values, b: Values) -> np.ndarray:
        divisor = np.maximum(lengths, self.epsilon)
        cosine = np.divide(dot, divisor, out=np.zeros_like(dot), where=divisor > 0)
        weights = a["weights"] * (a["defined"] & b["defined"])
        total = weights.sum(1)
        summed = (weights * (1 - np.clip(cosine, -1, 1))).sum(1)
        return np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0)


def _same_shape(a: Values, b: Values) -> None:
    shapes = [s["curve"].shape for s in (a, b)]
    if shapes[0] != shapes[1]:
        raise MisuseError(
            f"the fields have the shapes {list(shapes[0][1:])} and {list(shapes[1][1:])} per probe, so they have no "
            "common input space. Use models with one input shape or vocabulary"
        )

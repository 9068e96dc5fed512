"""Whether a network comes from none of its candidates: a conformal rank of how far the best one stands out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.kinship.function.null_models import conformal_p_value
from stemma.kinship.function.pooled_tails import pooled_tails


@dataclass(frozen=True)
class NoParent:
    """The test of `none of these`.

    Attributes:
        child: Name of the network in question.
        best: Name of the candidate that stands out most.
        value: How far it does, as `pooled_tails` gives it.
        null: The same of each network that took the child's place.
        p_value: Of the claim that the child comes from none of the candidates, were it exchangeable with these.
        smallest: The smallest p-value that so many networks can give.
        from_candidates: Whether the candidates themselves took the child's place. A true parent then stands out too,
            when its child is among its candidates, so that a parent may give no less than twice the smallest p-value.
    """

    child: str
    best: str
    value: float
    null: tuple[float, ...]
    p_value: float
    smallest: float
    from_candidates: bool

    def __str__(self) -> str:
        who = "candidates" if self.from_candidates else "controls"
        return (
            f"{self.child} comes from none of the candidates: p = {self.p_value:.3g} "
            f"(with {len(self.null)} {who} in its place at least {self.smallest:.3g}); {self.best} stands out most"
        )

    @classmethod
    def of(cls, parts: np.ndarray, asked: Sequence[str], candidates: Sequence[str], *, own: bool) -> "NoParent":
        """The test from scores.

        Args:
            parts: `[parts, rows, asked]`, larger for nearer; rows are the candidates, or all that are asked about.
            asked: Names of the child and of the networks that take its place.
            candidates: Names.
            own: Whether rows are all that are asked about, so that each is compared with all others.

        Returns:
            The test.
        """
        count = len(asked)
        rows = [[i for i in range(parts.shape[1]) if not (own and i == j)] for j in range(count)]
        pooled = [pooled_tails(parts[:, kept, j : j + 1])[:, 0] for j, kept in enumerate(rows)]
        values = [float(p.max()) for p in pooled]
        p = conformal_p_value(-values[0], [-v for v in values[1:]])
        best = candidates[int(np.argmax(pooled[0]))]
        return cls(asked[0], best, values[0], tuple(values[1:]), p, 1 / count, own)

"""Operation: some tensors were replaced (a head or a larger part), the others inherited."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, FittedOperation, entry_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.kept_units import LARGEST
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.weights.order.pair_reader import finite
from stemma.types import RelationKind

HEAD = re.compile(r"(^|[._])(head|heads|classifier|fc_out|lm_head|output|logits|score|linear_out|predictions)([._]|$)")
"""Names of output layers, for models whose structure does not show which tensor gives the classes."""


@dataclass(frozen=True)
class Replaced(AbstractOperation):
    """Some matrices agree with their counterparts only by chance, while others are inherited.

    Attributes:
        fresh: Largest cosine at which a matrix counts as new, whatever its size.
        inherited: Smallest cosine at which a matrix counts as inherited.
        sigmas: Standard deviations of the cosine of independent matrices within which a matrix counts as new.
        norms: Largest ratio of norms at which a matrix counts as inherited.
        share: Share of the entries of all matrices that must be inherited where some are unchanged.
        share_changed: The same where all were further trained.
    """

    fresh: float = 0.3
    inherited: float = 0.6
    sigmas: float = 5.0
    norms: float = 4.0
    share: float = 0.05
    share_changed: float = 0.25

    name: ClassVar[str] = "replaced"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: replaced tensors are described entry by entry, others stay unexplained."""
        if self.name in pair.operations:
            return None
        kept = [m for m in pair.matrices if m.measured is not None and (m.is_explained or self._is_inherited(m))]
        replaced = [m for m in pair.matrices if not _position_table(pair, m)]
        replaced = [m for m in replaced if m.measured is None or (not m.is_explained and self._at_chance(pair, m))]
        added = [n for n in pair.new if n in matrices(pair.child)]
        least = self.share if any(m.is_explained for m in kept) else self.share_changed
        if (
            not kept
            or not (replaced or added)
            or sum(m.size for m in kept) < least * sum(m.size for m in pair.matrices)
        ):
            return None
        if _may_be_mispaired(replaced):
            return None
        gone = [n for n in pair.removed if n in matrices(pair.parent)]
        heads = [m for m in replaced if is_head(pair, m)] if not gone and not added else []
        stems = {m.b.rsplit(".", 1)[0] for m in replaced}
        beside = [v for v in pair.layers if not v.matrix and v.b.rsplit(".", 1)[0] in stems]
        names = sorted(m.b for m in replaced) + sorted(added)
        only_head = bool(heads) and len(heads) == len(replaced)
        kind = RelationKind.HEAD_REPLACED if only_head else RelationKind.PART_INHERITED
        bits = sum(entry_bits(m, m.sums.norm_b) for m in (*replaced, *beside))
        step = Step(
            "head replaced" if only_head else "part inherited",
            kind,
            f"{'the head' if only_head else _matrices(len(names))} ({', '.join(names[:3])}"
            f"{', …' if names[3:] else ''}) {'is' if only_head or len(names) == 1 else 'are'} new, "
            f"{_matrices(len(kept))} {'was' if len(kept) == 1 else 'were'} inherited",
            {"replaced": names, "inherited": sorted(m.b for m in kept), "new": names,
             "left": sum(m.sums.difference for m in (*replaced, *beside))},
            bits=bits,
            place=0.7,
        )  # fmt: skip
        done = {m.b: m.explained("replaced") for m in (*replaced, *beside)}
        return FittedOperation(step, pair.with_layers(done, self.name))

    def _is_inherited(self, layer: Layer) -> bool:
        """Whether cosine and ratio of norms show that a matrix still derives from the parent's."""
        s = layer.sums
        near = s.norm_a <= self.norms**2 * s.norm_b and s.norm_b <= self.norms**2 * s.norm_a
        return near and s.cosine >= self.inherited

    def _at_chance(self, pair: Pair, layer: Layer) -> bool:
        """Whether two matrices agree no more than independent ones, ignoring what all rows share."""
        chance = 0.05 + self.sigmas / np.sqrt(max(1, layer.sums.read))
        if layer.sums.cosine <= min(self.fresh, chance):
            return True
        return layer.sums.cosine < self.inherited and _typical_row(pair, layer) <= self.fresh


def _typical_row(pair: Pair, layer: Layer) -> float:
    """Median cosine of the rows of two token tables without their mean row; 1 for other or too large matrices."""
    x, y = pair.parent.weights[layer.a], pair.child.weights[layer.b]
    labels = pair.structure_of_parent.axes.get(layer.a, ())
    tokens = len(labels) == 2 and labels[0].role == "token" and labels[1].role != "token"
    if not tokens or x.shape != y.shape or x.size > LARGEST:
        return 1.0
    u, v = (finite(t.array()) for t in (x, y))
    u, v = u - u.mean(0), v - v.mean(0)
    norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return float(np.median((u * v).sum(1)[norm > 0] / norm[norm > 0])) if (norm > 0).any() else 1.0


def _position_table(pair: Pair, layer: Layer) -> bool:
    """Whether a tensor is a table of positions, which is small and often newly drawn."""
    return any(label.role == "position" for label in pair.structure_of_parent.axes.get(layer.a, ()))


def _may_be_mispaired(replaced: list[Layer]) -> bool:
    """Whether matrices may look new because several renamed ones of one size were paired by contents."""
    renamed = [m.sums.shape for m in replaced if m.a != m.b and m.measured is not None]
    return len(renamed) > len(set(renamed))


def is_head(pair: Pair, layer: Layer) -> bool:
    """Whether a matrix is the output layer, by structure or by name."""
    if HEAD.search(layer.b) or HEAD.search(layer.a):
        return True
    labels = pair.structure_of_parent.axes.get(layer.a, ())
    roles = [label.role for label in labels]
    return "class" in roles


def _matrices(count: int) -> str:
    return "1 matrix" if count == 1 else f"{count} matrices"

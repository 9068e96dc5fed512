"""Replaced: some tensors have nothing in common with the parent's while the others have: a head, or a larger part."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, Explained, entry_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.kept_units import LARGEST
from stemma.kinship.relation.pair import Layer, Pair
from stemma.kinship.weights.order.units_of_pair import finite
from stemma.types import RelationKind

HEAD = re.compile(r"(^|[._])(head|heads|classifier|fc_out|lm_head|output|logits|score|linear_out|predictions)([._]|$)")
"""Names that output layers have where the structure does not say which tensor gives the classes."""


@dataclass(frozen=True)
class Replaced(AbstractOperation):
    """Matrices at chance beside matrices that were inherited.

    Attributes:
        fresh: Largest cosine at which a matrix counts as made anew, however small it is.
        sigmas: Standard deviations of the cosine of independent matrices of this size within which it does.
        inherited: Cosine from which a matrix counts as handed down.
        norms: Ratio of norms up to which it does.
        share: Share of the entries of all matrices that must have been handed down where some are unchanged.
        share_changed: The same where all were trained on.
    """

    fresh: float = 0.3
    inherited: float = 0.6
    sigmas: float = 5.0
    norms: float = 4.0
    share: float = 0.05
    share_changed: float = 0.25

    name: ClassVar[str] = "replaced"

    def explain(self, pair: Pair) -> Explained | None:
        """See `AbstractOperation.explain`: replaced tensors are told number by number, the others are left open."""
        if self.name in pair.taken:
            return None
        kept = [m for m in pair.matrices if m.measured is not None and (m.settled or self._handed_down(m))]
        anew = [m for m in pair.matrices if not _positions(pair, m)]
        anew = [m for m in anew if m.measured is None or (not m.settled and self._at_chance(pair, m))]
        added = [n for n in pair.new if n in matrices(pair.child)]
        least = self.share if any(m.settled for m in kept) else self.share_changed
        if not kept or not (anew or added) or sum(m.size for m in kept) < least * sum(m.size for m in pair.matrices):
            return None
        if _mispaired(anew):
            return None
        gone = [n for n in pair.removed if n in matrices(pair.parent)]
        heads = [m for m in anew if is_head(pair, m)] if not gone and not added else []
        stems = {m.b.rsplit(".", 1)[0] for m in anew}
        beside = [v for v in pair.layers if not v.matrix and v.b.rsplit(".", 1)[0] in stems]
        names = sorted(m.b for m in anew) + sorted(added)
        only_head = bool(heads) and len(heads) == len(anew)
        kind = RelationKind.HEAD_REPLACED if only_head else RelationKind.PART_INHERITED
        told = sum(entry_bits(m, m.sums.norm_b) for m in (*anew, *beside))
        step = Step(
            "head replaced" if only_head else "part inherited",
            kind,
            f"{'the head' if only_head else f'{len(names)} matrices'} ({', '.join(names[:3])}"
            f"{', …' if names[3:] else ''}) {'is' if only_head else 'are'} new, {len(kept)} matrices were inherited",
            {"replaced": names, "inherited": sorted(m.b for m in kept), "new": names,
             "left": sum(m.sums.difference for m in (*anew, *beside))},
            bits=told,
            place=0.7,
        )  # fmt: skip
        done = {m.b: m.explained("replaced") for m in (*anew, *beside)}
        return Explained(step, pair.with_layers(done, self.name))

    def _handed_down(self, layer: Layer) -> bool:
        """Whether a matrix is still much the parent's: a difference of two models may point the same way, and is tiny.

        Returns:
            True for a cosine that large at a norm that near.
        """
        s = layer.sums
        near = s.norm_a <= self.norms**2 * s.norm_b and s.norm_b <= self.norms**2 * s.norm_a
        return near and s.cosine >= self.inherited

    def _at_chance(self, pair: Pair, layer: Layer) -> bool:
        """Whether two matrices agree no more than independent ones do.

        Rows of tokens that the data hardly has are pushed one way by any training: what all rows share is left out.

        Returns:
            True for a matrix that was made anew.
        """
        chance = 0.05 + self.sigmas / np.sqrt(max(1, layer.sums.read))
        if layer.sums.cosine <= min(self.fresh, chance):
            return True
        return layer.sums.cosine < self.inherited and _typical_row(pair, layer) <= self.fresh


def _typical_row(pair: Pair, layer: Layer) -> float:
    """Median cosine of the rows of two tables of tokens, what all rows of a table share left out.

    Returns:
        The cosine; 1 of other matrices, and of tables that are too large to be read.
    """
    x, y = pair.parent.weights[layer.a], pair.child.weights[layer.b]
    labels = pair.known.axes.get(layer.a, ())
    tokens = len(labels) == 2 and labels[0].role == "token" and labels[1].role != "token"
    if not tokens or x.shape != y.shape or x.size > LARGEST:
        return 1.0
    u, v = (finite(t.array()) for t in (x, y))
    u, v = u - u.mean(0), v - v.mean(0)
    norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return float(np.median((u * v).sum(1)[norm > 0] / norm[norm > 0])) if (norm > 0).any() else 1.0


def _positions(pair: Pair, layer: Layer) -> bool:
    """Whether a tensor is a table of positions: small, often drawn anew, and no part by itself."""
    return any(label.role == "position" for label in pair.known.axes.get(layer.a, ()))


def _mispaired(anew: list[Layer]) -> bool:
    """Whether matrices may only look new because contents, not names, paired them: several of one size, renamed."""
    renamed = [m.sums.shape for m in anew if m.a != m.b and m.measured is not None]
    return len(renamed) > len(set(renamed))


def is_head(pair: Pair, layer: Layer) -> bool:
    """Whether a matrix gives the network's answers.

    Args:
        pair: The pair.
        layer: One of its matrices.

    Returns:
        True for a matrix whose outputs are classes or tokens read from hidden units, by structure or by name.
    """
    if HEAD.search(layer.b) or HEAD.search(layer.a):
        return True
    labels = pair.known.axes.get(layer.a, ())
    roles = [label.role for label in labels]
    return "class" in roles

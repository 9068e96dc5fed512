"""Directions by which forget samples differ, removed from what a layer reads; the layer is refitted in closed form.

The projection is that of LEACE (Belrose et al., "LEACE: Perfect linear concept erasure in closed form", NeurIPS 2023):
orthogonal in the metric of the kept samples' covariance, so that what the layer reads of these moves least. LEACE has
labels of a concept; here the concept is "forget sample or kept one", and further directions are those in which the
forget samples spread most, relative to the kept ones: the leading generalised eigenvectors of the two second moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stemma.edits.fidelity.statistics import LayerStatistics

INPUTS_PER_DIRECTION = 8
"""Inputs that a layer needs for every direction it loses: one that reads four pixels would lose a quarter of them."""

WHITENING = 1e-2
"""Fraction of the mean variance by which the kept samples' variances are raised before they are inverted."""


@dataclass(frozen=True, eq=False)
class PairedMoments:
    """What a layer reads of kept samples in the edited network, and what it answered in the original.

    Attributes:
        inputs: Statistics of what it reads, edited.
        cross: Sum of `y uᵀ`, `[outputs, inputs]`: the original's outputs by the edited network's inputs.
        outputs: Sum of the original's outputs.
    """

    inputs: LayerStatistics
    cross: torch.Tensor
    outputs: torch.Tensor

    def __add__(self, other: "PairedMoments") -> "PairedMoments":
        return PairedMoments(self.inputs + other.inputs, self.cross + other.cross, self.outputs + other.outputs)


def erasing_projection(forget: Sequence[LayerStatistics], kept: LayerStatistics, rank: int) -> torch.Tensor:
    """The projection `P [inputs, inputs]` that removes the directions of each forgotten class.

    Args:
        forget: Statistics of what the layer reads of each class.
        kept: The same of kept samples.
        rank: Directions per class: the difference of means, then the leading generalised eigenvectors.

    Returns:
        `P`, for deviations from the kept samples' mean.
    """
    rank = min(rank, directions_at_most(len(kept.total)))
    mean, covariance = kept.total / kept.count, kept.moment(centred=True)
    identity = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    size = float((kept.second.diagonal() / kept.count).mean())
    scale = max(float(covariance.diagonal().mean()), 1e-9 * size) or 1.0  # inputs that never vary are left as they are
    root = torch.linalg.cholesky(covariance + WHITENING * scale * identity)
    found = []
    for part in forget:
        offset = part.total / part.count - mean
        found.append(_whitened(root, offset[:, None]))
        if rank > 1:
            about_kept = part.moment(centred=True) + torch.outer(offset, offset)
            white = _whitened(root, _whitened(root, about_kept).T)
            found.append(torch.linalg.eigh((white + white.T) / 2).eigenvectors.flip(1)[:, : rank - 1])
    basis = _orthonormal(torch.cat(found, 1))
    back = torch.linalg.solve_triangular(root.T, basis, upper=True)
    return identity - root @ basis @ back.T


def directions_at_most(inputs: int) -> int:
    """How many directions per class a layer with so many inputs can lose; none where it reads very few."""
    return inputs // INPUTS_PER_DIRECTION


def erased_weights(
    weights: torch.Tensor, projection: torch.Tensor, paired: PairedMoments, damping: float, *, shift: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layer that reads only what the projection leaves, and answers kept samples as the original did.

    Args:
        weights: The original's `[outputs, inputs]`.
        projection: From `erasing_projection`.
        paired: Moments of kept samples.
        damping: Fraction of each input's mean square by which the fit is drawn to the original's weights.
        shift: Whether the layer has a bias, so that deviations from the mean are projected and fitted.

    Returns:
        New weights, and the new bias where there is one.
    """
    count = paired.inputs.count
    moment, cross = paired.inputs.moment(centred=shift), paired.cross / count
    mean, middle = paired.inputs.total / count, paired.outputs / count
    if shift:
        cross = cross - torch.outer(middle, mean)
    seen = projection @ moment @ projection.T
    size = (paired.inputs.second.diagonal() / count).clamp_min(1e-30)
    ridge = damping * (size + size.mean()) / 2
    fitted = torch.linalg.solve(seen + torch.diag(ridge), (cross @ projection.T + weights * ridge).T).T
    new = fitted @ projection
    return new, middle - new @ mean if shift else None


def _whitened(root: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve_triangular(root, columns, upper=False)


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of columns; those that are nothing but rounding are left out."""
    left, values, _ = torch.linalg.svd(columns / columns.norm(dim=0).clamp_min(1e-300), full_matrices=False)
    return left[:, values > 1e-8 * values.max().clamp_min(1e-300)]

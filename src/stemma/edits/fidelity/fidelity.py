"""Fidelity of components in closed form: how well a part of a layer's inputs reproduces what the layer computes.

Output `c` of a layer is a sum of contributions `A_ci`, one per input unit `i`. With weights `w_c` and second
moments `S` of the layer's inputs, the similarity of two contributions is `Q_c[i, j] = w_ciᵀ S_ij w_cj`: one matrix
serves all outputs. A unit may own several rows of `S` (the entries of a kernel, the channels of a head).

Source: Kashyap et al., "ModHiFi: Identifying High Fidelity predictive components for Model Modification", NeurIPS 2025,
sections 3 and 4. The closed forms from one matrix, the refit of whole kernels and the cost of leaving a unit out are
Stemma's.
"""

import torch

DAMPING = 1e-4
"""Share by which the diagonal of a matrix is raised before it is inverted. The paper adds an absolute 1e-4, whose
effect depends on the scale in which each input happens to be kept."""


def similarity(weights: torch.Tensor, moment: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The component similarity matrix of one output.

    Args:
        weights: Of that output, `[inputs * kernel]`.
        moment: Mean of `u uᵀ`.
        index: Rows of each unit, `[units, rows]`.

    Returns:
        `[units, units]`, symmetric and positive semi-definite; its sum is the output's mean square.
    """
    units, rows = index.shape
    order = index.reshape(-1)
    scaled = weights[order, None] * moment[order][:, order] * weights[None, order]
    return scaled.reshape(units, rows, units, rows).sum((1, 3))


def subset_fidelity(q: torch.Tensor, kept: torch.Tensor) -> float:
    """The best share of an output's mean square that a rescaled sum of some contributions explains.

    Args:
        q: Component similarity matrix.
        kept: Positions of the contributions.

    Returns:
        A number in [0, 1]; 0 where the output is always zero.
    """
    whole = float(q.sum())
    if whole <= 0 or len(kept) == 0:
        return 0.0
    part = q[kept].sum(1)
    scale = torch.linalg.lstsq(q[kept][:, kept], part[:, None], driver="gelsd").solution[:, 0]
    return min(1.0, max(0.0, float(part @ scale) / whole))


def compensation(q: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """By what each kept contribution is multiplied so that their sum is nearest to the output.

    Args:
        q: Component similarity matrix.
        kept: Positions of the contributions that stay.

    Returns:
        Factors, one per kept contribution: least squares of the output on them.
    """
    return torch.linalg.solve(q[kept][:, kept], q[kept].sum(1))


def contributions(
    weights: torch.Tensor, moment: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Alignment with the output and mean square of every contribution.

    Args:
        weights: `[outputs, inputs * kernel]`.
        moment: Mean of `u uᵀ`.
        index: Rows of each unit, `[units, rows]`.

    Returns:
        `R [outputs, units]`, the mean inner product of output and contribution, and `q [outputs, units]`, the mean
        square of the contribution.
    """
    gathered = weights[:, index]
    aligned = (gathered * (weights @ moment)[:, index]).sum(-1)
    inner = moment[index[:, :, None], index[:, None, :]]
    return aligned, torch.einsum("oui,uij,ouj->ou", gathered, inner, gathered)


def singleton(aligned: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Fidelity of each contribution alone: the squared, uncentred cosine between it and the output.

    Args:
        aligned: `R [outputs, units]`; its sum over all units is the output's mean square.
        squares: `q [outputs, units]`.

    Returns:
        `[outputs, units]` in [0, 1]; 0 for contributions and outputs that are always zero.
    """
    whole = aligned.sum(1, keepdim=True)
    below = squares * whole
    tiny = torch.finfo(squares.dtype).eps * below.abs().amax().clamp_min(torch.finfo(squares.dtype).tiny)
    return torch.where(below > tiny, aligned.square() / below.clamp_min(tiny), torch.zeros_like(below)).clamp(0, 1)


def levels(moment: torch.Tensor) -> torch.Tensor:
    """What damping is a share of: the diagonal, with a trace of its mean where an input is always zero.

    Args:
        moment: Symmetric, positive semi-definite.

    Returns:
        One positive number per input; it scales with the input, so damped solutions do not depend on that scale.
    """
    own = moment.diagonal()
    return own.clamp_min(float(own.mean()) * 1e-6).clamp_min(1e-30)


def damped(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """A matrix that can be inverted.

    Args:
        moment: Symmetric, positive semi-definite.
        damping: Share of `levels` that is added.

    Returns:
        The matrix with its diagonal raised.
    """
    return moment + torch.diag(damping * levels(moment))


def inverse(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The inverse of a damped second-moment matrix; damping grows tenfold until it exists.

    Args:
        moment: Mean of `u uᵀ`.
        damping: First share of `levels` that is added.

    Returns:
        The inverse, float64.
    """
    for _ in range(8):
        factor, failed = torch.linalg.cholesky_ex(damped(moment, damping))
        if not int(failed):
            return torch.cholesky_inverse(factor)
        damping = 10 * damping if damping else 1e-8
    return torch.linalg.pinv(moment, hermitian=True)


def left_out(weights: torch.Tensor, inverted: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """By how much the squared error of all outputs grows when one unit is removed and all others are refitted.

    Args:
        weights: `[outputs, inputs * kernel]`.
        inverted: Inverse of the second moments.
        index: Rows of each unit, `[units, rows]`.

    Returns:
        One cost per unit: `sum_c w_ciᵀ ([S⁻¹]_ii)⁻¹ w_ci`.
    """
    inner = inverted[index[:, :, None], index[:, None, :]]
    gathered = weights[:, index].permute(1, 2, 0)
    return (gathered * torch.linalg.solve(inner, gathered)).sum((1, 2))


def refitted(weights: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Whole kernels of the kept inputs, solved for so that the outputs change least.

    Args:
        weights: `[outputs, inputs * kernel]`.
        moment: Mean of `u uᵀ`.
        kept: Rows that stay.
        damping: Share of `levels` that is added.

    Returns:
        `[outputs, kept]`: the kept weights plus what the dropped inputs can be predicted by.
    """
    gone = torch.ones(len(moment), dtype=torch.bool, device=moment.device)
    gone[kept] = False
    if not bool(gone.any()):
        return weights[:, kept]
    wanted = weights[:, gone] @ moment[gone][:, kept]
    return weights[:, kept] + torch.linalg.solve(damped(moment[kept][:, kept], damping), wanted.T).T


def rescaled(
    weights: torch.Tensor, moment: torch.Tensor, index: torch.Tensor, kept: torch.Tensor, damping: float = DAMPING
) -> torch.Tensor:  # fmt: skip
    """The kept inputs of every output multiplied by the factors of `compensation`, as published.

    Args:
        weights: `[outputs, inputs * kernel]`.
        moment: Mean of `u uᵀ`.
        index: Rows of each unit, `[units, rows]`.
        kept: Units that stay.
        damping: Share of `levels` that is added.

    Returns:
        `[outputs, kept rows]`.
    """
    rows = index[kept]
    out = weights[:, rows].clone()
    for c in range(len(weights)):
        q = similarity(weights[c], moment, index)
        out[c] *= torch.linalg.solve(damped(q[kept][:, kept], damping), q[kept].sum(1))[:, None]
    return out.reshape(len(weights), -1)


def error(weights: torch.Tensor, changed: torch.Tensor, moment: torch.Tensor) -> float:
    """Squared error of a layer's outputs after its weights were changed, as a share of their mean square.

    Args:
        weights: `[outputs, inputs * kernel]`.
        changed: The same shape, zero where inputs were removed.
        moment: Mean of `u uᵀ`, or the covariance.

    Returns:
        0 where nothing changed, 1 where the outputs are lost.
    """
    apart = changed - weights
    whole = float((weights @ moment * weights).sum())
    return float((apart @ moment * apart).sum()) / whole if whole > 0 else 0.0

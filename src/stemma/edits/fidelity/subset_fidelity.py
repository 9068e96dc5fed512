"""Subset fidelity in closed form, the score by which Algorithm 1 of ModHiFi ranks the inputs of a layer.

Output `c` of a layer is a sum of contributions `A_ci`, one per input unit `i`. With weights `w_c` and second
moments `S` of the layer's inputs, the similarity of two contributions is `Q_c[i, j] = w_ciᵀ S_ij w_cj`: one matrix
serves all outputs. A unit may own several rows of `S` (the entries of a kernel, the channels of a head).

Source: Kashyap et al., "ModHiFi: Identifying High Fidelity predictive components for Model Modification", NeurIPS 2025,
sections 3 and 4. `leave_one_out_error` is the saliency of the structured optimal brain surgeon (Hassibi and Stork 1993;
ZipLM, Kurtic et al. 2023).
"""

import torch

DAMPING = 1e-4
"""Fraction by which the diagonal of a matrix is raised before it is inverted. The paper adds an absolute 1e-4, whose
effect depends on the scale of each input."""


def component_similarity(weights: torch.Tensor, moment: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The similarity matrix `Q_c [units, units]` of one output; its sum is the output's mean square."""
    # `weights [inputs * kernel]` are those of the output, `moment` the mean of `u uᵀ`, `index [units, rows]` each
    # unit's rows.
    units, rows = index.shape
    order = index.reshape(-1)
    scaled = weights[order, None] * moment[order][:, order] * weights[None, order]
    return scaled.reshape(units, rows, units, rows).sum((1, 3))


def subset_fidelity(similarity: torch.Tensor, kept: torch.Tensor) -> float:
    """The fraction, in [0, 1], of an output's mean square that a rescaled sum of the kept contributions explains."""
    whole = float(similarity.sum())
    if whole <= 0 or len(kept) == 0:
        return 0.0
    part = similarity[kept].sum(1)
    scale = torch.linalg.lstsq(similarity[kept][:, kept], part[:, None], driver="gelsd").solution[:, 0]
    return min(1.0, max(0.0, float(part @ scale) / whole))


def contributions(
    weights: torch.Tensor, moment: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean inner product with the output (`R`) and mean square (`q`) of every contribution, `[outputs, units]` each."""
    # `weights [outputs, inputs * kernel]`, `moment` the mean of `u uᵀ`, `index [units, rows]` each unit's rows.
    gathered = weights[:, index]
    aligned = (gathered * (weights @ moment)[:, index]).sum(-1)
    inner = moment[index[:, :, None], index[:, None, :]]
    return aligned, torch.einsum("oui,uij,ouj->ou", gathered, inner, gathered)


def singleton_fidelity(aligned: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Fidelity of each contribution alone, from `R` and `q`: its squared, uncentred cosine with the output."""
    whole = aligned.sum(1, keepdim=True)
    below = squares * whole
    tiny = torch.finfo(squares.dtype).eps * below.abs().amax().clamp_min(torch.finfo(squares.dtype).tiny)
    return torch.where(below > tiny, aligned.square() / below.clamp_min(tiny), torch.zeros_like(below)).clamp(0, 1)


def damping_scale(moment: torch.Tensor) -> torch.Tensor:
    """The diagonal that damping is a fraction of, positive also where an input is always zero."""
    # It scales with each input, so damped solutions do not depend on that scale.
    diagonal = moment.diagonal()
    return diagonal.clamp_min(float(diagonal.mean()) * 1e-6).clamp_min(1e-30)


def damp(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """A second-moment matrix with its diagonal raised, so that it can be inverted."""
    return moment + torch.diag(damping * damping_scale(moment))


def damped_inverse(moment: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """The inverse of a damped second-moment matrix in float64; damping grows tenfold until it exists."""
    for _ in range(8):
        factor, failed = torch.linalg.cholesky_ex(damp(moment, damping))
        if not int(failed):
            return torch.cholesky_inverse(factor)
        damping = 10 * damping if damping else 1e-8
    return torch.linalg.pinv(moment, hermitian=True)


def leave_one_out_error(weights: torch.Tensor, inverted: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Growth of all outputs' squared error when one unit is removed: `sum_c w_ciᵀ ([S⁻¹]_ii)⁻¹ w_ci`, per unit."""
    # All others are refitted; `inverted` is the inverse of the second moments.
    inner = inverted[index[:, :, None], index[:, None, :]]
    gathered = weights[:, index].permute(1, 2, 0)
    return (gathered * torch.linalg.solve(inner, gathered)).sum((1, 2))

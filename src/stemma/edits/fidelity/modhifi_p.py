"""Algorithm 1 of ModHiFi (ModHiFi-P), in its terms: which inputs of layers are High Fidelity, and what the others lose.

Output `c` of a layer is a sum of contributions `A_ci` of its inputs `i`, `Y_c = sum_i A_ci`. For every layer:

1. The saliency of an input for an output: `R_ci = E <Y_c, A_ci>` (`contributions`), or the fidelity of that input
   alone, `R_ci² / (E ||A_ci||² E ||Y_c||²)` (`singleton_fidelity`). The paper uses both: the first in appendix D.2, the
   second in its listing. For batch-norm networks products are centred.
2. The High Fidelity set of an output: its inputs above a percentile of the saliency (`ranks`).
3. A unit is kept if it is in the High Fidelity set of any output of any layer that reads it (`union_over_outputs`,
   `union_over_readers`, `kept_at`): the percentile is one number for the whole network.
4. What is kept is compensated: the contribution `A_ci` is multiplied by `delta_ci`, which solves
   `Q_c[S, S] delta_c = Q_c[S, :] 1` (proposition 3.8; `compensated`), with a damped diagonal.
5. Rows are sliced (`stemma.edits.dependency_graph.slicing`), batch norm is recalibrated (`batch_norm_recalibration`),
   and the whole is repeated, until the network is as small as it has to be (`stemma.edits.pruning`).

Departures: damping is a fraction of each diagonal entry, the paper adds 1e-4; inputs that contribute nothing at all go
first; ties go to the larger mean rank. The paper leaves the percentile to the user; here a budget determines it.

Source: Kashyap et al., "ModHiFi: Identifying High Fidelity predictive components for Model Modification", NeurIPS 2025,
algorithm 1, sections 3 and 4, appendix D.
"""

from collections.abc import Sequence

import numpy as np
import torch

from stemma.edits.fidelity.subset_fidelity import component_similarity, damp, damping_scale


def ranks(saliency: torch.Tensor) -> torch.Tensor:
    """The rank of every input among those of its output, from 0; `saliency [outputs, inputs]`."""
    return saliency.argsort(dim=1, stable=True).argsort(dim=1)


def union_over_outputs(saliency: torch.Tensor) -> torch.Tensor:
    """The largest rank of every input in any output: it is in a High Fidelity set if this one is above the cut."""
    best = ranks(saliency).double().amax(0)
    return best + 0.5 * (saliency.mean(0).argsort().argsort() / len(best)).to(best)  # the mean breaks ties


def union_over_readers(of_readers: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same over all layers that read the units."""
    return torch.stack(list(of_readers)).amax(0)


def percentiles(union: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """The percentile of every unit, in fractions; units that contribute nothing are below all others."""
    return np.where(energy > 0, union, -1.0) / len(union)


def kept_at(unit_percentiles: np.ndarray, percentile: float) -> int:
    """How many units of a group are in the High Fidelity set of any output at this percentile."""
    return int((unit_percentiles >= percentile).sum())


def compensated(
    weights: torch.Tensor, moment: torch.Tensor, cross: torch.Tensor, index: torch.Tensor, damping: float
) -> torch.Tensor:
    """Weights `[outputs, kept]` multiplied by `delta_ci`, which fits every output best, damped towards one."""
    # `moment` are second moments of the kept inputs, `cross [outputs, kept]` wanted output times input,
    # `index [units, rows]` each unit's rows.
    out = weights.clone()
    for c in range(len(weights)):
        similarity = component_similarity(weights[c], moment, index)
        explained = (weights[c] * cross[c])[index].sum(1)
        delta = torch.linalg.solve(damp(similarity, damping), explained + damping * damping_scale(similarity))
        out[c] = out[c].index_put((index,), out[c][index] * delta[:, None])
    return out

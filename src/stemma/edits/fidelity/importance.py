"""Importance scores: how much each unit of a group matters to the layers that read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.dependency_groups import DependencyGroup, Reader
from stemma.edits.fidelity import modhifi_p, subset_fidelity
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.layer_inputs import weight_matrix
from stemma.errors import MisuseError

SCORES: Mapping[str, str] = {
    "left-out": "leave-one-out error: growth of the error when the unit is removed and all others are refitted",
    "elimination": "optimal brain surgeon order: the same, recomputed after every few removals",
    "alignment": "mean inner product of contribution and output (ModHiFi's saliency)",
    "fidelity": "squared cosine of contribution and output, mean over outputs (ModHiFi's singleton fidelity)",
    "union-alignment": "best rank of the alignment over all outputs (ModHiFi's union rule)",
    "union-fidelity": "best rank of the fidelity over all outputs",
    "energy": "activation energy: mean square of the contribution (ModHiFi's score for language models)",
    "alpha": "factor by which a contribution alone reproduces the output (a control, not a useful score)",
    "wanda": "sum of absolute weights times the root mean square of the input (baseline)",
    "l2": "norm of all weights of the unit (baseline)",
    "bn-scale": "absolute gain of the batch norm behind the unit (baseline)",
    "random": "a random order (baseline)",
}
"""The scores by name. All but the last three are computed from second moments."""

SCORE_ALIASES: Mapping[str, str] = {
    "leave-one-out": "left-out",
    "optimal-brain-surgeon": "elimination",
    "activation-energy": "energy",
}
"""Names of the field for some scores; they are recorded under the name of `SCORES`."""


@dataclass(frozen=True, eq=False)
class ReaderMatrices:
    """One layer that reads the units of a group, as matrices.

    Attributes:
        reader: The layer.
        weights: `[outputs, inputs * kernel]`, float64.
        moment: Second moments of its inputs; the covariance where a norm or a bias absorbs the mean.
        index: Rows of each unit among the inputs, `[units, rows]`.
        energy: Mean square of the outputs, summed.
        squares: Mean square of every input, `[inputs * kernel]`, the mean included.
    """

    reader: Reader
    weights: torch.Tensor
    moment: torch.Tensor
    index: torch.Tensor
    energy: float
    squares: torch.Tensor


def absorbs_mean(reader: Reader, module: torch.nn.Module) -> bool:
    """Whether batch norm or a bias absorbs a change of the layer's mean output, so that only the covariance counts."""
    return reader.normed or getattr(module.get_submodule(reader.layer), reader.bias_attribute, None) is not None


def unit_rows(group: DependencyGroup, reader: Reader, layer: Any) -> torch.Tensor:
    """The rows of each unit of a group among a layer's unfolded inputs, `[units, rows]`."""
    index = next(r.index for r in group.rows if r.tensor == reader.weight and r.axis == reader.input_axis)
    kernel = input_rows(layer, reader).shape[1]
    rows = index[:, :, None] * kernel + np.arange(kernel)
    return torch.from_numpy(rows.reshape(len(index), -1))


def input_rows(layer: Any, reader: Reader) -> torch.Tensor:
    """The rows of each input of a layer among its unfolded inputs, `[inputs, kernel]`."""
    columns = weight_matrix(layer, reader.attribute).shape[1]
    inputs = getattr(layer, reader.attribute).shape[reader.input_axis]
    return torch.arange(columns).reshape(inputs, -1)


def reader_matrices(group: DependencyGroup, module: torch.nn.Module, statistics: Statistics) -> list[ReaderMatrices]:
    """Weights and moments of all layers that read a group; `MisuseError` if a layer has no statistics."""
    out = []
    for reader in (r for r in group.readers if r.kind != "recurrent"):
        if reader.weight not in statistics.layers:
            raise MisuseError(f"there are no statistics of {reader.layer}, which reads {group.name}. Collect them with "
                              "the same settings, on inputs that reach this layer")  # fmt: skip
        layer = module.get_submodule(reader.layer)
        layer_statistics = statistics.layers[reader.weight]
        moment = layer_statistics.moment(centred=absorbs_mean(reader, module))
        weights = weight_matrix(layer, reader.attribute).detach().to(moment.device, torch.float64)
        energy = float((weights @ moment * weights).sum())
        squares = layer_statistics.moment(centred=False).diagonal()
        index = unit_rows(group, reader, layer).to(moment.device)
        out.append(ReaderMatrices(reader, weights, moment, index, energy, squares))
    return out


def importance_scores(
    group: DependencyGroup, module: torch.nn.Module, statistics: Statistics, kind: str, seed: int = 0
) -> torch.Tensor:
    """One float64 score per unit of a group; the unit with the smallest is removed first."""
    # Scores of different groups are comparable, as fractions of an output's mean square, for `left-out`, `alignment`
    # and `energy`. `elimination` is an order and not a score.
    if kind == "random":
        draw = np.random.default_rng([seed, group.size, len(group.name)])
        return torch.from_numpy(draw.permutation(group.size).astype(np.float64))
    if kind == "l2":
        return _weight_norms(group, module)
    if kind == "bn-scale":
        return _batch_norm_gains(group, module)
    if kind not in SCORES:
        raise MisuseError(f"no score is called {kind!r}. Choose one of {', '.join(SCORES)}")
    found = [_of_reader(r, kind) for r in reader_matrices(group, module, statistics) if r.energy > 0]
    if not found:
        return torch.zeros(group.size, dtype=torch.float64)
    return modhifi_p.union_over_readers(found) if kind.startswith("union") else torch.stack(found).sum(0)


def _of_reader(r: ReaderMatrices, kind: str) -> torch.Tensor:
    if kind == "left-out":
        inverted = subset_fidelity.damped_inverse(r.moment)
        return subset_fidelity.leave_one_out_error(r.weights, inverted, r.index) / r.energy
    if kind == "wanda":
        root = r.squares.clamp_min(0).sqrt()
        return ((r.weights.abs() * root).sum(0))[r.index].sum(1) / r.energy**0.5
    aligned, squares = subset_fidelity.contributions(r.weights, r.moment, r.index)
    if kind == "energy":
        return squares.sum(0) / r.energy
    if kind == "alignment":
        return aligned.sum(0) / r.energy
    if kind == "alpha":
        return torch.where(squares > 0, aligned / squares.clamp_min(1e-300), torch.zeros_like(squares)).abs().mean(0)
    singletons = subset_fidelity.singleton_fidelity(aligned, squares)
    if kind == "fidelity":
        return singletons.mean(0)
    return modhifi_p.union_over_outputs(singletons if kind == "union-fidelity" else aligned)


def _weight_norms(group: DependencyGroup, module: torch.nn.Module) -> torch.Tensor:
    state = dict(module.named_parameters())
    out = torch.zeros(group.size, dtype=torch.float64)
    for r in group.rows:
        weight = state.get(r.tensor)
        if weight is None or weight.ndim < 2:
            continue
        squares = weight.detach().double().cpu().movedim(r.axis, 0).flatten(1).square().sum(1)
        out += squares[torch.from_numpy(r.index)].sum(1)
    return out.sqrt()


def _batch_norm_gains(group: DependencyGroup, module: torch.nn.Module) -> torch.Tensor:
    """Gains of the batch norms behind a group; the norm of its weights where there are none."""
    state = dict(module.named_parameters())
    normed = {n for n, m in module.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    own = [r for r in group.rows if r.tensor in state and r.tensor.endswith("weight")]
    own = [r for r in own if r.tensor.rpartition(".")[0] in normed]
    gains = [state[r.tensor].detach().double().abs().cpu()[torch.from_numpy(r.index)].sum(1) for r in own]
    return torch.stack(gains).mean(0) if gains else _weight_norms(group, module)

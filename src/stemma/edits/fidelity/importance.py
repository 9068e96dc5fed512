"""How much each unit matters to the layers that read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.groups import Group, Reader
from stemma.edits.fidelity import fidelity
from stemma.edits.fidelity.statistics import Statistics
from stemma.edits.layer_inputs import matrix
from stemma.errors import MisuseError

SCORES: Mapping[str, str] = {
    "left-out": "by how much the error grows when the unit is removed and all others are refitted",
    "elimination": "the same, worked out again after every few units that were removed",
    "alignment": "mean inner product of contribution and output (the paper's saliency)",
    "fidelity": "squared cosine of contribution and output, mean over outputs (the paper's singleton fidelity)",
    "union-alignment": "best rank of the alignment over all outputs (the paper's union rule)",
    "union-fidelity": "best rank of the fidelity over all outputs",
    "energy": "mean square of the contribution (the paper's score of language models)",
    "alpha": "factor by which a contribution alone reproduces the output; a control, no good score",
    "wanda": "sum of absolute weights times the root mean square of the input (baseline)",
    "l2": "norm of all weights of the unit (baseline)",
    "bn-scale": "absolute gain of the batch norm behind the unit (baseline)",
    "random": "a random order (baseline)",
}
"""The scores and what they say. All but the last three are computed from second moments."""


@dataclass(frozen=True, eq=False)
class Read:
    """One layer that reads the units of a group, as matrices.

    Attributes:
        reader: The layer.
        weights: `[outputs, inputs * kernel]`, float64.
        moment: Second moments of its inputs; the covariance where a norm or a bias takes up the mean.
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


def centred(reader: Reader, module: torch.nn.Module) -> bool:
    """Whether something behind a layer takes up a change of its mean: batch norm, or its own bias.

    Returns:
        True where only the covariance of the inputs counts.
    """
    return reader.normed or getattr(module.get_submodule(reader.layer), "bias", None) is not None


def rows_of(group: Group, reader: Reader, layer: Any) -> torch.Tensor:
    """Where the units of a group lie among a layer's unfolded inputs.

    Returns:
        `[units, rows]`.
    """
    index = next(r.index for r in group.rows if r.tensor == reader.weight and r.axis == reader.reads)
    kernel = matrix(layer).shape[1] // (layer.weight.shape[reader.reads])
    wide = index[:, :, None] * kernel + np.arange(kernel)
    return torch.from_numpy(wide.reshape(len(index), -1))


def rows_read(layer: Any, reader: Reader) -> torch.Tensor:
    """Where each input of a layer lies among its unfolded inputs.

    Returns:
        `[inputs, kernel]`.
    """
    inputs, columns = layer.weight.shape[reader.reads], matrix(layer).shape[1]
    return torch.arange(columns).reshape(inputs, -1)


def reads(group: Group, module: torch.nn.Module, statistics: Statistics) -> list[Read]:
    """All layers that read a group.

    Args:
        group: The units.
        module: The network.
        statistics: Collected at level `full`.

    Returns:
        One entry per layer.

    Raises:
        MisuseError: If a layer was not run while statistics were collected.
    """
    out = []
    for reader in group.readers:
        if reader.weight not in statistics.layers:
            raise MisuseError(f"no statistics of {reader.layer}, which reads {group.name}: collect them with the same "
                              "choice of groups, on inputs on which it runs")  # fmt: skip
        layer = module.get_submodule(reader.layer)
        seen = statistics.layers[reader.weight]
        moment = seen.moment(centred=centred(reader, module))
        weights = matrix(layer).detach().to(moment.device, torch.float64)
        energy = float((weights @ moment * weights).sum())
        squares = seen.moment(centred=False).diagonal()
        out.append(Read(reader, weights, moment, rows_of(group, reader, layer).to(moment.device), energy, squares))
    return out


def scored(group: Group, module: torch.nn.Module, statistics: Statistics, kind: str, seed: int = 0) -> torch.Tensor:
    """How much each unit of a group matters; the least is removed first.

    Args:
        group: The units.
        module: The network.
        statistics: Of the layers that read them; not needed for `l2`, `bn-scale` and `random`.
        kind: One of `SCORES`, `elimination` excepted, which is an order.
        seed: Of the random order.

    Returns:
        One number per unit, float64; those of different groups are comparable, as shares of an output's mean square,
        for `left-out`, `alignment` and `energy`.

    Raises:
        MisuseError: If there is no such score.
    """
    if kind == "random":
        draw = np.random.default_rng([seed, group.size, len(group.name)])
        return torch.from_numpy(draw.permutation(group.size).astype(np.float64))
    if kind == "l2":
        return _norms(group, module)
    if kind == "bn-scale":
        return _gains(group, module)
    if kind not in SCORES:
        raise MisuseError(f"no score is called {kind!r}. There are: {', '.join(SCORES)}")
    found = [_of_reader(r, kind) for r in reads(group, module, statistics) if r.energy > 0]
    if not found:
        return torch.zeros(group.size, dtype=torch.float64)
    parts = torch.stack(found)
    return parts.amax(0) if kind.startswith("union") else parts.sum(0)


def _of_reader(r: Read, kind: str) -> torch.Tensor:
    if kind == "left-out":
        return fidelity.left_out(r.weights, fidelity.inverse(r.moment), r.index) / r.energy
    if kind == "wanda":
        root = r.squares.clamp_min(0).sqrt()
        return ((r.weights.abs() * root).sum(0))[r.index].sum(1) / r.energy**0.5
    aligned, squares = fidelity.contributions(r.weights, r.moment, r.index)
    if kind == "energy":
        return squares.sum(0) / r.energy
    if kind == "alignment":
        return aligned.sum(0) / r.energy
    if kind == "alpha":
        return torch.where(squares > 0, aligned / squares.clamp_min(1e-300), torch.zeros_like(squares)).abs().mean(0)
    alone = fidelity.singleton(aligned, squares)
    if kind == "fidelity":
        return alone.mean(0)
    entries = alone if kind == "union-fidelity" else aligned
    ranks = entries.argsort(dim=1, stable=True).argsort(dim=1)
    best = ranks.double().amax(0)
    return best + 0.5 * (entries.mean(0).argsort().argsort() / len(best)).to(best)  # the mean breaks ties


def _norms(group: Group, module: torch.nn.Module) -> torch.Tensor:
    state = dict(module.named_parameters())
    out = torch.zeros(group.size, dtype=torch.float64)
    for r in group.rows:
        weight = state.get(r.tensor)
        if weight is None or weight.ndim < 2:
            continue
        squares = weight.detach().double().cpu().movedim(r.axis, 0).flatten(1).square().sum(1)
        out += squares[torch.from_numpy(r.index)].sum(1)
    return out.sqrt()


def _gains(group: Group, module: torch.nn.Module) -> torch.Tensor:
    """Gains of the batch norms behind a group; the norm of its weights where there are none."""
    state = dict(module.named_parameters())
    normed = {n for n, m in module.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    own = [r for r in group.rows if r.tensor in state and r.tensor.endswith("weight")]
    own = [r for r in own if r.tensor.rpartition(".")[0] in normed]
    gains = [state[r.tensor].detach().double().abs().cpu()[torch.from_numpy(r.index)].sum(1) for r in own]
    return torch.stack(gains).mean(0) if gains else _norms(group, module)

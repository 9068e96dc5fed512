"""Refit of the layers that lost inputs: each approximates the outputs that it had in the unpruned network.

Prior art of the least-squares refit after channel removal: He, Zhang and Sun, "Channel pruning for accelerating very
deep neural networks", ICCV 2017; ThiNet (Luo, Wu and Lin, ICCV 2017). One factor per output and input is ModHiFi's.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph, Reader
from stemma.edits.editable_network import EditableNetwork
from stemma.edits.fidelity import modhifi_p, subset_fidelity
from stemma.edits.fidelity.batch_norm_recalibration import MIN_BATCH, batch_statistics
from stemma.edits.fidelity.importance import absorbs_mean, input_rows
from stemma.edits.fidelity.statistics import LayerStatistics, Statistics, StatisticsCollector, cross_moments
from stemma.edits.layer_inputs import (
    as_tensor,
    at_least_float32,
    set_weight_matrix,
    single_input,
    unfold_inputs,
    weight_matrix,
)
from stemma.errors import MisuseError

COMPENSATIONS = ("none", "scalar", "kernel")
"""No refit; one factor per output and input (as published); whole kernels by least squares."""


@dataclass(frozen=True, eq=False)
class RegressionTarget:
    """Moments of the least-squares problem that a pruned layer is refitted by.

    Attributes:
        moment: Second moments of the kept inputs, `[kept, kept]`.
        cross: Wanted output times input, `[outputs, kept]`.
        mean: Mean of the kept inputs.
        output_mean: Mean of the wanted outputs.
    """

    moment: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor
    output_mean: torch.Tensor

    def centred(self) -> "RegressionTarget":
        """The same for deviations from the means."""
        moment = self.moment - torch.outer(self.mean, self.mean)
        return RegressionTarget(
            moment, self.cross - torch.outer(self.output_mean, self.mean), self.mean, self.output_mean
        )


def target_from_statistics(weights: torch.Tensor, statistics: LayerStatistics, kept: torch.Tensor) -> RegressionTarget:
    """The target where inputs are those of the unpruned network; `weights [outputs, inputs * kernel]`, `kept` rows."""
    second, mean = statistics.moment(centred=False), statistics.total / statistics.count
    return RegressionTarget(second[kept][:, kept], weights @ second[:, kept], mean[kept], weights @ mean)


def solve_weights(
    kind: str, start: torch.Tensor, target: RegressionTarget, kernel: int, damping: float
) -> torch.Tensor:
    """The weights `[outputs, kept]` that fit the target best, damped towards `start`; `kernel` rows share a factor."""
    if kind == "none":
        return start
    if kind == "kernel":
        system = subset_fidelity.damp(target.moment, damping)
        wanted = target.cross + damping * subset_fidelity.damping_scale(target.moment) * start
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            return wanted @ torch.linalg.pinv(system, hermitian=True)
        return torch.cholesky_solve(wanted.T, factor).T
    index = torch.arange(start.shape[1], device=start.device).reshape(-1, kernel)
    return modhifi_p.compensated(start, target.moment, target.cross, index, damping)


@dataclass(frozen=True, eq=False)
class PrunedLayer:
    """A layer that lost inputs.

    Attributes:
        reader: The layer.
        inputs: Rows of its unfolded inputs that it kept.
        outputs: Outputs that it kept.
    """

    reader: Reader
    inputs: torch.Tensor
    outputs: torch.Tensor


def pruned_layers(graph: DependencyGraph, module: torch.nn.Module, rows: Any) -> list[PrunedLayer]:
    """The layers of the unpruned network that lose inputs, in order; `rows` as `slicing.kept_rows` gives them."""
    out = []
    for name, reader in graph.readers.items():
        keep = rows.get(name, {}).get(reader.input_axis)
        if keep is None or reader.kind == "recurrent":
            continue
        layer = module.get_submodule(reader.layer)
        shape = graph.shapes[name]
        kernel = input_rows(layer, reader).shape[1]
        inputs = keep[:, None] * kernel + np.arange(kernel)
        outputs = rows[name].get(1 - reader.input_axis, np.arange(shape[1 - reader.input_axis]))
        out.append(PrunedLayer(reader, torch.from_numpy(inputs.reshape(-1)), torch.from_numpy(outputs)))
    return out


@dataclass(frozen=True)
class LayerRefit:
    """How pruned layers are refitted.

    Attributes:
        kind: One of `COMPENSATIONS`.
        sequential: Fit each layer to the inputs that the pruned layers before it produce, towards its outputs in the
            unpruned network; otherwise to its inputs in the unpruned network.
        damping: Fraction by which the diagonal of second moments is raised.
        recalibrate: Batch norm will be recalibrated afterwards, so layers are fitted with the statistics of the batch.
        collector: Batch size and sampled positions.
    """

    kind: str = "kernel"
    sequential: bool = True
    damping: float = subset_fidelity.DAMPING
    recalibrate: bool = True
    collector: StatisticsCollector = field(default_factory=StatisticsCollector)

    def __post_init__(self) -> None:
        if self.kind not in COMPENSATIONS:
            raise MisuseError(f"no compensation is called {self.kind!r}. Choose one of {', '.join(COMPENSATIONS)}")

    def __call__(
        self,
        original: EditableNetwork,
        smaller: EditableNetwork,
        layers: Sequence[PrunedLayer],
        inputs: np.ndarray,
        statistics: Statistics | None = None,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> None:
        """Refit layers of the smaller network in place, in causal order.

        Cost: with `sequential`, one pass of both networks per layer, up to that layer. Otherwise the statistics of the
        whole network are used, and collected if None.
        """
        if not self.sequential and statistics is None and self.kind != "none":
            readers = [pruned.reader for pruned in layers]
            statistics = self.collector(original.module, original.forward, inputs, readers, original.like, progress)
        for done, pruned in enumerate(layers if self.kind != "none" else ()):
            reader = pruned.reader
            if progress is not None:
                progress(f"refitting {reader.layer}", done, len(layers))
            old, new = (a.module.get_submodule(reader.layer) for a in (original, smaller))
            weights = weight_matrix(old, reader.attribute).detach().double()
            weights = weights[pruned.outputs.to(weights.device)]
            if self.sequential or statistics is None:
                target = self._measured_target(original, smaller, reader, weights, inputs)
            else:
                known = statistics.layers[reader.weight]
                device = known.total.device
                target = target_from_statistics(weights.to(device), known, pruned.inputs.to(device))
            shift = absorbs_mean(reader, smaller.module) and (self.recalibrate or not reader.normed)
            fit_layer(new, reader, target, self.kind, self.damping, shift=shift)

    def _measured_target(
        self, original: EditableNetwork, smaller: EditableNetwork, reader: Reader, weights: torch.Tensor,
        inputs: np.ndarray,
    ) -> RegressionTarget:  # fmt: skip
        """Moments of the layer's inputs in the smaller network and of its outputs in the whole one."""
        old = original.module.get_submodule(reader.layer)
        total: Any = None
        count = 0
        draw = torch.Generator().manual_seed(self.collector.seed)
        with torch.no_grad(), ExitStack() as stack:
            if self.recalibrate:
                stack.enter_context(batch_statistics(smaller.module))
            for start in range(0, len(inputs), self.collector.batch):
                if start and len(inputs) - start < MIN_BATCH:
                    break
                x = as_tensor(inputs[start : start + self.collector.batch], original.like)
                before, after = (layer_input(a, reader.layer, x) for a in (original, smaller))
                positions = self.collector.sampled_positions(old, before, draw)
                u = unfold_inputs(old, at_least_float32(before), positions)
                v = unfold_inputs(smaller.module.get_submodule(reader.layer), at_least_float32(after), positions)
                y = u @ weights.T.to(u.dtype)
                count += len(v)
                sums = (z.sum(0, dtype=torch.float64) for z in (v, y))
                part = [cross_moments(v, v), cross_moments(y, v), *sums]
                total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
        moment, cross, mean, output_mean = (z / count for z in total)
        return RegressionTarget(moment, cross, mean, output_mean)


class _ReachedError(Exception):
    """Ends a forward pass when the layer in question is reached."""


def layer_input(editable: EditableNetwork, layer: str, x: torch.Tensor) -> torch.Tensor:
    """The input of a layer for raw inputs, without running what follows it; `MisuseError` if the layer does not run."""
    found: list[torch.Tensor] = []

    def hook(module: Any, given: Any, named: Any) -> None:
        found.append(single_input(given, named))
        raise _ReachedError

    handle = editable.module.get_submodule(layer).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        editable.forward(x)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    if not found:
        raise MisuseError(
            f"the layer {layer} does not run on these inputs, so it cannot be refitted. Give other inputs"
        )
    return found[0]


def fit_layer(layer: Any, reader: Reader, target: RegressionTarget, kind: str, damping: float, *, shift: bool) -> None:
    """Set a pruned layer's weights to the best fit, in place.

    With `shift` only deviations from the mean are fitted; the norm that follows or the bias absorbs the change of mean.
    """
    device = target.moment.device
    start = weight_matrix(layer, reader.attribute).detach().to(device, torch.float64)
    wanted = target.centred() if shift else target
    kernel = input_rows(layer, reader).shape[1]
    found = solve_weights(kind, start, wanted, kernel, damping)
    set_weight_matrix(layer, found, reader.attribute)
    with torch.no_grad():
        bias = getattr(layer, reader.bias_attribute, None)
        if bias is not None and shift and not reader.normed:
            bias.add_((target.output_mean - found @ target.mean).to(bias))

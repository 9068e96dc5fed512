"""Layer after layer of a network, edited so that each reads forget samples as it reads kept ones."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stemma.edits.editable_network import EditableNetwork
from stemma.edits.fidelity.compensation import layer_input
from stemma.edits.fidelity.statistics import LayerStatistics, StatisticsCollector, cross_moments
from stemma.edits.layer_inputs import (
    as_tensor,
    at_least_float32,
    is_linear_or_convolution,
    set_weight_matrix,
    unfold_inputs,
    watch_inputs,
    weight_matrix,
)
from stemma.edits.unlearning.class_directions import (
    PairedMoments,
    directions_at_most,
    erased_weights,
    erasing_projection,
)
from stemma.errors import StemmaError

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class LayerErasure:
    """Removes class directions from layers of a network, in the order in which they run.

    Attributes:
        before: The network before the edit.
        after: A copy, which is edited.
        collector: Batch size and sampled positions.
        damping: Of the refits.
        progress: Told what is being done.
    """

    before: EditableNetwork
    after: EditableNetwork
    collector: StatisticsCollector
    damping: float
    progress: Progress | None = None

    def __call__(self, layers: Sequence[str], rank: int, forget: Sequence[np.ndarray], kept: np.ndarray) -> None:
        """Edit the layers in place; later statistics see the earlier edits.

        Cost: per layer a pass of the edited network over all samples and of the original over the kept ones, up to that
        layer; memory for one layer's moments.
        """
        for done, name in enumerate(layers):
            if self.progress is not None:
                self.progress(f"erasing in {name}", done, len(layers))
            old: Any = self.before.module.get_submodule(name)
            new: Any = self.after.module.get_submodule(name)
            parts = [self._statistics(name, x) for x in forget]
            paired = self._paired(name, kept)
            projection = erasing_projection(parts, paired.inputs, rank)
            weights = weight_matrix(old).detach().to(projection)
            shift = getattr(old, "bias", None) is not None
            matrix, bias = erased_weights(weights, projection, paired, self.damping, shift=shift)
            set_weight_matrix(new, matrix)
            if bias is not None:
                with torch.no_grad():
                    new.bias.copy_(bias.to(new.bias))

    def _statistics(self, name: str, inputs: np.ndarray) -> LayerStatistics:
        """What a layer of the edited network reads."""
        total: LayerStatistics | None = None
        layer, draw = self.after.module.get_submodule(name), torch.Generator().manual_seed(self.collector.seed)
        with torch.no_grad():
            for x in self._batches(inputs):
                read = layer_input(self.after, name, x)
                u = unfold_inputs(layer, at_least_float32(read), self.collector.sampled_positions(layer, read, draw))
                part = LayerStatistics(len(u), u.sum(0, dtype=torch.float64), cross_moments(u, u))
                total = part if total is None else total + part
        assert total is not None
        return total

    def _paired(self, name: str, inputs: np.ndarray) -> PairedMoments:
        """What the edited layer reads, beside what the original answered."""
        total: PairedMoments | None = None
        layer, draw = self.before.module.get_submodule(name), torch.Generator().manual_seed(self.collector.seed)
        weights, bias = weight_matrix(layer).detach(), getattr(layer, "bias", None)
        with torch.no_grad():
            for x in self._batches(inputs):
                old, read = (layer_input(a, name, x) for a in (self.before, self.after))
                if old.shape != read.shape:
                    raise StemmaError(
                        f"{name} reads other positions once earlier layers are edited (a mixture of experts?), "
                        "so it cannot be refitted: name other layers with -P only=PATTERN"
                    )
                positions = self.collector.sampled_positions(layer, old, draw)
                u, v = (unfold_inputs(layer, at_least_float32(z), positions) for z in (old, read))
                y = u @ weights.T.to(u.dtype) + (0 if bias is None else bias.detach().to(u.dtype))
                seen = LayerStatistics(len(v), v.sum(0, dtype=torch.float64), cross_moments(v, v))
                part = PairedMoments(seen, cross_moments(y, v), y.sum(0, dtype=torch.float64))
                total = part if total is None else total + part
        assert total is not None
        return total

    def silence(self, layer: str, classes: Sequence[int], kept: np.ndarray) -> float:
        """Give classes one score, one standard deviation below the mean smallest of the others; returns it."""
        outputs = self.before.outputs(kept).double()
        rest = outputs[:, [i for i in range(outputs.shape[1]) if i not in set(classes)]]
        score = float(rest.amin(1).mean() - rest.std(correction=0))
        head: Any = self.after.module.get_submodule(layer)
        row = torch.zeros(weight_matrix(head).shape[1], dtype=torch.float64, device=self.after.like.device)
        if head.bias is None:  # the row that answers kept samples with this score, as well as can be
            read = self._statistics(layer, kept)
            moment = read.moment(centred=False)
            ridge = self.damping * moment.diagonal().mean().clamp_min(1e-30)
            row = torch.linalg.solve(moment + ridge * torch.eye(len(row)).to(moment), score * read.total / read.count)
        with torch.no_grad():
            weight_matrix(head)[list(classes)] = row.to(head.weight)
            if head.bias is not None:
                head.bias[list(classes)] = score
        return score

    def _batches(self, inputs: np.ndarray) -> Iterator[torch.Tensor]:
        for start in range(0, len(inputs), self.collector.batch):
            yield as_tensor(inputs[start : start + self.collector.batch], self.before.like)


def editable_layers(editable: EditableNetwork, inputs: np.ndarray) -> list[str]:
    """Layers whose inputs can be collected, in the order in which they run: each once, with a weight of its own."""
    module, runs = editable.module, dict[str, int]()
    plain = {n: m for n, m in module.named_modules(remove_duplicate=False) if n and is_linear_or_convolution(m)}
    owners = Counter(id(p) for m in module.modules() for p in m._parameters.values() if p is not None)

    def count(name: str, layer: torch.nn.Module, x: torch.Tensor) -> None:
        runs[name] = runs.get(name, 0) + 1

    with torch.no_grad(), watch_inputs(module, list(plain), count):
        editable.forward(as_tensor(inputs[:2], editable.like))
    return [n for n, k in runs.items() if k == 1 and owners[id(plain[n].weight)] == 1 and _large(plain[n])]


def _large(layer: Any) -> bool:
    """Whether the weight is one matrix of numbers (no grouped convolution) with inputs enough to lose a direction."""
    whole = getattr(layer, "groups", 1) == 1 and layer.weight.is_floating_point()
    return whole and directions_at_most(weight_matrix(layer).shape[1]) > 0


def output_layer(editable: EditableNetwork, layers: Sequence[str], inputs: np.ndarray) -> str | None:
    """The layer whose outputs are the network's own, with one row per class; None where there is none."""
    if not layers:
        return None
    name, found = layers[-1], list[torch.Tensor]()
    layer: Any = editable.module.get_submodule(name)
    handle = layer.register_forward_hook(lambda module, given, out: found.append(out))
    try:
        outputs = editable.outputs(inputs[:2])
    finally:
        handle.remove()
    same = bool(found) and found[-1].shape == outputs.shape and torch.allclose(found[-1].detach().cpu(), outputs)
    return name if same and len(weight_matrix(layer)) == outputs.shape[1] else None

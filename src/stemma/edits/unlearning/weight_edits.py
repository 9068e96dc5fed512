"""Weight edits of a given strength: entries set to zero or negated, or whole layers refitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.dependency_groups import Reader
from stemma.edits.editable_network import EditableNetwork
from stemma.edits.fidelity import subset_fidelity
from stemma.edits.fidelity.importance import input_rows
from stemma.edits.fidelity.statistics import LayerStatistics, Statistics
from stemma.edits.layer_inputs import set_weight_matrix, weight_matrix
from stemma.edits.unlearning.settings import UnlearningSettings
from stemma.probes import Probes


class WeightEdit:
    """One action on some layers of a network, at any strength."""

    def __init__(
        self, method: UnlearningSettings, before: EditableNetwork, after: EditableNetwork, readers: Sequence[Reader],
        forget: Statistics, retain: Statistics | None, action: str,
    ) -> None:  # fmt: skip
        self.method, self.before, self.after, self.readers, self.action = method, before, after, readers, action
        self.forget, self.retain = forget, retain
        if action != "refit":
            self.scores = {r.weight: self._entry_scores(r) for r in readers}

    def apply(self, strength: float, forget: Probes, forget_class: int) -> float:
        """Edit the network; returns the fraction of the forget samples that are still predicted as the class."""
        for r in self.readers:
            layer: Any = self.after.module.get_submodule(r.layer)
            start = weight_matrix(self.before.module.get_submodule(r.layer)).detach()
            edit = self._refitted_weights if self.action == "refit" else self._edited_entries
            set_weight_matrix(layer, edit(r, start, strength))
        outputs = self.after.outputs(forget.inputs)
        return float((outputs.argmax(1) == forget_class).double().mean())

    def entries(self, strength: float) -> dict[str, tuple[tuple[int, int], ...]]:
        """Outputs and inputs whose weights change, by weight; empty where whole layers are refitted."""
        if self.action == "refit":
            return {}
        out = {}
        for r in self.readers:
            flat, inputs = self._selected(r, strength)
            pairs = np.stack(np.divmod(flat.cpu().numpy(), inputs), 1)
            out[r.weight] = tuple((int(a), int(b)) for a, b in sorted(map(tuple, pairs)))
        return out

    def _entry_scores(self, r: Reader) -> torch.Tensor:
        """The score of every entry, `[outputs, inputs]`."""
        method = self.method
        layer = self.before.module.get_submodule(r.layer)
        found = _entry_scores(layer, r, self.forget, method.score)
        if self.retain is not None and method.contrast:
            found = found - _entry_scores(layer, r, self.retain, method.score)
        return found

    def _selected(self, r: Reader, fraction: float) -> tuple[torch.Tensor, int]:
        """Flat positions of the highest-scored entries, and the number of inputs."""
        scores = self.scores[r.weight]
        outputs, inputs = scores.shape
        if self.method.scope == "layer":
            count = max(1, round(fraction * scores.numel()))
            return scores.reshape(-1).argsort(descending=True, stable=True)[:count], inputs
        count = max(1, round(fraction * inputs))
        top = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
        return (top + inputs * torch.arange(outputs, device=top.device)[:, None]).reshape(-1), inputs

    def _edited_entries(self, r: Reader, start: torch.Tensor, fraction: float) -> torch.Tensor:
        flat, inputs = self._selected(r, fraction)
        out = start.clone().reshape(len(start), inputs, -1)
        row, column = flat // inputs, flat % inputs
        out[row, column] = 0.0 if self.action == "zero" else -out[row, column]
        return out.reshape(start.shape)

    def _refitted_weights(self, r: Reader, start: torch.Tensor, strength: float) -> torch.Tensor:
        """Weights that keep the outputs for retain inputs, and give their mean output for forget samples."""
        assert self.retain is not None
        forget, retain = self.forget.layers[r.weight], self.retain.layers[r.weight]
        forget_moment = shrunk_moments(forget)
        retain_moment = shrunk_moments(retain) if self.retain.inputs else retain.moment(centred=False)
        diagonal = subset_fidelity.damping_scale(retain_moment)
        scale = strength * (diagonal / subset_fidelity.damping_scale(forget_moment)).log().mean().exp()
        weights = start.to(retain_moment.device, torch.float64)
        mean_output = weights @ (retain.total / retain.count)
        forget_target = torch.outer(mean_output, forget.total / forget.count)
        deviation = weights @ forget_moment - forget_target
        wanted = weights @ retain_moment + scale * (forget_target - self.method.reflect * deviation)
        damping = self.method.damping * diagonal
        system = retain_moment + scale * forget_moment + torch.diag(damping)
        return torch.linalg.solve(system, (wanted + damping * weights).T).T.to(start)


def shrunk_moments(statistics: LayerStatistics) -> torch.Tensor:
    """The mean of `u uᵀ` with correlations shrunk towards zero, more so the fewer positions there are per input."""
    deviations, mean = statistics.moment(centred=True), statistics.total / statistics.count
    shrinkage = len(mean) / (len(mean) + statistics.count)
    shrunk = (1 - shrinkage) * deviations + torch.diag(shrinkage * deviations.diagonal())
    return shrunk + torch.outer(mean, mean)


def _entry_scores(layer: Any, r: Reader, statistics: Statistics, score: str) -> torch.Tensor:
    moment = statistics.layers[r.weight].moment(centred=False)
    weights = weight_matrix(layer).detach().to(moment.device, torch.float64)
    aligned, squares = subset_fidelity.contributions(weights, moment, input_rows(layer, r).to(moment.device))
    if score == "energy":
        return squares / squares.sum().clamp_min(1e-300)
    if score == "alignment":
        return aligned / aligned.sum().clamp_min(1e-300)
    return subset_fidelity.singleton_fidelity(aligned, squares)

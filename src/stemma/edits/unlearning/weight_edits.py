"""Changes of weights that make a class go, by strength: entries set to zero or negated, or whole layers refitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.groups import Reader
from stemma.edits.editable_network import Asked
from stemma.edits.fidelity import fidelity
from stemma.edits.fidelity.importance import rows_read
from stemma.edits.fidelity.statistics import LayerStatistics, Statistics
from stemma.edits.layer_inputs import matrix
from stemma.edits.unlearning.settings import UnlearningSettings
from stemma.probes import Probes


class Change:
    """A family of changes to some layers, by strength."""

    def __init__(
        self, method: UnlearningSettings, before: Asked, after: Asked, readers: Sequence[Reader],
        mine: Statistics, rest: Statistics | None, action: str,
    ) -> None:  # fmt: skip
        self.method, self.before, self.after, self.readers, self.action = method, before, after, readers, action
        self.mine, self.rest = mine, rest
        if action != "refit":
            self.ranked = {r.weight: self._ranked(r) for r in readers}

    def tried(self, strength: float, forget: Probes, forgotten: int) -> float:
        """Apply a strength to the network; the share of the samples that are still answered is returned."""
        for r in self.readers:
            layer: Any = self.after.module.get_submodule(r.layer)
            start = matrix(self.before.module.get_submodule(r.layer)).detach()
            new = self._refitted(r, start, strength) if self.action == "refit" else self._marked(r, start, strength)
            with torch.no_grad():
                new = new.T if type(layer).__name__ == "Conv1D" else new
                layer.weight.copy_(new.reshape(layer.weight.shape))
        answers = self.after.answers(forget.inputs)
        return float((answers.argmax(1) == forgotten).double().mean())

    def entries(self, strength: float) -> dict[str, tuple[tuple[int, int], ...]]:
        """Outputs and inputs whose weights change; empty where whole layers are refitted."""
        if self.action == "refit":
            return {}
        out = {}
        for r in self.readers:
            flat, inputs = self._chosen(r, strength)
            pairs = np.stack(np.divmod(flat.cpu().numpy(), inputs), 1)
            out[r.weight] = tuple((int(a), int(b)) for a, b in sorted(map(tuple, pairs)))
        return out

    def _ranked(self, r: Reader) -> torch.Tensor:
        """The score of every entry, `[outputs, inputs]`."""
        method = self.method
        layer = self.before.module.get_submodule(r.layer)
        found = _entries(layer, r, self.mine, method.score)
        if self.rest is not None and method.contrast:
            found = found - _entries(layer, r, self.rest, method.score)
        return found

    def _chosen(self, r: Reader, share: float) -> tuple[torch.Tensor, int]:
        ranked = self.ranked[r.weight]
        outputs, inputs = ranked.shape
        if self.method.scope == "layer":
            count = max(1, round(share * ranked.numel()))
            return ranked.reshape(-1).argsort(descending=True, stable=True)[:count], inputs
        count = max(1, round(share * inputs))
        top = ranked.argsort(dim=1, descending=True, stable=True)[:, :count]
        return (top + inputs * torch.arange(outputs, device=top.device)[:, None]).reshape(-1), inputs

    def _marked(self, r: Reader, start: torch.Tensor, share: float) -> torch.Tensor:
        flat, inputs = self._chosen(r, share)
        out = start.clone().reshape(len(start), inputs, -1)
        row, column = flat // inputs, flat % inputs
        out[row, column] = 0.0 if self.action == "zero" else -out[row, column]
        return out.reshape(start.shape)

    def _refitted(self, r: Reader, start: torch.Tensor, strength: float) -> torch.Tensor:
        """Weights that give what they gave for the other inputs, and for the samples the others' mean output."""
        assert self.rest is not None
        mine, rest = self.mine.layers[r.weight], self.rest.layers[r.weight]
        s_mine, s_rest = shrunk(mine), shrunk(rest) if self.rest.inputs else rest.moment(centred=False)
        held = fidelity.levels(s_rest)
        scale = strength * (held / fidelity.levels(s_mine)).log().mean().exp()
        weights = start.to(s_rest.device, torch.float64)
        target = weights @ (rest.total / rest.count)
        level_of_mine = torch.outer(target, mine.total / mine.count)
        apart = weights @ s_mine - level_of_mine
        wanted = weights @ s_rest + scale * (level_of_mine - self.method.reflect * apart)
        held = self.method.damping * held
        system = s_rest + scale * s_mine + torch.diag(held)
        return torch.linalg.solve(system, (wanted + held * weights).T).T.to(start)


def shrunk(seen: LayerStatistics) -> torch.Tensor:
    """Second moments with less trust in correlations, the fewer positions there are for so many inputs.

    Args:
        seen: Of one layer, at level `full`.

    Returns:
        The mean of `u uᵀ`, deviations towards uncorrelated ones.
    """
    deviations, mean = seen.moment(centred=True), seen.total / seen.count
    doubt = len(mean) / (len(mean) + seen.count)
    return (1 - doubt) * deviations + torch.diag(doubt * deviations.diagonal()) + torch.outer(mean, mean)


def _entries(layer: Any, r: Reader, statistics: Statistics, score: str) -> torch.Tensor:
    moment = statistics.layers[r.weight].moment(centred=False)
    weights = matrix(layer).detach().to(moment.device, torch.float64)
    aligned, squares = fidelity.contributions(weights, moment, rows_read(layer, r).to(moment.device))
    if score == "energy":
        return squares / squares.sum().clamp_min(1e-300)
    if score == "alignment":
        return aligned / aligned.sum().clamp_min(1e-300)
    return fidelity.singleton(aligned, squares)

"""Gradient blending: losses of single modalities beside the fused one, weighted by how they generalise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Progress, Setting

if TYPE_CHECKING:
    import torch

FUSED = "fused"
"""Name of the fused branch."""

EVEN_SHARE = 0.1
"""Fraction of the weights that is distributed evenly: a fused branch of weight 0 would leave its head untrained."""


class HeadsRun(AbstractRun):
    """Losses of linear heads on the encoders beside the fused one, by weights that subclasses may fix."""

    needs_progress = True

    def __init__(self, setting: Setting, every: int) -> None:
        super().__init__(setting)
        for modality in setting.modalities:
            setting.encoder_parameters(modality)
        self.every = every
        self.heads: dict[str, torch.nn.Linear] = {}
        self.weights = dict.fromkeys([*setting.modalities, FUSED], 1 / (len(setting.modalities) + 1))
        self.before: tuple[Mapping[str, float], Mapping[str, float]] | None = None

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        """See `AbstractRun`."""
        out, features = self._forward(batch)
        total = self.weights[FUSED] * self.setting.cost(out, labels)
        for m, found in features.items():
            total = total + self.weights[m] * self.setting.cost(self.heads[m](found), labels)
        return total

    def _forward(self, batch: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
        import torch

        features: dict[str, torch.Tensor] = {}

        def record_output(modality: str) -> Any:
            def hook(part: Any, inputs: Any, output: Any) -> None:
                features[modality] = output.flatten(1)

            return hook

        places = self.setting.encoders.items()
        handles = [
            self.setting.model.get_submodule(place).register_forward_hook(record_output(m)) for m, place in places
        ]
        try:
            out = self.setting.model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        for m, found in features.items():
            if m not in self.heads:
                with torch.random.fork_rng():
                    torch.manual_seed(self.setting.seed)
                    self.heads[m] = torch.nn.Linear(found.shape[1], out.shape[1]).to(found.device, found.dtype)
        return out, features

    def extra(self) -> "list[torch.nn.Parameter]":
        """The heads, once the first batch was seen."""
        return [p for head in self.heads.values() for p in head.parameters()]

    def epoch(self, progress: Progress) -> None:
        """See `AbstractRun`."""
        if self.before is None:
            self.before = (progress.valid_loss, progress.train_loss)
        elif (progress.epoch + 1) % self.every == 0:
            valid, train = self.before
            found = {}
            for branch in self.weights:
                gain = max(valid[branch] - progress.valid_loss[branch], 0.0)
                more = (progress.valid_loss[branch] - progress.train_loss[branch]) - (valid[branch] - train[branch])
                found[branch] = gain / max(more * more, 1e-6)
            total = sum(found.values())
            if total > 0:
                floor = EVEN_SHARE / len(found)
                self.weights = {b: floor + (1 - EVEN_SHARE) * value / total for b, value in found.items()}
            self.before = (progress.valid_loss, progress.train_loss)


@dataclass(frozen=True)
class GradientBlending(AbstractStrategy):
    """Weights in proportion to generalisation gained over overfitting squared, re-estimated every few epochs.

    Attributes:
        every: Epochs between two estimates; weights are equal before the first.

    Source: Wang et al., "What makes training multi-modal classification networks hard?", CVPR 2020, the online form.
    Departures: a tenth of the weights is distributed evenly; losses of single modalities are those of their Shapley
    responses when weights are estimated, and those of linear heads on the encoders when gradients are taken.
    """

    every: int = 5
    name = "gradient-blending"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return HeadsRun(setting, self.every)

"""Modality-specific early stopping (MSES)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Progress, Setting
from stemma.multimodal.strategies.joint import JointRun

if TYPE_CHECKING:
    import torch


class _Run(JointRun):
    needs_progress = True

    def __init__(self, setting: Setting, patience: int, smoothing: float) -> None:
        super().__init__(setting)
        self.patience, self.smoothing = patience, smoothing
        self.smoothed: dict[str, float] = {}
        self.best: dict[str, tuple[float, int, dict[str, torch.Tensor]]] = {}
        self.stopped: set[str] = set()

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        for modality in self.stopped:
            self.setting.model.get_submodule(self.setting.encoders[modality]).eval()  # batch norm would go on
        return super().loss(batch, labels)

    def gradients(self) -> None:
        for modality in self.stopped:
            for _, parameter in self.setting.encoder_parameters(modality):
                parameter.grad = None  # a zero would still be moved by momentum and weight decay

    def epoch(self, progress: Progress) -> None:
        for m in self.setting.modalities:
            if m in self.stopped:
                continue
            now = progress.valid_loss[m]
            now = self.smoothing * self.smoothed.get(m, now) + (1 - self.smoothing) * now
            self.smoothed[m] = now
            encoder = self.setting.model.get_submodule(self.setting.encoders[m])
            if m not in self.best or now < self.best[m][0]:
                kept = {k: v.detach().clone() for k, v in encoder.state_dict().items()}
                self.best[m] = (now, progress.epoch, kept)
            elif progress.epoch - self.best[m][1] >= self.patience:
                encoder.load_state_dict(self.best[m][2])
                self.stopped.add(m)


@dataclass(frozen=True)
class Mses(AbstractStrategy):
    """An encoder whose modality's validation loss no longer falls goes back to its best epoch and is frozen.

    Attributes:
        patience: Epochs without improvement.
        smoothing: Share of the past in the smoothed loss.

    Source: Fujimori et al., "Modality-specific learning rate control for multimodal classification", ACPR 2019; the
    rule as in the code released with Li et al., ICCV 2023.
    """

    patience: int = 10
    smoothing: float = 0.6
    name = "mses"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        for modality in setting.modalities:
            setting.encoder_parameters(modality)
        return _Run(setting, self.patience, self.smoothing)

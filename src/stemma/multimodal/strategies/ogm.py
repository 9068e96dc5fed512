"""On-the-fly gradient modulation (OGM), and with noise (OGM-GE)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import tanh
from typing import TYPE_CHECKING

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting
from stemma.multimodal.strategies.joint import JointRun

if TYPE_CHECKING:
    import torch


class _Run(JointRun):
    def __init__(self, setting: Setting, alpha: float, noise: bool) -> None:
        import torch

        super().__init__(setting)
        self.alpha, self.noise = alpha, noise
        self.draw = torch.Generator().manual_seed(setting.seed)
        self.factors: dict[str, float] = {}

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        self.factors = self._factors(batch, labels)
        return super().loss(batch, labels)

    def gradients(self) -> None:
        import torch

        for modality, factor in self.factors.items():
            for _, parameter in self.setting.encoder_parameters(modality):
                if factor == 1 or parameter.grad is None or parameter.ndim < 2:
                    continue
                spread = parameter.grad.std() + 1e-8
                parameter.grad.mul_(factor)
                if self.noise:
                    fresh = torch.randn(parameter.shape, generator=self.draw, dtype=parameter.dtype)
                    parameter.grad.add_(fresh.to(parameter.device) * spread)

    def _factors(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> dict[str, float]:
        import torch

        from stemma.multimodal.masked_passes import evaluation_mode
        from stemma.multimodal.responses import shapley_responses

        s = self.setting
        with torch.no_grad(), evaluation_mode(s.model):
            phi = shapley_responses(lambda b: s.model(**b), batch, s.masks, s.modalities)
        right = {m: float(r.softmax(1).gather(1, labels[:, None]).sum()) for m, r in phi.items()}
        out = {}
        for m, own in right.items():
            others = [r for k, r in right.items() if k != m]
            rho = own / max(sum(others) / len(others), 1e-12)
            out[m] = 1 - tanh(self.alpha * rho) if rho > 1 else 1.0
        return out


@dataclass(frozen=True)
class Ogm(AbstractStrategy):
    """Damps the encoder of the modality with more confident correct predictions: factor 1 - tanh(alpha * rho).

    Attributes:
        alpha: Strength.

    Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022. Departures: the
    prediction of a modality is its Shapley response in evaluation mode, so that any fusion can be trained (published:
    the head split by modality, for late fusion); all weights of an encoder are scaled, not those of convolutions alone.
    """

    alpha: float = 0.1
    name = "ogm"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.alpha, noise=False)


@dataclass(frozen=True)
class OgmGe(AbstractStrategy):
    """OGM with Gaussian noise on the damped gradients, as large as they vary.

    Attributes:
        alpha: Strength.

    Source: as `Ogm`; GE is for generalisation enhancement.
    """

    alpha: float = 0.1
    name = "ogm-ge"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.alpha, noise=True)

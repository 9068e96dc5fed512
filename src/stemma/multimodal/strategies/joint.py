"""Joint training: the loss of the fused output and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting

if TYPE_CHECKING:
    import torch


class JointRun(AbstractRun):
    """Trains on the fused loss; subclasses change its gradients."""

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        """See `AbstractRun`."""
        return self.setting.cost(self.setting.model(**batch), labels)


@dataclass(frozen=True)
class Joint(AbstractStrategy):
    """Plain joint training, the baseline of every other strategy."""

    name = "joint"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return JointRun(setting)

"""Adaptive gradient modulation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from stemma.multimodal.modulation_rule import Modulation
from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting

if TYPE_CHECKING:
    import torch


class _Run(AbstractRun):
    def __init__(self, setting: Setting, rule: Modulation, plan: str, alone: float) -> None:
        from stemma.multimodal.adaptive_gradient_modulation import AdaptiveGradientModulation

        super().__init__(setting)
        self.agm = AdaptiveGradientModulation(
            setting.model, setting.modalities, mask=setting.masks, plan=plan, encoders=setting.encoders or None,
            loss=setting.loss, seed=setting.seed, alone=alone, **asdict(rule),
        )  # fmt: skip

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        found = self.agm(batch, labels).loss
        assert found is not None
        return found


@dataclass(frozen=True)
class Agm(AbstractStrategy):
    """Adaptive gradient modulation; a negative alpha is the sign-flipped control, which feeds whoever is ahead.

    Attributes:
        rule: How strongly, and compared with what.
        plan: How the masked passes are carried out.
        alone: Weight of the losses of modalities alone.
    """

    rule: Modulation = field(default_factory=Modulation)
    plan: str = "exact"
    alone: float = 0.0
    name = "agm"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.rule, self.plan, self.alone)

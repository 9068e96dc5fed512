"""The strategy `agm`: adaptive gradient modulation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from stemma.deprecation import accept_old_names
from stemma.multimodal.modulation_rule import Modulation
from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting

if TYPE_CHECKING:
    import torch


class _Run(AbstractRun):
    def __init__(self, setting: Setting, rule: Modulation, plan: str, unimodal_loss_weight: float) -> None:
        from stemma.multimodal.adaptive_gradient_modulation import AdaptiveGradientModulation

        super().__init__(setting)
        self.agm = AdaptiveGradientModulation(
            setting.model, setting.modalities, mask=setting.masks, plan=plan, encoders=setting.encoders or None,
            loss=setting.loss, seed=setting.seed, unimodal_loss_weight=unimodal_loss_weight, **asdict(rule),
        )  # fmt: skip

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        found = self.agm(batch, labels).loss
        assert found is not None
        return found


@accept_old_names(alone="unimodal_loss_weight")
@dataclass(frozen=True)
class Agm(AbstractStrategy):
    """Adaptive gradient modulation; a negative alpha is the sign-flipped control, which favours the modality ahead.

    Attributes:
        rule: The modulation rule.
        plan: How the masked passes are run.
        unimodal_loss_weight: Weight of the added losses of single modalities.
    """

    rule: Modulation = field(default_factory=Modulation)
    plan: str = "exact"
    unimodal_loss_weight: float = 0.0
    name = "agm"
    version = 2  # the numbers of version 1; `unimodal_loss_weight` had another name

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.rule, self.plan, self.unimodal_loss_weight)

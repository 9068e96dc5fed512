"""A fixed learning rate for each encoder: the strongest cheap control, if it is tuned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting
from stemma.multimodal.strategies.joint import JointRun


def scale(setting: Setting, factors: Mapping[str, float]) -> None:
    """Multiply the gradients of encoders by factors, by modality; those not named stay."""
    for modality, factor in factors.items():
        for _, parameter in setting.encoder_parameters(modality):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


class _Run(JointRun):
    def __init__(self, setting: Setting, factors: Mapping[str, float]) -> None:
        super().__init__(setting)
        self.factors = factors

    def gradients(self) -> None:
        scale(self.setting, self.factors)


@dataclass(frozen=True)
class EncoderRates(AbstractStrategy):
    """Fixed factors on the gradients of encoders: under SGD, their learning rates.

    Attributes:
        factors: By modality.
    """

    factors: Mapping[str, float] = field(default_factory=dict)
    name = "encoder-rates"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.factors)

"""Unimodal losses: a linear head on every encoder, whose loss is added to the fused one with a fixed weight."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting
from stemma.multimodal.strategies.gradient_blending import FUSED, HeadsRun


class _Run(HeadsRun):
    needs_progress: ClassVar[bool] = False

    def __init__(self, setting: Setting, weight: float) -> None:
        super().__init__(setting, every=1)
        self.weights = {**dict.fromkeys(setting.modalities, weight), FUSED: 1.0}


@dataclass(frozen=True)
class UnimodalLosses(AbstractStrategy):
    """The fused loss, plus `weight` times the sum of the losses of linear heads on the encoders.

    Attributes:
        weight: Of every unimodal loss; 0 is joint training.
    """

    weight: float = 1.0
    name = "unimodal-losses"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.weight)

"""One modality only: all others hidden from the first step on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting

if TYPE_CHECKING:
    import torch


class _Run(AbstractRun):
    def __init__(self, setting: Setting, modality: str) -> None:
        super().__init__(setting)
        self.others = [m for m in setting.modalities if m != modality]

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        from stemma.multimodal.masks import hidden

        return self.setting.cost(self.setting.model(**hidden(batch, self.setting.masks, self.others)), labels)


@dataclass(frozen=True)
class Single(AbstractStrategy):
    """The unimodal concept: a modality trained without competition.

    With a linear head on concatenated features this is a network of that modality alone, up to a constant that the
    hidden encoders add to the bias.

    Attributes:
        modality: The one that is shown.
    """

    modality: str
    name = "single"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.modality)

"""Modality dropout: training for inputs that lack a modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.errors import MisuseError
from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Setting

if TYPE_CHECKING:
    import torch


class _Run(AbstractRun):
    def __init__(self, setting: Setting, rate: float) -> None:
        import torch

        super().__init__(setting)
        self.rate = rate
        self.draw = torch.Generator().manual_seed(setting.seed)

    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        import torch

        from stemma.multimodal.masks import hidden

        s = self.setting
        dropped = torch.rand(len(labels), generator=self.draw) < self.rate
        kept = torch.randint(len(s.modalities), (len(labels),), generator=self.draw)
        shown = dict(batch)
        for i, modality in enumerate(s.modalities):
            rows = (dropped & (kept != i)).to(labels.device)
            for name, masked in hidden(batch, s.masks, [modality]).items():
                if name not in batch:
                    raise MisuseError(
                        f"hiding {modality!r} adds the entry {name!r}, which the batches lack, so it cannot be hidden "
                        "in some samples only: put that entry into the batches, or hide it by another mask"
                    )
                if masked is not batch[name]:
                    shape = (-1, *[1] * (masked.ndim - 1))
                    shown[name] = torch.where(rows.view(shape), masked, shown[name])
        return s.cost(s.model(**shown), labels)


@dataclass(frozen=True)
class ModalityDropout(AbstractStrategy):
    """A random part of the samples of every batch shows one modality only, chosen evenly.

    Attributes:
        rate: Expected part of the samples, from 0 (joint training) to 1.
    """

    rate: float = 0.3
    name = "modality-dropout"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise MisuseError(f"rate is a part of the samples from 0 to 1, but {self.rate} was given")

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.rate)

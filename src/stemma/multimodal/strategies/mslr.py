"""Modality-specific learning rates that follow validation accuracy (MSLR)."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Progress, Setting
from stemma.multimodal.strategies.joint import JointRun
from stemma.multimodal.strategies.rates import scale


class _Run(JointRun):
    needs_progress = True

    def __init__(self, setting: Setting, start: Mapping[str, float], memory: int) -> None:
        super().__init__(setting)
        self.initial = {m: start.get(m, 1.0) for m in setting.modalities}
        self.factors = dict(self.initial)
        self.accuracies: dict[str, deque[float]] = {m: deque(maxlen=memory) for m in setting.modalities}

    def gradients(self) -> None:
        scale(self.setting, self.factors)

    def epoch(self, progress: Progress) -> None:
        for m, past in self.accuracies.items():
            past.append(progress.valid_accuracy[m])
            mean = sum(past) / len(past)
            self.factors[m] = self.initial[m] * past[-1] / mean if mean > 0 else self.initial[m]


@dataclass(frozen=True)
class Mslr(AbstractStrategy):
    """Each encoder learns faster while its modality's validation accuracy rises above its recent mean.

    Attributes:
        start_factors: Factors to begin with, by modality; 1 unless given.
        memory: Epochs of the mean.

    Source: Yao and Mihalcea, "Modality-specific learning rates for effective multimodal additive late-fusion", Findings
    of ACL 2022; the rule as in the code released with Li et al., ICCV 2023.
    """

    start_factors: Mapping[str, float] = field(default_factory=dict)
    memory: int = 5
    name = "mslr"

    def start(self, setting: Setting) -> AbstractRun:
        """See `AbstractStrategy`."""
        return _Run(setting, self.start_factors, self.memory)

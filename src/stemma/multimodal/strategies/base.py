"""What every training strategy is: where it acts in the common training loop."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar

from stemma.errors import MisuseError
from stemma.types import Spec

if TYPE_CHECKING:
    import torch

    from stemma.multimodal.masks import AbstractMask


@dataclass(frozen=True, eq=False)
class Setting:
    """What a strategy acts on.

    Attributes:
        model: The network, called as `model(**batch)`.
        modalities: Their names.
        masks: How each is hidden.
        encoders: By modality, the name of its encoder submodule; empty where there is none.
        loss: From logits and labels to a number.
        seed: Of everything that the strategy samples.
    """

    model: "torch.nn.Module"
    modalities: tuple[str, ...]
    masks: "Mapping[str, AbstractMask]"
    encoders: Mapping[str, str] = field(default_factory=dict)
    loss: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None" = None
    seed: int = 0

    def cost(self, logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """The loss of some logits; mean cross-entropy by default."""
        from torch.nn.functional import cross_entropy

        return (self.loss or cross_entropy)(logits, labels)

    def encoder_parameters(self, modality: str) -> "list[tuple[str, torch.nn.Parameter]]":
        """The parameters of one modality's encoder, by their names inside it; `MisuseError` if it has none."""
        if modality not in self.encoders:
            raise MisuseError(
                f"this strategy changes encoders, but none is given for {modality!r}: give encoders={{modality: name}}"
            )
        return list(self.model.get_submodule(self.encoders[modality]).named_parameters())


@dataclass(frozen=True)
class Progress:
    """Losses and accuracies after an epoch.

    Attributes:
        epoch: Which, from 0.
        valid_loss: By modality, cross-entropy of its response on validation data; `fused` of all of them.
        valid_accuracy: Likewise.
        train_loss: The same on as many training data.
    """

    epoch: int
    valid_loss: Mapping[str, float]
    valid_accuracy: Mapping[str, float]
    train_loss: Mapping[str, float]


class AbstractRun(abc.ABC):
    """One training run with a strategy and its state."""

    needs_progress: ClassVar[bool] = False
    """Whether it needs responses after every epoch, which costs passes over the validation data."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abc.abstractmethod
    def loss(self, batch: "Mapping[str, torch.Tensor]", labels: "torch.Tensor") -> "torch.Tensor":
        """The loss whose gradient is taken.

        Args:
            batch: Tensors by name.
            labels: `[n]`.

        Returns:
            A number with its graph.
        """

    def gradients(self) -> None:
        """Change gradients before the optimiser's step; most strategies do nothing here."""
        return

    def epoch(self, progress: Progress) -> None:
        """Update the state after an epoch; called if `needs_progress`."""
        return

    def extra(self) -> "list[torch.nn.Parameter]":
        """Parameters to train in addition to the network's own."""
        return []


class AbstractStrategy(abc.ABC):
    """A frozen dataclass of its own parameters.

    Attributes:
        name: As in the docs and the result files.
        version: Raised whenever its numbers change.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def spec(self) -> Spec:
        """Identity of the strategy with its parameters."""
        return Spec(self.name, self.version, asdict(self))  # ty: ignore[invalid-argument-type]

    @abc.abstractmethod
    def start(self, setting: Setting) -> AbstractRun:
        """Begin a training run.

        Args:
            setting: What it acts on.

        Returns:
            The run.
        """

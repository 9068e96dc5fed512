"""The training loop in which all strategies are compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from stemma.errors import MisuseError
from stemma.multimodal.masked_passes import evaluation_mode
from stemma.multimodal.responses import shapley_responses
from stemma.multimodal.strategies.base import AbstractRun, AbstractStrategy, Progress, Setting
from stemma.multimodal.strategies.gradient_blending import FUSED

OPTIMIZERS = ("sgd", "adam")

BATCH = 512
"""Batch size in evaluation."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Paired inputs with their labels, on the device of the network.

    Attributes:
        inputs: By modality, `[n, …]`.
        labels: `[n]`.
    """

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: torch.Tensor | slice) -> "Examples":
        """Some of them, in the order given."""
        return Examples({m: x[rows] for m, x in self.inputs.items()}, self.labels[rows])


@dataclass(frozen=True)
class Fit:
    """One optimiser over shuffled batches; the last epoch counts, so that nothing is selected on test data.

    Attributes:
        epochs: Passes over the examples.
        rate: Learning rate.
        momentum: Of SGD.
        weight_decay: Of either.
        batch: Examples per step; the remainder of an epoch is dropped.
        decay_at: Fraction of the epochs after which the rate is divided by ten.
        clip: Largest norm of the gradient; None for any.
        seed: Of the shuffling.
        optimizer: `sgd`, or `adam`, which normalises gradients so that fixed factors on them cancel.
    """

    epochs: int = 30
    rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 64
    decay_at: float = 0.7
    clip: float | None = 5.0
    seed: int = 0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise MisuseError(f"no optimiser is called {self.optimizer!r}. Choose one of {', '.join(OPTIMIZERS)}")

    def __call__(
        self,
        setting: Setting,
        examples: Examples,
        strategy: AbstractStrategy,
        valid: Examples | None = None,
        on_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> AbstractRun:
        """Train the setting's network, in place.

        Args:
            setting: The network and its modalities.
            examples: Training data.
            strategy: How.
            valid: Validation data, for strategies that use them after every epoch.
            on_epoch: Called with every epoch that is done.

        Returns:
            The run, with the state of the strategy; the network is in evaluation mode.

        Raises:
            MisuseError: If the strategy needs validation data, or there are fewer examples than a batch.
        """
        if len(examples) < self.batch:
            raise MisuseError(f"a batch needs {self.batch} examples, but there are {len(examples)}: lower batch")
        run = strategy.start(setting)
        if run.needs_progress and valid is None:
            raise MisuseError(f"{strategy.name} uses validation data after every epoch: give valid=")
        shuffle = torch.Generator().manual_seed(self.seed)
        optimizer = self._optimizer(setting)
        for epoch in range(self.epochs):
            if epoch == int(self.decay_at * self.epochs):
                for group in optimizer.param_groups:
                    group["lr"] /= 10
            setting.model.train()
            order = torch.randperm(len(examples), generator=shuffle).to(examples.labels.device)
            for rows in order.split(self.batch):
                if len(rows) == self.batch:
                    self._step(optimizer, run, examples.take(rows))
            if run.needs_progress and valid is not None:
                run.epoch(progress(setting, epoch, valid, examples.take(slice(0, len(valid)))))
            on_epoch(epoch)
        setting.model.eval()
        return run

    def _optimizer(self, setting: Setting) -> torch.optim.Optimizer:
        parameters = setting.model.parameters()
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def _step(self, optimizer: torch.optim.Optimizer, run: AbstractRun, part: Examples) -> None:
        optimizer.zero_grad()
        run.loss(part.inputs, part.labels).backward()
        extra = run.extra()
        if extra and len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": extra})
        run.gradients()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.clip)
        optimizer.step()


def responses_of(setting: Setting, examples: Examples) -> dict[str, torch.Tensor]:
    """The responses by modality `[n, classes]` to examples, in evaluation mode, and `fused`, their sum."""
    parts = []
    with torch.no_grad(), evaluation_mode(setting.model):
        for at in range(0, len(examples), BATCH):
            part = examples.take(slice(at, at + BATCH)).inputs
            parts.append(shapley_responses(lambda b: setting.model(**b), part, setting.masks, setting.modalities))
    found = {m: torch.cat([p[m] for p in parts]) for m in setting.modalities}
    return {**found, FUSED: torch.stack(list(found.values())).sum(0)}


def progress(setting: Setting, epoch: int, valid: Examples, train: Examples) -> Progress:
    """Loss and accuracy of every response, as strategies use them after an epoch."""
    on_valid, on_train = responses_of(setting, valid), responses_of(setting, train)
    return Progress(
        epoch,
        {m: float(cross_entropy(r, valid.labels)) for m, r in on_valid.items()},
        {m: float((r.argmax(1) == valid.labels).double().mean()) for m, r in on_valid.items()},
        {m: float(cross_entropy(r, train.labels)) for m, r in on_train.items()},
    )

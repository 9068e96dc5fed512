"""What the networks of a history learn: pictures under labels of a task's own, pictures with noise, texts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from testbeds.histories.networks import LENGTH, SIDE, TEXTS, VOCABULARY
from testbeds.varied import data

SETS = ("mnist", "fashion_mnist", "spoken", "cifar10")
MASK = 0


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
        source: A set of pictures, or an author.
        part: Half of it (`a`, `b`) or `all`.
        labels: Seed of a rearrangement of the classes; 0 leaves them. In texts: of the bytes' case and marks.
        view: `plain`, `inverted` or `turned` pictures.
    """

    source: str
    part: str = "all"
    labels: int = 0
    view: str = "plain"


def tasks(kind: str, rng: np.random.Generator) -> list[Task]:
    """A task for the root, and five others that differ from it and from one another."""
    if kind in TEXTS:
        first, *others = (str(a) for a in rng.permutation(data.AUTHORS))
        return [Task(first, "a"), Task(first, "b"), *(Task(a) for a in others), Task(first, "b", 1)]
    first, second, third = (str(s) for s in rng.permutation(SETS)[:3])
    return [
        Task(first, "a"), Task(first, "b"), Task(first, "all", int(rng.integers(1, 99))), Task(second),
        Task(third, "all", int(rng.integers(1, 99))), Task(first, "all", 0, str(rng.choice(["inverted", "turned"]))),
    ]  # fmt: skip


class TrainingJob:
    """Batches of one task, in an order of their own."""

    def __init__(self, kind: str, task: Task, order: int, folder: Path, batch: int) -> None:
        self.kind, self.batch = kind, batch
        self.rng = torch.Generator().manual_seed(order)
        if kind in TEXTS:
            self.text = data.passages(folder, task.source, VOCABULARY, task.part)
            if task.labels:  # another alphabet: every byte stands for another one
                mixed = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(task.labels))
                self.text = mixed[self.text]
            return
        x, y = data.split(folder, task.source, SIDE, 1, task.part)
        if task.view != "plain":
            x = -x if task.view == "inverted" else x.rot90(1, (2, 3))
        if task.labels:
            y = torch.from_numpy(np.random.default_rng(task.labels).permutation(10))[y]
        self.x, self.y = x.contiguous(), y

    def loss(self, net: nn.Module) -> torch.Tensor:
        """The loss of the next batch."""
        if self.kind in TEXTS:
            at = torch.randint(len(self.text) - LENGTH, (self.batch, 1), generator=self.rng)
            return self._words(net, self.text[at + torch.arange(LENGTH)])
        at = torch.randint(len(self.x), (self.batch,), generator=self.rng)
        x = self.x[at]
        if self.kind == "unet":
            noise = torch.randn(x.shape, generator=self.rng)
            strength = torch.rand(len(x), generator=self.rng)
            mixed = (1 - strength**2).sqrt()[:, None, None, None] * x + strength[:, None, None, None] * noise
            return F.mse_loss(net(mixed, strength), noise)
        said = net(x)
        return F.cross_entropy(said if torch.is_tensor(said) else said.logits, self.y[at])

    def _words(self, net: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        if self.kind != "bert":
            return net(input_ids=tokens, labels=tokens).loss
        hidden = torch.rand(tokens.shape, generator=self.rng) < 0.15
        return F.cross_entropy(net(input_ids=tokens.masked_fill(hidden, MASK)).logits[hidden], tokens[hidden])

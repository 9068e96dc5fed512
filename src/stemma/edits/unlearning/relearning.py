"""How long relearning takes: steps of fine-tuning on few samples until half of the class is recognised again."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from stemma.edits.editable_network import EditableNetwork
from stemma.edits.layer_inputs import as_tensor
from stemma.edits.unlearning.erasure_samples import ForgetSplit


@dataclass(frozen=True)
class Relearning:
    """Fine-tuning of all weights with Adam, normalisation frozen.

    Attributes:
        forget: Samples of the class that are shown.
        kept: Other samples that are shown.
        steps: Steps at most.
        rate: Step size.
        batch: Samples per step.
        seed: Of their order.
    """

    forget: int = 20
    kept: int = 180
    steps: int = 60
    rate: float = 2e-4
    batch: int = 64
    seed: int = 3

    def __call__(
        self, editable: EditableNetwork, forget: tuple[np.ndarray, np.ndarray], kept: tuple[np.ndarray, np.ndarray],
        asked: tuple[np.ndarray, np.ndarray],
    ) -> int:  # fmt: skip
        """Fine-tune until half of the asked samples are recognised.

        Args:
            editable: The network; it is as before afterwards.
            forget: Samples that are forgotten, with their classes.
            kept: Other samples, with their classes.
            asked: Further samples that are forgotten.

        Returns:
            The number of steps; `steps + 1` if they never are.
        """
        shown = [np.concatenate((forget[i][: self.forget], kept[i][: self.kept])) for i in (0, 1)]
        x, y = as_tensor(shown[0], editable.like), torch.from_numpy(shown[1]).to(editable.like.device)
        draw = torch.Generator().manual_seed(self.seed)
        with trainable(editable.module) as weights:
            optimizer = torch.optim.Adam(weights, self.rate)
            for step in range(self.steps + 1):
                if float((answered(editable, asked[0]) == asked[1]).mean()) >= 0.5:
                    return step
                rows = torch.randperm(len(y), generator=draw)[: self.batch].to(x.device)
                optimizer.zero_grad()
                F.cross_entropy(editable.network(x[rows]), y[rows]).backward()
                optimizer.step()
        return self.steps + 1


@contextmanager
def trainable(module: torch.nn.Module) -> Generator[list[torch.nn.Parameter]]:
    """The weights of a network, to be trained inside; afterwards all is as it was."""
    before = {n: t.clone() for n, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    learning = [(p, p.requires_grad) for p in module.parameters() if p.is_floating_point()]
    try:
        for p, _ in learning:
            p.requires_grad_()
        with torch.enable_grad():
            yield [p for p, _ in learning]
    finally:
        module.load_state_dict(before, strict=False)
        for p, learns in learning:
            p.requires_grad_(learns)
            p.grad = None


@dataclass(frozen=True, eq=False)
class RelearningTask:
    """What is learnt again, the same for every network that is compared.

    Attributes:
        method: The fine-tuning.
        forget: Samples that are forgotten, with their classes.
        kept: Other samples, with the original's answers.
        asked: Further samples that are forgotten and that the original recognises, with their classes.
    """

    method: Relearning
    forget: tuple[np.ndarray, np.ndarray]
    kept: tuple[np.ndarray, np.ndarray]
    asked: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, before: EditableNetwork, split: ForgetSplit, method: Relearning) -> "RelearningTask":
        """The task of some forget samples.

        Args:
            before: The network before the edit.
            split: Its samples.
            method: The fine-tuning.

        Returns:
            The task.
        """
        labels = np.repeat(np.array(split.classes, np.int64), [len(g) for g in split.groups])
        order = np.random.default_rng([method.seed, len(labels)]).permutation(len(labels))  # classes mixed
        shown = (np.concatenate(split.groups)[order], labels[order])
        asked = split.asked_forget.inputs
        top = answered(before, asked)
        right = np.isin(top, split.classes)
        return cls(method, shown, (split.kept, answered(before, split.kept)), (asked[right], top[right]))

    def steps(self, editable: EditableNetwork) -> int:
        """How many steps a network takes; it is as before afterwards."""
        return self.method(editable, self.forget, self.kept, self.asked)


def answered(editable: EditableNetwork, inputs: np.ndarray) -> np.ndarray:
    """The classes that a network answers."""
    return editable.outputs(inputs).argmax(1).numpy()


def largest_loss(before: np.ndarray, after: np.ndarray, classes: np.ndarray, least: int = 5) -> float | None:
    """By how much the share of right answers falls in the class where it falls most.

    Args:
        before: Whether each answer was right, `[n]`.
        after: The same after the edit.
        classes: The class of each.
        least: Samples that a class needs.

    Returns:
        The largest loss; None where no class has enough samples.
    """
    values, counts = np.unique(classes, return_counts=True)
    losses = [float(before[classes == c].mean() - after[classes == c].mean()) for c in values[counts >= least]]
    return max(losses, default=None)

"""How the masked passes of one step are carried out: one by one, in one batch, or through the fusion alone."""

import abc
import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masks import AbstractMask, Batch, hidden
from stemma.multimodal.responses import Split, absent
from stemma.types.network import main_output

Forward = Callable[[nn.Module, Batch], Any]
"""How a network is asked: itself and a batch to its answer."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The outputs of one step.

    Attributes:
        answer: What the network gave for the whole batch, as it gave it.
        outputs: `[coalitions, n, …]`, in the order of the split, with the graph that the gradient takes.
        scored: The same as the responses are judged by; `outputs` itself unless a plan computes them apart.
    """

    answer: Any
    outputs: torch.Tensor
    scored: torch.Tensor


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked in one step.

    Attributes:
        forward: How a network is asked.
        batch: Tensors by name, missing modalities hidden.
        names: The modalities.
        masks: How each is hidden.
        split: Which coalitions.
    """

    forward: Forward
    batch: Batch
    names: tuple[str, ...]
    masks: Mapping[str, AbstractMask]
    split: Split

    def without(self, coalition: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch as one coalition sees it."""
        return hidden(self.batch, self.masks, absent(self.names, coalition))

    def output(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """The logits of one pass."""
        return logits(self.forward(module, batch))

    @property
    def count(self) -> int:
        """Samples in the batch."""
        return len(self.batch[self.names[0]])


class AbstractPlan(abc.ABC):
    """A frozen dataclass that carries out the passes of one step.

    Attributes:
        name: As in the docs.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, module: nn.Module, asked: Questions) -> Asked:
        """All passes of one step.

        Args:
            module: The bare network, in the mode it trains in; that mode is left as it was.
            asked: What is asked.

        Returns:
            Outputs of every coalition.
        """


@dataclass(frozen=True)
class Exact(AbstractPlan):
    """Every masked pass by itself, with its graph, in evaluation mode: as published.

    Cost: `2^M - 1` passes forward and backward, and their activations.
    """

    name = "exact"

    def __call__(self, module: nn.Module, asked: Questions) -> Asked:
        """See `AbstractPlan`."""
        answer = asked.forward(module, asked.batch)
        full = logits(answer)
        with evaluating(module):
            others = [asked.output(module, asked.without(c)) for c in asked.split.masked]
        refuse_dead(full, *others)
        refuse_recomputed(module, *others)
        outputs = torch.stack([full, *others])
        return Asked(answer, outputs, outputs)


@dataclass(frozen=True)
class Batched(AbstractPlan):
    """All masked passes as one batch in evaluation mode: equal to `exact` where samples do not see one another then.

    Cost: as `exact`, with fewer and larger kernels.
    """

    name = "batched"

    def __call__(self, module: nn.Module, asked: Questions) -> Asked:
        """See `AbstractPlan`."""
        answer = asked.forward(module, asked.batch)
        full = logits(answer)
        with evaluating(module):
            others = asked.output(module, _stacked([asked.without(c) for c in asked.split.masked], asked.count))
        refuse_dead(full, others)
        refuse_recomputed(module, others)
        outputs = torch.cat([full[None], others.reshape(-1, *full.shape).to(full.dtype)])
        return Asked(answer, outputs, outputs)


ALL = (Exact, Batched)
"""Plans that need nothing but the network; `LateFast` has to know the encoders."""


def logits(answer: Any) -> torch.Tensor:
    """The tensor that counts in an answer.

    Returns:
        Outputs `[n, …]`.

    Raises:
        MisuseError: If there is none.
    """
    out = main_output(answer)
    if out is None or out.ndim < 2:
        given = "no tensor" if out is None else f"a tensor of shape {list(out.shape)}"
        raise MisuseError(
            f"the network answers with {given}, but responses are split from logits [n, …]: give forward= a function "
            "from the network and the batch to them"
        )
    return out


def refuse_dead(full: torch.Tensor, *others: torch.Tensor) -> None:
    """Refuse masked passes without a graph: every gradient would be scaled by the same mean of the kappas.

    Raises:
        MisuseError: If the whole output carries a gradient and another one does not.
    """
    if full.requires_grad and not all(other.requires_grad for other in others):
        raise MisuseError(
            "the passes with hidden modalities carry no gradient, so all parameters would be scaled alike: forward= "
            "must not run under no_grad or detach its output"
        )


def refuse_recomputed(module: nn.Module, *others: torch.Tensor) -> None:
    """Refuse masked passes that backward would carry out again in training mode, with other batch norm and dropout.

    Raises:
        MisuseError: If a network with batch norm or dropout checkpoints activations in the reentrant way; the other way
            says so itself, in backward.
    """
    if not moody(module):
        return
    waiting = [other.grad_fn for other in others if other.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if "CheckpointFunction" in node.name():
            raise MisuseError(
                "activation checkpointing carries masked passes out again in training mode, where batch norm and "
                "dropout answer differently: checkpoint only while training (self.training), or use late-fast"
            )
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= fresh
        waiting += fresh


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Evaluation mode inside, and afterwards the mode of every part as it was.

    Recurrent networks take the path without cuDNN inside: cuDNN has no gradient in evaluation mode.

    Yields:
        Nothing.
    """
    before = [(part, part.training) for part in parts(module)]
    recurrent = any(isinstance(part, nn.RNNBase) for part, _ in before)
    for part, _ in before:
        part.__dict__["training"] = False  # past the slow setter of modules
    try:
        with torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext():
            yield
    finally:
        for part, mode in before:
            part.__dict__["training"] = mode


def parts(module: nn.Module) -> list[nn.Module]:
    """A network and everything in it, without the names that make `named_modules` slow."""
    found, seen = [module], {module}
    for part in found:
        for inner in part._modules.values():
            if inner is not None and inner not in seen:
                seen.add(inner)
                found.append(inner)
    return found


def moody(module: nn.Module) -> list[nn.Module]:
    """Parts that answer differently in training mode: batch norm, dropout.

    Returns:
        Them; only those known to torch are found.
    """
    found = []
    for part in parts(module):
        if not part.training:
            continue
        if isinstance(part, nn.modules.batchnorm._NormBase):
            changes = part.track_running_stats or isinstance(part, nn.modules.batchnorm._BatchNorm)
        elif isinstance(part, nn.modules.dropout._DropoutNd):
            changes = part.p
        else:
            changes = isinstance(part, (nn.RNNBase, nn.MultiheadAttention)) and part.dropout
        if changes:
            found.append(part)
    return found


def _stacked(batches: Sequence[Batch], count: int) -> dict[str, Any]:
    """Batches on top of one another; what has no row per sample stays as it is."""
    out: dict[str, Any] = {}
    for key, first in batches[0].items():
        rows = isinstance(first, torch.Tensor) and first.ndim > 0 and len(first) == count
        out[key] = torch.cat([b[key] for b in batches]) if rows else first
    return out

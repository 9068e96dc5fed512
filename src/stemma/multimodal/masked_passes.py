"""Plans for the masked passes of one step: one by one, in one batch, or through the fusion alone."""

import abc
import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masks import AbstractMask, Batch, hidden
from stemma.multimodal.responses import CoalitionSplit, absent
from stemma.types.network import main_output

Forward = Callable[[nn.Module, Batch], Any]
"""How a network is called, from the module and a batch to its return value."""


@dataclass(frozen=True, eq=False)
class CoalitionOutputs:
    """The outputs of one step.

    Attributes:
        answer: The network's return value for the whole batch.
        outputs: `[coalitions, n, …]`, in the order of the split, with the graph for the gradient.
        scored: The outputs that responses are scored by; `outputs` itself unless a plan computes them separately.
    """

    answer: Any
    outputs: torch.Tensor
    scored: torch.Tensor


@dataclass(frozen=True, eq=False)
class CoalitionRequest:
    """The passes that one step needs.

    Attributes:
        forward: How the network is called.
        batch: Tensors by name, missing modalities hidden.
        names: The modalities.
        masks: How each is hidden.
        split: Which coalitions.
    """

    forward: Forward
    batch: Batch
    names: tuple[str, ...]
    masks: Mapping[str, AbstractMask]
    split: CoalitionSplit

    def without(self, coalition: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch with all modalities hidden that are not in a coalition."""
        return hidden(self.batch, self.masks, absent(self.names, coalition))

    def output(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """The logits of one pass."""
        return logits(self.forward(module, batch))

    @property
    def count(self) -> int:
        """Samples in the batch."""
        return len(self.batch[self.names[0]])


class AbstractPlan(abc.ABC):
    """A frozen dataclass that runs the passes of one step.

    Attributes:
        name: As in the docs.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def __call__(self, module: nn.Module, request: CoalitionRequest) -> CoalitionOutputs:
        """Run all passes of one step.

        Args:
            module: The bare network, in training mode or not; the mode is left as it was.
            request: Which passes.

        Returns:
            Outputs of every coalition.
        """


@dataclass(frozen=True)
class Exact(AbstractPlan):
    """Every masked pass on its own, with its graph, in evaluation mode: as published.

    Cost: `2^M - 1` passes forward and backward, and their activations.
    """

    name = "exact"

    def __call__(self, module: nn.Module, request: CoalitionRequest) -> CoalitionOutputs:
        """See `AbstractPlan`."""
        answer = request.forward(module, request.batch)
        full = logits(answer)
        with evaluation_mode(module):
            others = [request.output(module, request.without(c)) for c in request.split.masked]
        require_gradient(full, *others)
        refuse_recomputation(module, *others)
        outputs = torch.stack([full, *others])
        return CoalitionOutputs(answer, outputs, outputs)


@dataclass(frozen=True)
class Batched(AbstractPlan):
    """All masked passes as one batch in evaluation mode: equal to `exact` where samples do not interact then.

    Cost: as `exact`, with fewer and larger kernels.
    """

    name = "batched"

    def __call__(self, module: nn.Module, request: CoalitionRequest) -> CoalitionOutputs:
        """See `AbstractPlan`."""
        answer = request.forward(module, request.batch)
        full = logits(answer)
        with evaluation_mode(module):
            others = request.output(module, _stacked([request.without(c) for c in request.split.masked], request.count))
        require_gradient(full, others)
        refuse_recomputation(module, others)
        outputs = torch.cat([full[None], others.reshape(-1, *full.shape).to(full.dtype)])
        return CoalitionOutputs(answer, outputs, outputs)


ALL = (Exact, Batched)
"""Plans that need nothing but the network; `LateFast` needs the encoders too."""


def logits(answer: Any) -> torch.Tensor:
    """The main output `[n, …]` in a return value; `MisuseError` if there is none."""
    out = main_output(answer)
    if out is None or out.ndim < 2:
        given = "no tensor" if out is None else f"a tensor of shape {list(out.shape)}"
        raise MisuseError(
            f"the network returns {given}, but logits [n, …] are needed: give forward= a function from the network and "
            "the batch to logits"
        )
    return out


def require_gradient(full: torch.Tensor, *others: torch.Tensor) -> None:
    """Raise `MisuseError` if masked passes have no graph: all gradients would be scaled by the mean of the kappas."""
    if full.requires_grad and not all(other.requires_grad for other in others):
        raise MisuseError(
            "the masked passes carry no gradient, so all parameters would be scaled equally: forward= must not run "
            "under no_grad or detach its output"
        )


def refuse_recomputation(module: nn.Module, *others: torch.Tensor) -> None:
    """Raise `MisuseError` for reentrant checkpointing, which recomputes masked passes in training mode."""
    if not differs_in_training(module):
        return
    waiting = [other.grad_fn for other in others if other.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if "CheckpointFunction" in node.name():
            raise MisuseError(
                "activation checkpointing recomputes masked passes in training mode, where batch norm and dropout "
                "differ: checkpoint only while training (self.training), or use late-fast"
            )
        fresh = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= fresh
        waiting += fresh


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Evaluation mode inside, and afterwards the mode of every part as it was."""
    # Recurrent networks run without cuDNN inside, which has no gradient in evaluation mode.
    before = [(part, part.training) for part in submodules(module)]
    recurrent = any(isinstance(part, nn.RNNBase) for part, _ in before)
    for part, _ in before:
        part.__dict__["training"] = False  # avoids the slow setter of modules
    try:
        with torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext():
            yield
    finally:
        for part, mode in before:
            part.__dict__["training"] = mode


def submodules(module: nn.Module) -> list[nn.Module]:
    """A network and everything in it, without the names that make `named_modules` slow."""
    found, seen = [module], {module}
    for part in found:
        for inner in part._modules.values():
            if inner is not None and inner not in seen:
                seen.add(inner)
                found.append(inner)
    return found


def differs_in_training(module: nn.Module) -> list[nn.Module]:
    """Parts with other outputs in training mode (batch norm, dropout); only those of torch are found."""
    found = []
    for part in submodules(module):
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
    """Batches on top of one another; entries without a row per sample stay as they are."""
    out: dict[str, Any] = {}
    for key, first in batches[0].items():
        rows = isinstance(first, torch.Tensor) and first.ndim > 0 and len(first) == count
        out[key] = torch.cat([b[key] for b in batches]) if rows else first
    return out

"""Distributed training: all passes of a step in one call, and the same kappas in every process."""

import contextlib
import math
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stemma.errors import MisuseError


def refuse_sharded(model: nn.Module) -> None:
    """Raise `MisuseError` for a network whose parameters are sharded over processes (FSDP)."""
    kinds = [kind for part in model.modules() for kind in type(part).__mro__]
    if any(kind.__name__ in ("FullyShardedDataParallel", "FSDPModule") for kind in kinds):
        raise MisuseError(
            "sharded parameters (FSDP) are not supported, because one step runs several passes before one backward: "
            "use DistributedDataParallel"
        )


def group_of(model: nn.Module, given: Any) -> Any:
    """The processes that agree on every kappa: the group given, else that of `DistributedDataParallel`, else None."""
    if given is None and isinstance(model, DistributedDataParallel):
        return model.process_group
    return given


def summed(values: torch.Tensor, group: Any) -> list[float]:
    """Numbers summed over the processes of a group, in one transfer; infinite where they are not finite."""
    if group is not None:
        torch.distributed.all_reduce(values, group=group)
    return [value if math.isfinite(value) else math.inf for value in values.tolist()]


def in_one_call(model: nn.Module, run: Callable[[nn.Module], Any]) -> Any:
    """Run all passes in one forward call of `DistributedDataParallel`, so that gradients are reduced once."""
    if not isinstance(model, DistributedDataParallel):
        return run(model)
    with _around(model, _Passes(model.module)):
        return model(run)


class _Passes(nn.Module):
    """All passes of a step as one forward call."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, run: Callable[[nn.Module], Any]) -> Any:
        return run(self.inside)


@contextlib.contextmanager
def _around(parallel: DistributedDataParallel, passes: _Passes) -> Generator[None]:
    parallel._modules["module"] = passes
    try:
        yield
    finally:
        parallel._modules["module"] = passes.inside

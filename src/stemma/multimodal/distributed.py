"""Several processes that train one network: all passes of a step in one call, and the same kappas everywhere."""

import contextlib
import math
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stemma.errors import MisuseError


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a network whose parameters are spread over processes.

    Raises:
        MisuseError: If it, or a part of it, is of FSDP.
    """
    kinds = [kind for part in model.modules() for kind in type(part).__mro__]
    if any(kind.__name__ in ("FullyShardedDataParallel", "FSDPModule") for kind in kinds):
        raise MisuseError(
            "the parameters of this network are sharded (FSDP), and a step of modulation is several passes before one "
            "backward, for which FSDP is not tried: use DistributedDataParallel"
        )


def group_of(model: nn.Module, given: Any) -> Any:
    """The processes that have to agree on every kappa.

    Args:
        model: The network, perhaps inside `DistributedDataParallel`.
        given: Another group.

    Returns:
        The group given, else that of `DistributedDataParallel`; None where a process is on its own.
    """
    if given is None and isinstance(model, DistributedDataParallel):
        return model.process_group
    return given


def summed(values: torch.Tensor, group: Any) -> list[float]:
    """Numbers, summed over the processes of a group, in one transfer from the device.

    Args:
        values: `[numbers]`; changed in place.
        group: Of processes; None for this one alone.

    Returns:
        As plain numbers, infinite where they are not finite.
    """
    if group is not None:
        torch.distributed.all_reduce(values, group=group)
    return [value if math.isfinite(value) else math.inf for value in values.tolist()]


def in_one_call(model: nn.Module, run: Callable[[nn.Module], Any]) -> Any:
    """Run all passes of a step, of `DistributedDataParallel` inside one forward call, so that gradients meet once.

    Args:
        model: The network, perhaps inside `DistributedDataParallel`.
        run: What is done with the bare network.

    Returns:
        What that gives.
    """
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

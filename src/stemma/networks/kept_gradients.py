"""Networks whose own code turns gradients off: what they compute is differentiated all the same."""

import sys
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch.overrides import TorchFunctionMode


@final
class GradientsKept(TorchFunctionMode):
    """Inside, `torch.no_grad()` and `torch.set_grad_enabled(False)` have no effect; `met` says whether they were met.

    A gradient field is the derivative of the function that a network computes, and `no_grad` is no part of that
    function: a network with a frozen trunk under `no_grad` would otherwise have no field, or that of a part of it.
    `detach()` is part of the function and keeps its effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False
        self._before = True

    def __enter__(self) -> Self:
        self._before = torch.is_grad_enabled()
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        torch.set_grad_enabled(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not args[0] and not _fills_weights():
            self.met = True
            return None
        return func(*args, **(kwargs or {}))


FILLING = ("load_state_dict", "_load_from_state_dict", "reset_parameters", "_no_grad_uniform_", "_no_grad_normal_",
           "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_", "_apply")  # fmt: skip
"""Functions of torch that write weights in place, which they may do without gradients only."""


def _fills_weights() -> bool:
    """Whether weights are being written: a network that is built when it is first called."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "forward_with_gradients":
        if frame.f_code.co_name in FILLING:
            return True
        frame = frame.f_back
    return False


def with_gradients_kept(answer: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """The function of a network, differentiable also where its code says `no_grad`."""

    def forward_with_gradients(x: torch.Tensor) -> Any:
        with GradientsKept():
            return answer(x)

    return forward_with_gradients

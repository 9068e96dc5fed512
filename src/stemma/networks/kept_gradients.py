"""Networks whose own code turns gradients off: what they compute is differentiated all the same."""

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
        if func is torch._C._set_grad_enabled and not args[0]:
            self.met = True
            return None
        return func(*args, **(kwargs or {}))


def with_gradients_kept(answer: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """The function of a network, differentiable also where its code says `no_grad`."""

    def forward(x: torch.Tensor) -> Any:
        with GradientsKept():
            return answer(x)

    return forward

"""How torch is set while a network is asked, whatever the caller has set around the call."""

import functools
import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_LOCK = threading.Lock()
_ENTERED: list[bool] = []


@contextmanager
def plain_torch() -> Generator[None]:
    """Gradients can be taken, outside of inference mode, and attention runs through its own submodules.

    `torch.no_grad()` and `torch.inference_mode()` around a call of Stemma have no effect inside. In evaluation mode
    torch runs `nn.MultiheadAttention` and `nn.TransformerEncoder` as one fused operation, which has no forward
    derivative and calls no hooks; the plain one computes the same up to rounding.

    Yields:
        Nothing.
    """
    try:
        import torch
    except ImportError:  # whoever needs it names the extra
        yield
        return
    with torch.inference_mode(False), torch.enable_grad(), _no_attention_fast_path():
        yield


@contextmanager
def _no_attention_fast_path() -> Generator[None]:
    """The switch belongs to the process: the first thread that enters turns it off, the last one restores it."""
    from torch.backends import mha

    with _LOCK:
        _ENTERED.append(mha.get_fastpath_enabled() if not _ENTERED else _ENTERED[0])
        mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _LOCK:
            before = _ENTERED.pop()
            if not _ENTERED:
                mha.set_fastpath_enabled(before)


def asked_plainly(function: Function) -> Function:
    """The function, run under `plain_torch`; of a generator every step, so that callers keep their own settings.

    Args:
        function: A function or generator function.

    Returns:
        The same function, with the settings around it.
    """
    if not inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def whole(*args: Any, **options: Any) -> Any:
            with plain_torch():
                return function(*args, **options)

        return whole  # ty: ignore[invalid-explicit-return]

    @functools.wraps(function)
    def stepwise(*args: Any, **options: Any) -> Generator[Any]:
        steps = function(*args, **options)
        while True:
            try:
                with plain_torch():
                    item = next(steps)
            except StopIteration:
                return
            yield item

    return stepwise  # ty: ignore[invalid-explicit-return]

"""Networks that were frozen for one number of inputs at a time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stemma.errors import StemmaError
from stemma.types.network import main_output

if TYPE_CHECKING:
    import torch


def in_batches(
    name: str, ask: Callable[["torch.Tensor"], Any], size: int
) -> Callable[["torch.Tensor"], "torch.Tensor"]:
    """Put any number of inputs to a network that takes exactly `size` at once; the last batch is filled up.

    Args:
        name: The network's, for the error.
        ask: From `[size, …]` to an answer.
        size: Inputs at once.

    Returns:
        From `[n, …]` to the main output `[n, …]`.
    """

    def answer(x: "torch.Tensor") -> "torch.Tensor":
        import torch

        out = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            short = size - len(part)
            filled = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            found = main_output(ask(filled))
            if found is None or found.ndim < 2 or len(found) != size:
                raise StemmaError(
                    f"{name} takes exactly {size} inputs at once but does not answer with one row for each: export it "
                    "with a free batch axis"
                )
            out.append(found[: len(part)])
        return torch.cat(out)

    return answer

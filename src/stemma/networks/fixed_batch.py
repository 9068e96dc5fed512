"""Networks that were exported with a fixed batch size."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stemma.errors import StemmaError
from stemma.types.network import main_output

if TYPE_CHECKING:
    import torch


def in_fixed_batches(
    name: str, forward: Callable[["torch.Tensor"], Any], size: int
) -> Callable[["torch.Tensor"], "torch.Tensor"]:
    """Run a network that takes exactly `size` inputs on any number of them; the last batch is padded."""

    def answer(x: "torch.Tensor") -> "torch.Tensor":
        import torch

        out = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            short = size - len(part)
            filled = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            found = main_output(forward(filled))
            if found is None or found.ndim < 2 or len(found) != size:
                raise StemmaError(
                    f"{name} has a fixed batch size of {size} but does not return one output row per input. Export it "
                    "with a dynamic batch axis"
                )
            out.append(found[: len(part)])
        return torch.cat(out)

    return answer

"""Hidden states of the probes before a block, of the whole network and of the pruned one, on disk."""

from pathlib import Path

import numpy as np
import torch

from stemma.errors import StemmaError

WHOLE, PRUNED = 0, 1
"""Places of the two networks' states on the second axis."""


class HiddenStates:
    """A file of hidden states `[inputs, 2, length, width]` in float32; only what is used lies in memory."""

    def __init__(self, path: Path, shape: tuple[int, int, int], *, new: bool) -> None:
        n, length, width = shape
        self.path = path
        whole = (n, 2, length, width)
        if not new and (not path.is_file() or path.stat().st_size != 4 * int(np.prod(whole))):
            raise StemmaError(f"the progress kept in {path.parent} is incomplete: delete that folder and start again")
        if new:
            with path.open("wb") as file:  # a full disk is an error here, and no crash when the pages are written
                block = bytes(1 << 20)
                left = 4 * int(np.prod(whole))
                while left:
                    left -= file.write(block[: min(left, len(block))])
        self.array = np.memmap(path, np.float32, "r+", shape=whole)

    def put(self, start: int, which: int, values: torch.Tensor) -> None:
        """Set the states of some inputs."""
        self.array[start : start + len(values), which] = values.float().cpu().numpy()

    def get(self, start: int, stop: int, which: int) -> torch.Tensor:
        """The states of some inputs."""
        return torch.from_numpy(np.array(self.array[start:stop, which]))

    def close(self) -> None:
        """Write what is left to disk."""
        self.array.flush()

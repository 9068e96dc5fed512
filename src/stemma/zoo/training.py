"""Random starts, training of many networks on the same examples, and their accuracy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stemma import networks
from stemma.errors import MisuseError
from stemma.zoo.batched import forward
from stemma.zoo.data import Examples
from stemma.zoo.kinds import Schedule
from stemma.zoo.kinds import seed_for as seed_for
from stemma.zoo.training_jobs import Arrays, TrainingJob, run_jobs

INITIALISERS = ("torch", "orthogonal", "normal", "xavier")
"""How a random start is drawn: as torch does, or every matrix by another rule of `torch.nn.init`."""


def initial(config: Mapping[str, Any], seed: int, init: str = "torch") -> Arrays:
    """A network's random start; torch's global generator is left as it was.

    Args:
        config: The architecture.
        seed: Any non-negative integer.
        init: One of `INITIALISERS`; all but `torch` draw every matrix and kernel anew (`normal` with He's deviation)
            and leave biases, norms and tokens as torch has them.

    Returns:
        Parameters and buffers by name.

    Raises:
        MisuseError: If there is no such rule.
    """
    if init not in INITIALISERS:
        raise MisuseError(f"no random start is drawn by {init!r}. There are: {', '.join(INITIALISERS)}.")
    draw: Any = {"orthogonal": torch.nn.init.orthogonal_, "normal": torch.nn.init.kaiming_normal_,
            "xavier": torch.nn.init.xavier_uniform_}.get(init)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = networks.build(config)
        for name, tensor in module.state_dict().items() if draw is not None else ():
            if name.endswith("weight") and tensor.ndim >= 2:
                draw(tensor)
    return {name: t.detach().numpy().copy() for name, t in module.state_dict().items()}


def train(
    config: Mapping[str, Any],
    starts: Sequence[Arrays],
    examples: Examples,
    schedule: Schedule,
    seeds: Sequence[int],
    *,
    trainable: Callable[[str], bool] = lambda name: True,
    rank: int = 0,
    keep: Sequence[int] = (),
    after_step: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> list[list[Arrays]]:
    """Train m networks of one configuration on the same examples, each in its own order, as one stack.

    Cost: m trainings, in much less than m times the time of one.

    Args:
        config: The architecture that all share.
        starts: Parameters and buffers of each network; not changed.
        examples: What to learn.
        schedule: How long and how fast.
        seeds: One per network, for the order of its examples (and its adapters).
        trainable: Which tensors learn.
        rank: Above 0, low-rank adapters of this rank on every trainable matrix learn instead of the tensors; they are
            merged into the weights at the end.
        keep: Steps after which the weights are kept too.
        after_step: Called with the stacked parameters after each update (to keep pruned weights at zero).

    Returns:
        For each network its weights after each step of `keep`, then the final ones.
    """
    learns = frozenset(n for n in starts[0] if trainable(n))
    jobs = [
        TrainingJob(config, start, examples, seed, schedule.steps, schedule.batch, schedule.rate,
               trainable=learns, rank=rank, keep=tuple(sorted(keep)))
        for start, seed in zip(starts, seeds, strict=True)
    ]  # fmt: skip
    return run_jobs(jobs, after_step)


def logits(config: Mapping[str, Any], networks_: Sequence[Arrays], inputs: np.ndarray) -> np.ndarray:
    """Logits of m networks of one configuration on the same inputs, `[m, n, …, classes]`."""
    stack = {n: torch.from_numpy(np.stack([s[n] for s in networks_])) for n in networks_[0]}
    out = []
    with torch.no_grad():
        for start in range(0, len(inputs), 256):
            x = torch.from_numpy(inputs[start : start + 256])
            out.append(forward(config, stack, x.expand(len(networks_), *x.shape)))
    return torch.cat(out, 1).numpy()


def accuracy(config: Mapping[str, Any], networks_: Sequence[Arrays], examples: Examples) -> np.ndarray:
    """Accuracy of each network (on next bytes for text), `[m]`."""
    right = logits(config, networks_, examples.inputs).argmax(-1) == examples.targets
    return right.reshape(len(networks_), -1).mean(1)


def bits_per_byte(config: Mapping[str, Any], networks_: Sequence[Arrays], examples: Examples) -> np.ndarray:
    """Cross-entropy of text in bits per byte, `[m]`."""
    x = torch.from_numpy(logits(config, networks_, examples.inputs)).log_softmax(-1)
    chosen = x.gather(-1, torch.from_numpy(examples.targets).expand(len(x), -1, -1)[..., None])
    return (-chosen.flatten(1).mean(1) / math.log(2)).numpy()

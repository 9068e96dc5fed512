"""Training of many networks at once, and how well they do.

Each network has its own start, its own order of examples and its own optimiser state: the sum of their losses has
for each network the gradient of its own loss, and Adam works entry by entry.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stemma.models import networks
from stemma.zoo.batched import forward
from stemma.zoo.data import Examples
from stemma.zoo.kinds import Schedule

Arrays = dict[str, np.ndarray]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def initial(config: Mapping[str, Any], seed: int) -> Arrays:
    """A network's random start, as torch draws it; torch's global generator is left as it was.

    Args:
        config: The architecture.
        seed: Any non-negative integer.

    Returns:
        Parameters and buffers by name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = networks.build(config)
    return {name: t.detach().numpy().copy() for name, t in module.state_dict().items()}


def seed_for(seed: int, *path: int) -> int:
    """A seed of its own for each place in a recipe.

    Returns:
        An integer below 2^63 that depends on all arguments.
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def _orders(seeds: Sequence[int], count: int, wanted: int) -> torch.Tensor:
    """Each network's own order of the examples, epoch after epoch.

    Returns:
        Indices `[m, wanted]`.
    """
    epochs = -(-wanted // count)
    rows = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        rows.append(np.concatenate([rng.permutation(count) for _ in range(epochs)])[:wanted])
    return torch.from_numpy(np.stack(rows))


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over networks of each one's mean cross-entropy.

    Returns:
        A scalar.
    """
    classes = logits.shape[-1]
    flat = targets.reshape(-1, classes) if targets.is_floating_point() else targets.reshape(-1)
    return F.cross_entropy(logits.reshape(-1, classes), flat) * len(logits)


def _rate(schedule: Schedule, step: int) -> float:
    warm = max(1, schedule.steps // 10)
    if step < warm:
        return schedule.rate * (step + 1) / warm
    along = (step - warm) / max(1, schedule.steps - warm)
    return schedule.rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along)))


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
    """Train m networks of one configuration on the same examples, each in its own order.

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
    stack = {n: torch.from_numpy(np.stack([s[n] for s in starts])) for n in starts[0]}
    learns = {n: t for n, t in stack.items() if trainable(n) and n.rsplit(".", 1)[-1] not in _BUFFERS}
    adapters = _adapters(learns, rank, seeds) if rank else {}
    leaves = [t for pair in adapters.values() for t in pair] if rank else list(learns.values())
    for leaf in leaves:
        leaf.requires_grad_(True)
    optimizer = torch.optim.Adam(leaves, lr=schedule.rate, foreach=True)
    inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
    order = _orders(seeds, len(inputs), schedule.steps * schedule.batch)
    kept: list[list[Arrays]] = [[] for _ in starts]
    for step in range(schedule.steps):
        rows = order[:, step * schedule.batch : (step + 1) * schedule.batch]
        for group in optimizer.param_groups:
            group["lr"] = _rate(schedule, step)
        optimizer.zero_grad()
        _loss(forward(config, _merged(stack, adapters), inputs[rows], training=True), targets[rows]).backward()
        optimizer.step()
        for name in stack:
            if name.endswith("num_batches_tracked"):
                stack[name] += 1
        if after_step is not None:
            with torch.no_grad():
                after_step(stack)
        if step + 1 in keep:
            _unstack(_merged(stack, adapters), kept)
    _unstack(_merged(stack, adapters), kept)
    return kept


def _adapters(
    learns: Mapping[str, torch.Tensor], rank: int, seeds: Sequence[int]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A random down-projection and a zero up-projection per matrix, as LoRA starts.

    Returns:
        Pairs `[m, rank, inputs]`, `[m, outputs, rank]` by tensor name.
    """
    generator = torch.Generator().manual_seed(seed_for(seeds[0], 2))
    out = {}
    for name, t in learns.items():
        if t.ndim >= 3 and min(t.shape[1], t[0, 0].numel()) > 1 and "embed" not in name and "token" not in name:
            inputs = t[0, 0].numel()
            down = torch.randn(len(t), rank, inputs, generator=generator) / math.sqrt(inputs)
            out[name] = (down, torch.zeros(len(t), t.shape[1], rank))
    return out


def _merged(
    stack: Mapping[str, torch.Tensor], adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    changed = {n: stack[n] + torch.bmm(up, down).view_as(stack[n]) for n, (down, up) in adapters.items()}
    return {**stack, **changed}


def _unstack(stack: Mapping[str, torch.Tensor], into: list[list[Arrays]]) -> None:
    for i, kept in enumerate(into):
        kept.append({n: t.detach()[i].numpy().copy() for n, t in stack.items()})


def logits(config: Mapping[str, Any], networks_: Sequence[Arrays], inputs: np.ndarray) -> np.ndarray:
    """What m networks of one configuration answer to the same inputs.

    Args:
        config: The architecture that all share.
        networks_: Their weights.
        inputs: `[n, …]`.

    Returns:
        `[m, n, …, classes]`.
    """
    stack = {n: torch.from_numpy(np.stack([s[n] for s in networks_])) for n in networks_[0]}
    out = []
    with torch.no_grad():
        for start in range(0, len(inputs), 256):
            x = torch.from_numpy(inputs[start : start + 256])
            out.append(forward(config, stack, x.expand(len(networks_), *x.shape)))
    return torch.cat(out, 1).numpy()


def accuracy(config: Mapping[str, Any], networks_: Sequence[Arrays], examples: Examples) -> np.ndarray:
    """Share of right answers (of right next bytes for text).

    Returns:
        One fraction per network, `[m]`.
    """
    right = logits(config, networks_, examples.inputs).argmax(-1) == examples.targets
    return right.reshape(len(networks_), -1).mean(1)


def bits_per_byte(config: Mapping[str, Any], networks_: Sequence[Arrays], examples: Examples) -> np.ndarray:
    """Cross-entropy of text in bits per byte.

    Returns:
        One figure per network, `[m]`.
    """
    x = torch.from_numpy(logits(config, networks_, examples.inputs)).log_softmax(-1)
    chosen = x.gather(-1, torch.from_numpy(examples.targets).expand(len(x), -1, -1)[..., None])
    return (-chosen.flatten(1).mean(1) / math.log(2)).numpy()

"""What one network is to learn, and the training of many at once, whatever each of them learns.

Networks of one configuration that learn in the same number of steps by the same rule train as one stack, though each
has its own start, examples, targets, order, rate and adapters: the sum of their losses has for each network the
gradient of its own loss, and the rules of `stemma.zoo.optimizers` work entry by entry. What a network becomes depends
on its lesson alone (to rounding: stacks of another size sum in another order).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stemma.zoo.batched import forward
from stemma.zoo.data import Examples
from stemma.zoo.kinds import seed_for
from stemma.zoo.optimizers import Optimizer

Arrays = dict[str, np.ndarray]

STACK = 32
"""Most networks that train at once: more of them are no faster, they leave the processor's cache."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one network learns, from which start, and how.

    Attributes:
        config: Its architecture.
        start: Parameters and buffers by name; not changed.
        examples: What to learn.
        seed: Of the order of examples, and of adapters.
        steps: Updates.
        batch: Examples per update.
        rate: Highest learning rate.
        optimizer: One of `stemma.zoo.optimizers.OPTIMIZERS`.
        weight_decay: Apart from the gradient for `adamw`, else added to it.
        decay: How the rate falls after a warm-up of a tenth of the steps: `cosine`, to a twentieth, or `constant`.
        learns: Names of the tensors that learn; None for all.
        rank: Above 0, low-rank adapters of this rank on the matrices among `learns` are what learns; they are merged
            into the weights at the end.
        keep: Steps after which the weights are kept too, ascending; 0 is the start.
        keep_zeros: Whether matrix entries that are zero at the start stay zero.
    """

    config: Mapping[str, Any]
    start: Arrays
    examples: Examples
    seed: int
    steps: int
    batch: int
    rate: float
    optimizer: str = "adam"
    weight_decay: float = 0.0
    decay: str = "cosine"
    learns: frozenset[str] | None = None
    rank: int = 0
    keep: tuple[int, ...] = ()
    keep_zeros: bool = False

    @cached_property
    def together(self) -> tuple[Any, ...]:
        """What two lessons must have in common to be learnt in one stack."""
        shapes = tuple(sorted((n, a.shape, a.dtype.str) for n, a in self.start.items()))
        targets = self.examples.targets
        config = json.dumps(dict(self.config), sort_keys=True)
        learns = None if self.learns is None else tuple(sorted(self.learns))
        how = (self.steps, self.batch, self.optimizer, self.decay, learns, self.rank, self.keep, self.keep_zeros)
        return (config, shapes, how, targets.dtype.str, targets.shape[1:])


def stacks(lessons: Sequence[Lesson], largest: int = STACK) -> list[list[int]]:
    """Which lessons are learnt together.

    Args:
        lessons: Any lessons.
        largest: Most networks of a stack; a quarter of it where teachers answer with probabilities over bytes.

    Returns:
        Indices of the lessons of each stack.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, lesson in enumerate(lessons):
        groups.setdefault(lesson.together, []).append(i)
    out = []
    for group in groups.values():
        size = max(1, largest // 4) if lessons[group[0]].examples.targets.ndim > 2 else largest
        out += [group[at : at + size] for at in range(0, len(group), size)]
    return out


def teach(
    lessons: Sequence[Lesson], after_step: Callable[[dict[str, torch.Tensor]], None] | None = None
) -> list[list[Arrays]]:
    """Train one stack of m networks, whose lessons agree in `Lesson.together`.

    Cost on one core: m trainings, in much less than m times the time of one; an update of a batch of 32 takes about
    0.1 ms per perceptron, 0.6 ms per CNN, 2 ms per vision transformer or language model.

    Args:
        lessons: One per network.
        after_step: Called with the stacked parameters after each update.

    Returns:
        For each network its weights after each step of `keep`, then the final ones.
    """
    first = lessons[0]
    stack = {n: torch.from_numpy(np.stack([s.start[n] for s in lessons])) for n in first.start}
    names = [n for n in stack if n.rsplit(".", 1)[-1] not in _BUFFERS and (first.learns is None or n in first.learns)]
    adapters = _adapters({n: stack[n] for n in names}, lessons) if first.rank else {}
    leaves = [t for pair in adapters.values() for t in pair] if first.rank else [stack[n] for n in names]
    for leaf in leaves:
        leaf.requires_grad_(True)
    optimizer = Optimizer(
        first.optimizer, leaves, np.array([s.rate for s in lessons]), np.array([s.weight_decay for s in lessons])
    )
    masks = {n: stack[n].detach() != 0 for n in names if stack[n].ndim >= 3} if first.keep_zeros else {}
    batches = _Batches(lessons)
    kept: list[list[Arrays]] = [[] for _ in lessons]
    _keep(first.keep.count(0), stack, adapters, kept)
    for step in range(first.steps):
        inputs, targets = batches(step)
        _loss(forward(first.config, _merged(stack, adapters), inputs, training=True), targets).backward()
        optimizer.step(_rate(first, step))
        _afterwards(stack, masks, after_step)
        _keep(first.keep.count(step + 1), stack, adapters, kept)
    _keep(1, stack, adapters, kept)
    return kept


class _Batches:
    """Each network's own examples in its own order, out of one pool."""

    def __init__(self, lessons: Sequence[Lesson]):
        self._size = lessons[0].batch
        self._inputs, inputs_at = _pool(s.examples.inputs for s in lessons)
        self._targets, targets_at = _pool(s.examples.targets for s in lessons)
        counts, wanted = [len(s.examples.inputs) for s in lessons], lessons[0].steps * self._size
        order = np.stack([_order(s.seed, n, wanted) for s, n in zip(lessons, counts, strict=True)])
        self._input_rows = torch.from_numpy(order + inputs_at[:, None])
        self._target_rows = torch.from_numpy(order + targets_at[:, None])

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One batch per network.

        Returns:
            Inputs and targets, `[m, batch, …]`.
        """
        here = slice(step * self._size, (step + 1) * self._size)
        return self._inputs[self._input_rows[:, here]], self._targets[self._target_rows[:, here]]


def _pool(arrays: Iterable[np.ndarray]) -> tuple[torch.Tensor, np.ndarray]:
    """Distinct arrays behind one another.

    Returns:
        The pool, and where each given array begins in it.
    """
    places: dict[int, int] = {}
    parts: list[np.ndarray] = []
    at, end = [], 0
    for array in arrays:
        if id(array) not in places:
            places[id(array)] = end
            parts.append(array)
            end += len(array)
        at.append(places[id(array)])
    return torch.from_numpy(np.concatenate(parts)), np.array(at)


def _order(seed: int, count: int, wanted: int) -> np.ndarray:
    """One network's order of its examples, epoch after epoch.

    Returns:
        Indices `[wanted]`.
    """
    rng = np.random.default_rng([seed, 1])
    epochs = [rng.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate([*epochs, np.zeros(0, np.int64)])[:wanted]


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over networks of each one's mean cross-entropy.

    Returns:
        A scalar.
    """
    classes = logits.shape[-1]
    flat = targets.reshape(-1, classes) if targets.is_floating_point() else targets.reshape(-1)
    return F.cross_entropy(logits.reshape(-1, classes), flat) * len(logits)


def _rate(lesson: Lesson, step: int) -> float:
    warm = max(1, lesson.steps // 10)
    if step < warm:
        return (step + 1) / warm
    if lesson.decay == "constant":
        return 1.0
    along = (step - warm) / max(1, lesson.steps - warm)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along))


def _adapters(
    learns: Mapping[str, torch.Tensor], lessons: Sequence[Lesson]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A random down-projection and a zero up-projection per matrix, as LoRA starts, drawn for each network alone.

    Returns:
        Pairs `[m, rank, inputs]`, `[m, outputs, rank]` by tensor name.
    """
    rank = lessons[0].rank
    generators = [torch.Generator().manual_seed(seed_for(s.seed, 2)) for s in lessons]
    out = {}
    for name, t in learns.items():
        if t.ndim >= 3 and min(t.shape[1], t[0, 0].numel()) > 1 and "embed" not in name and "token" not in name:
            inputs = t[0, 0].numel()
            down = torch.stack([torch.randn(rank, inputs, generator=g) for g in generators]) / math.sqrt(inputs)
            out[name] = (down, torch.zeros(len(t), t.shape[1], rank))
    return out


def _merged(
    stack: Mapping[str, torch.Tensor], adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    changed = {n: stack[n] + torch.bmm(up, down).view_as(stack[n]) for n, (down, up) in adapters.items()}
    return {**stack, **changed}


def _afterwards(
    stack: dict[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    after_step: Callable[[dict[str, torch.Tensor]], None] | None,
) -> None:
    with torch.no_grad():
        for name, tensor in stack.items():
            if name.endswith("num_batches_tracked"):
                tensor += 1
        for name, mask in masks.items():
            stack[name].mul_(mask)
        if after_step is not None:
            after_step(stack)


def _keep(
    times: int,
    stack: Mapping[str, torch.Tensor],
    adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    into: list[list[Arrays]],
) -> None:
    if times:
        merged = {n: t.detach().numpy() for n, t in _merged(stack, adapters).items()}
        for i, kept in enumerate(into):
            kept += [{n: t[i].copy() for n, t in merged.items()}] * times

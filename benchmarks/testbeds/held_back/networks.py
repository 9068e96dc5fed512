"""The networks of the held-back beds, and the training of many of one kind at once, in plain torch.

Nothing here comes from the zoo: other architectures, activations, initialisations and optimisers. A stack of networks
learns as one: `torch.func` maps one forward pass over stacked parameters, and the steps of the optimiser work entry by
entry, so each network has its own start, examples, rate and frozen layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

Arrays = dict[str, np.ndarray]

STACK = 12
"""Networks that train at once."""


class Garments(nn.Module):
    """Three convolutions with batch normalisation and SiLU, and a head on all positions: 28 x 28 to logits."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.entry = nn.Conv2d(1, 12, 5, stride=3, padding=1, bias=False)
        self.entry_norm = nn.BatchNorm2d(12)
        self.middle = nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False)
        self.middle_norm = nn.BatchNorm2d(24)
        self.late = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.late_norm = nn.BatchNorm2d(32)
        self.answer = nn.Linear(32 * 9, width)
        for layer in (self.entry, self.middle, self.late):
            nn.init.orthogonal_(layer.weight, 1.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.entry_norm(self.entry(x)))
        x = F.silu(self.middle_norm(self.middle(x)))
        x = F.silu(self.late_norm(self.late(x)))
        return self.answer(x.flatten(1))


class Spoken(nn.Module):
    """A tanh perceptron on a log-mel picture of 20 bands and 16 times."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(320, 56)
        self.second = nn.Linear(56, 48)
        self.third = nn.Linear(48, 40)
        self.answer = nn.Linear(40, width)
        for layer in (self.first, self.second, self.third, self.answer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.uniform_(layer.bias, -0.05, 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x.flatten(1)))
        x = torch.tanh(self.second(x))
        return self.answer(torch.tanh(self.third(x)))


NETWORKS = {"garments": Garments, "spoken": Spoken}
EARLY = {"garments": ("entry", "middle"), "spoken": ("first", "second")}
"""Beginnings of the names that stay as they are where a child is partly frozen."""


def fresh(bed: str, seed: int, width: int = 10) -> Arrays:
    """A network that has learnt nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = NETWORKS[bed](width)
    return {n: t.numpy().copy() for n, t in module.state_dict().items()}


def module_of(bed: str, arrays: Arrays) -> nn.Module:
    """Arrays as a module in evaluation mode."""
    module = NETWORKS[bed](len(arrays["answer.bias"]))
    module.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in arrays.items()})
    return module.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one network learns.

    Attributes:
        start: Parameters and buffers; not changed.
        inputs: uint8 pictures or float32 spectra `[n, 1, h, w]`.
        targets: Probabilities of classes `[n, width]`.
        seed: Of the order.
        rate: Of learning.
        frozen: Beginnings of the names that stay.
    """

    start: Arrays
    inputs: np.ndarray
    targets: np.ndarray
    seed: int
    rate: float
    frozen: tuple[str, ...] = ()


def learn(bed: str, lessons: Sequence[Lesson], steps: int, batch: int) -> list[Arrays]:
    """Networks that learnt their lessons as one stack, heads of one width."""
    base = module_of(bed, lessons[0].start).train()
    parameters, buffers = stack_module_state([module_of(bed, one.start).train() for one in lessons])
    parameters = {n: p.detach().requires_grad_() for n, p in parameters.items()}
    memory = {n: torch.zeros_like(p) for n, p in parameters.items()}
    rates = {n: _rates(lessons, n, p) for n, p in parameters.items()}
    orders = [np.random.default_rng([one.seed, 11]).integers(len(one.inputs), size=(steps, batch)) for one in lessons]
    update = _nesterov if bed == "garments" else _rmsprop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lessons[0].seed)
        for step in range(steps):
            rows = [o[step] for o in orders]
            x = torch.from_numpy(np.stack([one.inputs[r] for one, r in zip(lessons, rows, strict=True)]))
            y = torch.from_numpy(np.stack([one.targets[r] for one, r in zip(lessons, rows, strict=True)]))
            out = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(parameters, buffers, as_input(bed, x))
            loss = -(y * out.log_softmax(-1)).sum(-1).mean(1).sum()
            slopes = torch.autograd.grad(loss, list(parameters.values()))
            fall = 1.0 if step < 0.6 * steps else 0.3 if step < 0.85 * steps else 0.1
            with torch.no_grad():
                for (n, p), slope in zip(parameters.items(), slopes, strict=True):
                    update(p, slope, memory[n], fall * rates[n])
    state = {**{n: p.detach() for n, p in parameters.items()}, **buffers}
    return [{n: t[i].numpy().copy() for n, t in state.items()} for i in range(len(lessons))]


def _rates(lessons: Sequence[Lesson], name: str, stacked: torch.Tensor) -> torch.Tensor:
    each = [0.0 if name.startswith(one.frozen) and one.frozen else one.rate for one in lessons]
    return torch.tensor(each).view(-1, *[1] * (stacked.ndim - 1))


def _nesterov(p: torch.Tensor, slope: torch.Tensor, memory: torch.Tensor, rate: torch.Tensor) -> None:
    slope = slope + 5e-4 * p
    memory.mul_(0.9).add_(slope)
    p.sub_(rate * (slope + 0.9 * memory))


def _rmsprop(p: torch.Tensor, slope: torch.Tensor, memory: torch.Tensor, rate: torch.Tensor) -> None:
    memory.mul_(0.95).addcmul_(slope, slope, value=0.05)
    p.sub_(rate * slope / (memory.sqrt() + 1e-6))


def as_input(bed: str, x: torch.Tensor) -> torch.Tensor:
    """What the network sees while it learns: pictures in [0, 1]; spectra with some noise against learning by heart."""
    return x.float() / 255 if bed == "garments" else x + 0.3 * torch.randn_like(x)


def answers(bed: str, arrays: Arrays, inputs: np.ndarray) -> np.ndarray:
    """Logits of one network on raw inputs."""
    x = torch.from_numpy(inputs.astype(np.float32) / 255 if bed == "garments" else inputs)
    module = module_of(bed, arrays)
    with torch.no_grad():
        return torch.cat([module(part) for part in x.split(512)]).numpy()

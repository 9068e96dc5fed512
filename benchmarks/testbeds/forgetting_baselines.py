"""Other ways to make a network forget a class, and what tells whether it did."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from testbeds.edited_networks import Data, answers, augmented

Treatment = Callable[[nn.Module, Data, Data, int, str], nn.Module]


def tensors(data: Data, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)


def tuned(net: nn.Module, steps: int, rate: float, loss: Callable[[nn.Module, int], torch.Tensor]) -> nn.Module:
    """A copy after some steps of Adam, batch norm in evaluation mode."""
    out = copy.deepcopy(net).eval()
    optimizer = torch.optim.Adam(out.parameters(), rate)
    for step in range(steps):
        optimizer.zero_grad()
        loss(out, step).backward()
        nn.utils.clip_grad_norm_(out.parameters(), 1.0)
        optimizer.step()
    return out.eval()


def batches(data: Data, seed: int, device: str, size: int = 64) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    x, y = tensors(data, device)
    draw = np.random.default_rng(seed)

    def take() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(draw.integers(0, len(y), size)).to(device)
        return x[rows], y[rows]

    return take


def ascent(net: nn.Module, forget: Data, retain: Data, seed: int, device: str) -> nn.Module:
    """Gradient ascent on the class until half of chance is answered, at most 60 steps; needs its labels only."""
    take = batches(forget, seed, device)
    label = int(forget.labels[0])

    def loss(n: nn.Module, step: int) -> torch.Tensor:
        x, y = take()
        out = n(x)
        done = float((out.argmax(1) == label).float().mean()) <= 0.02
        return F.cross_entropy(out, y) * (0.0 if done else -1.0)

    return tuned(net, 60, 2e-5 if len(list(net.parameters())) > 40 else 1e-4, loss)


def random_labels(net: nn.Module, forget: Data, retain: Data, seed: int, device: str) -> nn.Module:
    """Fine-tuning on the class under other labels and on the rest; needs all labels."""
    lose, keep = batches(forget, seed, device), batches(retain, seed + 1, device)
    draw = torch.Generator(device=device).manual_seed(seed)

    def loss(n: nn.Module, step: int) -> torch.Tensor:
        x, y = lose()
        other = (y + torch.randint(1, 10, y.shape, generator=draw, device=device)) % 10
        a, b = keep()
        return F.cross_entropy(n(x), other) + F.cross_entropy(n(a), b)

    return tuned(net, 100, 3e-4, loss)


def dampened(net: nn.Module, forget: Data, retain: Data, seed: int, device: str, alpha: float = 8.0) -> nn.Module:
    """Selective synaptic dampening (Foster et al., AAAI 2024); needs labels and gradients.

    Weights whose Fisher information is large for the class and small for all are multiplied down.
    """

    def fisher(data: Data) -> list[torch.Tensor]:
        take = batches(data, seed, device, 32)
        total = [torch.zeros_like(p) for p in net.parameters()]
        for _ in range(16):
            x, y = take()
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for t, p in zip(total, net.parameters(), strict=True):
                t += p.grad.square() if p.grad is not None else 0
        net.zero_grad()
        return total

    everything = Data(np.concatenate([forget.images[:64], retain.images[:576]]),
                      np.concatenate([forget.labels[:64], retain.labels[:576]]))  # fmt: skip
    mine, whole = fisher(forget), fisher(everything)
    out = copy.deepcopy(net)
    with torch.no_grad():
        for p, f, g in zip(out.parameters(), mine, whole, strict=True):
            chosen = f > alpha * g
            p.mul_(torch.where(chosen, (g / f.clamp_min(1e-30)).clamp_max(1.0), torch.ones_like(p)))
    return out.eval()


class Masked(nn.Module):
    """The control: the network as it is, its score for the class never the highest."""

    def __init__(self, net: nn.Module, label: int) -> None:
        super().__init__()
        self.net, self.label = net, label

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.net(x)
        return torch.cat([out[:, : self.label], out.amin(1, keepdim=True) - 5, out[:, self.label + 1 :]], 1)


def masked(net: nn.Module, forget: Data, retain: Data, seed: int, device: str) -> nn.Module:
    return Masked(copy.deepcopy(net), int(forget.labels[0])).eval()


BASELINES: dict[str, Treatment] = {"masked logit": masked, "gradient ascent": ascent, "random labels": random_labels,
                                   "selective dampening": dampened}  # fmt: skip


def membership(net: Any, seen: Data, unseen: Data, device: str) -> float:
    """Area under the curve of telling trained images of the class from unseen ones by the loss: .5 is none."""
    losses = []
    for data in (seen, unseen):
        out = torch.from_numpy(answers(net, data, device))
        losses.append(F.cross_entropy(out, torch.from_numpy(data.labels), reduction="none").numpy())
    joined = np.concatenate(losses)
    ranks = joined.argsort().argsort()[len(losses[0]) :] + 1.0
    n, m = len(losses[1]), len(losses[0])
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def relearning(net: nn.Module, forget: Data, retain: Data, test: Data, device: str, most: int = 60) -> int:
    """Steps of fine-tuning on 20 images of the class and 180 others until half of its test images are right again."""
    few = Data(np.concatenate([forget.images[:20], retain.images[:180]]),
               np.concatenate([forget.labels[:20], retain.labels[:180]]))  # fmt: skip
    inner = copy.deepcopy(net.net if isinstance(net, Masked) else net).eval()
    x, y = tensors(few, device)
    target, label = tensors(test, device)
    draw = torch.Generator(device=device).manual_seed(3)
    optimizer = torch.optim.Adam(inner.parameters(), 2e-4)
    for step in range(most + 1):
        with torch.no_grad():
            if float((inner(target).argmax(1) == label).float().mean()) >= 0.5:
                return step
        rows = torch.randperm(len(y), generator=draw, device=device)[:64]
        optimizer.zero_grad()
        shown = augmented(x[rows], draw) if x.is_floating_point() else x[rows]
        F.cross_entropy(inner(shown), y[rows]).backward()
        optimizer.step()
    return most + 1


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean total variation between two networks' probabilities."""
    p, q = (torch.from_numpy(z).softmax(1) for z in (a, b))
    return float((p - q).abs().sum(1).mean() / 2)

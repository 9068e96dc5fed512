"""Other ways to make a network forget, each with the settings among which the best is chosen on another class."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from testbeds.edited_networks import Data
from testbeds.forgetting_baselines import batches, dampened, tuned

Forgetting = Callable[[nn.Module, Data, Data, int], nn.Module]


def ascent(rate: float, keep: float) -> Forgetting:
    """Gradient ascent on the class until 1 % is answered, with descent on the rest (NegGrad+) where `keep` is not 0."""

    def run(net: nn.Module, forget: Data, retain: Data, seed: int) -> nn.Module:
        lose, rest, label = batches(forget, seed, "cpu"), batches(retain, seed + 1, "cpu"), int(forget.labels[0])

        def loss(n: nn.Module, step: int) -> torch.Tensor:
            (x, y), (a, b) = lose(), rest()
            out = n(x)
            done = float((out.argmax(1) == label).float().mean()) <= 0.01
            found = F.cross_entropy(out, y) * (0.0 if done else -1.0)
            return found + keep * F.cross_entropy(n(a), b) if keep else found

        return tuned(net, 80, rate, loss)

    return run


def random_labels(rate: float, steps: int) -> Forgetting:
    """Training goes on with other labels for the class and the right ones for the rest."""

    def run(net: nn.Module, forget: Data, retain: Data, seed: int) -> nn.Module:
        lose, rest = batches(forget, seed, "cpu"), batches(retain, seed + 1, "cpu")
        draw = torch.Generator().manual_seed(seed)

        def loss(n: nn.Module, step: int) -> torch.Tensor:
            (x, y), (a, b) = lose(), rest()
            other = (y + torch.randint(1, 10, y.shape, generator=draw)) % 10
            return F.cross_entropy(n(x), other) + F.cross_entropy(n(a), b)

        return tuned(net, steps, rate, loss)

    return run


def on_the_rest(rate: float, steps: int, sparse: float = 0.0) -> Forgetting:
    """Fine-tuning on the rest, with a penalty on all weights where `sparse` is not 0 (Jia et al., NeurIPS 2023)."""

    def run(net: nn.Module, forget: Data, retain: Data, seed: int) -> nn.Module:
        rest = batches(retain, seed, "cpu")

        def loss(n: nn.Module, step: int) -> torch.Tensor:
            a, b = rest()
            found = F.cross_entropy(n(a), b)
            fade = sparse * (1 - step / steps)
            return found + fade * sum(p.abs().sum() for p in n.parameters()) if sparse else found

        return tuned(net, steps, rate, loss)

    return run


def scrub(rate: float, steps: int) -> Forgetting:
    """Away from the original on the class, towards it on the rest, in turn (Kurmanji et al., NeurIPS 2023)."""

    def run(net: nn.Module, forget: Data, retain: Data, seed: int) -> nn.Module:
        lose, rest = batches(forget, seed, "cpu"), batches(retain, seed + 1, "cpu")

        def loss(n: nn.Module, step: int) -> torch.Tensor:
            away = step < steps // 2 and step % 2 == 0
            x, y = lose() if away else rest()
            with torch.no_grad():
                wanted = net(x).log_softmax(1)
            found = n(x).log_softmax(1)
            apart = F.kl_div(found, wanted, log_target=True, reduction="batchmean")
            return -apart if away else apart + F.cross_entropy(found, y)

        return tuned(net, steps, rate, loss)

    return run


def dampening(alpha: float) -> Forgetting:
    """Selective synaptic dampening (Foster et al., AAAI 2024)."""
    return lambda net, forget, retain, seed: dampened(net, forget, retain, seed, "cpu", alpha)


GRIDS: Mapping[str, Mapping[str, Any]] = {
    "gradient ascent": {f"rate {r:g}": ascent(r, 0.0) for r in (2e-5, 1e-4, 5e-4)},
    "NegGrad+": {f"rate {r:g}": ascent(r, 4.0) for r in (1e-4, 5e-4, 1e-3)},
    "random labels": {f"rate {r:g}": random_labels(r, 120) for r in (1e-4, 3e-4, 1e-3)},
    "fine-tuning on the rest": {f"rate {r:g}": on_the_rest(r, 150) for r in (3e-4, 1e-3, 3e-3)},
    "l1-sparse": {f"penalty {s:g}": on_the_rest(1e-3, 150, s) for s in (1e-5, 1e-4)},
    "SCRUB": {f"rate {r:g}": scrub(r, 120) for r in (1e-4, 3e-4, 1e-3)},
    "selective dampening": {f"alpha {a:g}": dampening(a) for a in (4, 10, 30, 100)},
}
"""By name: settings, each with what it does to a network."""

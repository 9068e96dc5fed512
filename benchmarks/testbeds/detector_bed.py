"""A bed of networks that the detector's curriculum does not hold, and the questions that users ask about them.

The networks are plain torch modules on scikit-learn's digits and on drawn tables: a CNN with batch norm and running
statistics, a tanh perceptron, and a transformer encoder with GELU on rows of the digits. Every source has children of
all kinds; a grandchild comes from the first one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.datasets import load_digits, make_classification
from torch import Tensor, nn

from stemma.checkpoints.model import Model
from stemma.kinship.learned.detector import Descent
from stemma.networks.load import from_arrays

KINDS = ("fine-tuned", "long", "fresh head", "fresh head, long", "head of another width", "half frozen", "SGD")
CLASSES = 10


class Network(nn.Module):
    """A body and a head."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) * 0.1)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x.view(-1, 8, 8)) + self.position).mean(1)


def _cnn() -> Network:
    def unit(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    body = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *unit(1, 16, 1), *unit(16, 24, 2), *unit(24, 32, 2), *pooled)
    return Network(body, nn.Linear(32, CLASSES))


def _perceptron() -> Network:
    body = nn.Sequential(nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 56), nn.Tanh(), nn.Linear(56, 40), nn.Tanh())
    return Network(body, nn.Linear(40, CLASSES))


def _transformer() -> Network:
    return Network(_Encoder(), nn.Linear(32, CLASSES))


NETWORKS: dict[str, Callable[[], Network]] = {"CNN": _cnn, "perceptron": _perceptron, "transformer": _transformer}


def _examples(network: str, task: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([task, 5])
    if network == "perceptron":
        x, y = make_classification(1200, 40, n_informative=20, n_classes=CLASSES, random_state=task)
    else:
        x, y = load_digits(return_X_y=True)
        x = x / 8 - 1
        x, y = (x, rng.permutation(CLASSES)[y]) if task % 2 else (-x, (y + task) % CLASSES)
    rows = rng.permutation(len(x))[:800]
    return torch.tensor(x[rows], dtype=torch.float32), torch.tensor(y[rows])


def _learn(module: Network, network: str, task: int, steps: int, optimizer: str = "adam", rate: float = 1.0) -> None:
    x, y = _examples(network, task)
    free = [p for p in module.parameters() if p.requires_grad]
    rule = (
        torch.optim.SGD(free, 0.05 * rate, 0.9)
        if optimizer == "sgd"
        else torch.optim.AdamW(free, 2e-3 * rate, weight_decay=0.01)
    )
    classes = module.head.out_features
    for _ in range(steps):
        part = torch.randint(len(x), (64,))
        rule.zero_grad()
        nn.functional.cross_entropy(module(x[part]), y[part] % classes).backward()
        rule.step()


@dataclass(frozen=True, eq=False)
class Source:
    """A root, its children by kind, and a grandchild made from the fine-tuned one."""

    root: Model
    children: dict[str, Model]
    grandchild: Model


def _model(module: nn.Module, name: str) -> Model:
    return from_arrays({n: t.detach().numpy().copy() for n, t in module.state_dict().items()}, name, None)


def source(network: str, seed: int) -> Source:
    """One source with all its children; some seconds."""
    torch.manual_seed(1000 + seed)
    make = NETWORKS[network]
    root = make()
    _learn(root, network, 100 * seed, 300)

    def child(kind: str, above: Network, task: int) -> Network:
        made = make()
        made.load_state_dict(above.state_dict())
        if "head" in kind:
            made.head = nn.Linear(made.head.in_features, 7 if "width" in kind else CLASSES)
        if "frozen" in kind:
            named = [p for n, p in made.named_parameters() if "head" not in n]
            for p in named[: len(named) // 2]:
                p.requires_grad_(False)
        long, sgd = "long" in kind, "sgd" if kind == "SGD" else "adam"
        _learn(made, network, task, 400 if long else 100, sgd, 1.0 if long else 0.5)
        return made

    made = {k: child(k, root, 100 * seed + 1 + i) for i, k in enumerate(KINDS)}
    below = child("fine-tuned", made["fine-tuned"], 100 * seed + 50)
    name = f"{network}-{seed}"
    return Source(
        _model(root, f"{name}/root"),
        {k: _model(m, f"{name}/{k}") for k, m in made.items()},
        _model(below, f"{name}/grandchild"),
    )


@dataclass(frozen=True, eq=False)
class Asked:
    """One question; `truth` is the nearest ancestor among the candidates, None where there is none."""

    group: str
    child: Model
    candidates: tuple[Model, ...]
    truth: Model | None


def questions(sources: Sequence[Source]) -> Iterator[Asked]:
    """All questions about some sources of one network, with the other roots as strangers."""
    for i, own in enumerate(sources):
        strangers = tuple(s.root for j, s in enumerate(sources) if j != i)
        kinds = list(own.children)
        ask = partial(_with, strangers)
        for k, child in own.children.items():
            yield ask(f"parent: {k}", child, (own.root,), own.root)
            yield ask(f"root asked with a child: {k}", own.root, (child,), None)
            others = [own.children[o] for o in kinds if o != k]
            turned = others[i % len(others) :] + others[: i % len(others)]
            for n in (1, 2, 5):
                yield ask(f"orphan with {n} siblings", child, tuple(turned[:n]), None)
                yield ask(f"parent and {n} siblings", child, (own.root, *turned[:n]), own.root)
            yield ask("unrelated orphan", child, (), None)
        yield ask("root asked with all children", own.root, tuple(own.children.values()), None)
        first = own.children["fine-tuned"]
        yield ask("grandchild with the line", own.grandchild, (own.root, first), first)
        yield ask("parent with its own child", first, (own.root, own.grandchild), own.root)


def _with(
    strangers: tuple[Model, ...], group: str, child: Model, related: tuple[Model, ...], truth: Model | None
) -> Asked:
    return Asked(group, child, (*related, *strangers), truth)


def judged(network: str, asked: Asked, found: Descent) -> dict[str, Any]:
    """One answer beside the truth."""
    wrong = [
        p
        for p, c in zip(found.probabilities, asked.candidates, strict=True)
        if asked.truth is None or c is not asked.truth
    ]
    named = found.parent is not None
    right = named == (asked.truth is not None) and (asked.truth is None or found.parent == asked.truth.ref)
    return {
        "network": network, "group": asked.group, "source": asked.child.name.split("/")[0], "right": right,
        "wrong": named and not (asked.truth is not None and found.parent == asked.truth.ref),
        "wrong at .9": max(wrong, default=0) >= 0.9, "wrong at .95": max(wrong, default=0) >= 0.95,
        "related": found.answer == "related", "none": found.answer == "none",
    }  # fmt: skip


SHARES = ("right", "wrong", "wrong at .9", "wrong at .95", "related", "none")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares per group of questions, with exact intervals over sources (a source counts once, for its worst answer)."""
    out: dict[str, Any] = {}
    for group in ("all", *dict.fromkeys(r["group"] for r in rows)):
        own = [r for r in rows if group in ("all", r["group"])]
        sources = sorted({r["source"] for r in own})
        out[group] = {"questions": len(own), "sources": len(sources)}
        out[group] |= {s: round(float(np.mean([r[s] for r in own])), 4) for s in SHARES}
        bad = sum(any(r["wrong at .95"] for r in own if r["source"] == s) for s in sources)
        out[group]["sources wrong at .95"] = bad
        out[group]["at most"] = round(float(binomtest(bad, len(sources)).proportion_ci(method="wilson").high), 4)
    return out

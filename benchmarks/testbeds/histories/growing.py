"""Histories of training: a root with checkpoints, children by every usual way of fine-tuning, grandchildren.

Plain torch and transformers; nothing of Stemma takes part, and nothing of Stemma's own zoo. A history follows from its
kind, its number and one seed, and is kept outside the repository by the digest of its recipe.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from testbeds.histories.lessons import Task, TrainingJob, tasks
from testbeds.histories.networks import TEXTS, built, drawn, head

VERSION = 1
"""Raised whenever a recipe would make other weights than before."""

RULES = ("sgd", "momentum", "adam", "adamw", "adamw", "adamw")
RATES = {"sgd": (0.05, 0.2), "momentum": (0.01, 0.06), "adam": (7e-4, 3e-3), "adamw": (7e-4, 3e-3)}
DECAYS = {"sgd": (0.0, 5e-4), "momentum": (0.0, 5e-4, 5e-3), "adam": (0.0, 1e-4), "adamw": (0.0, 0.01, 0.1)}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """One training.

    Attributes:
        name: Of the model that it makes.
        parent: What it starts from; empty for a random start.
        how: `root`, `full`, `head`, `fresh-head`, `lora`, `light`, `long` or `checkpoint`.
        task: What it learns.
        rule: Rule of optimisation.
        rate: Learning rate.
        decay: Weight decay.
        steps: Updates.
        falling: Whether the rate falls like a cosine.
        order: Seed of the order of examples.
    """

    name: str
    parent: str
    how: str
    task: Task
    rule: str
    rate: float
    decay: float
    steps: int
    falling: bool
    order: int


@dataclass(frozen=True)
class History:
    """Models and how each was made.

    Attributes:
        kind: Of network.
        number: Of the history.
        steps: By name of the model; checkpoints stand under the run that passed them.
        arrays: Tensors by name of the model.
    """

    kind: str
    number: int
    steps: dict[str, Step]
    arrays: dict[str, Arrays]

    def ancestors(self, name: str) -> list[str]:
        """Parent, grandparent, and so on."""
        out = []
        while parent := self.steps[name].parent:
            out.append(parent)
            name = parent
        return out


def plan(kind: str, number: int, seed: int) -> tuple[dict, list[Step]]:
    """The sizes and trainings of one history."""
    rng = np.random.default_rng([seed, number, *kind.encode()])
    shape, learnt = drawn(kind, rng), tasks(kind, rng)
    modern = kind in (*TEXTS, "vit", "unet")
    length = {"mlp": 700, "lstm": 500}.get(kind, 450 if modern else 350)

    def one(name: str, parent: str, how: str, task: Task, share: float, gentle: float) -> Step:
        rule = str(rng.choice(RULES[2:] if modern else RULES))
        rate = float(np.exp(rng.uniform(*np.log(RATES[rule])))) * gentle * (0.5 if modern and kind != "unet" else 1)
        decay = float(rng.choice(DECAYS[rule]))
        steps = int(length * share * rng.uniform(0.7, 1.4))
        return Step(
            name, parent, how, task, rule, rate, decay, steps, bool(rng.random() < 0.6), int(rng.integers(2**31))
        )

    weakest, strongest = (0.1, 0.8) if number % 8 < 4 else (0.01, 0.3)

    def gentle() -> float:
        return float(np.exp(rng.uniform(np.log(weakest), np.log(strongest))))

    a, b, c, d = learnt[1], *(learnt[int(i)] for i in rng.choice([2, 3, 4, 5], 3, replace=False))
    out = [
        one("root", "", "root", learnt[0], 1.0, 1.0),
        one("on", "root", "full", a, 0.35, gentle()), one("first", "root", "full", b, 0.35, gentle()),
        one("second", "root", "full", c, 0.35, gentle()), one("alike", "root", "full", b, 0.35, gentle()),
        one("light", "root", "light", c, 0.12, 0.1), one("long", "root", "long", d, 1.0, 0.7),
        one("adapter", "root", "lora", d, 0.35, 1.0),
        one("first-on", "first", "full", d, 0.3, gentle()), one("second-on", "second", "full", a, 0.3, gentle()),
        one("first-back", "first", "full", learnt[0], 0.3, gentle()),
    ]  # fmt: skip
    if head(kind):
        out += [one("fresh", "root", "fresh-head", d, 0.4, gentle()), one("probe", "root", "head", c, 0.2, 1.0)]
    return shape, out


def history(kind: str, number: int, seed: int, folder: Path, cache: Path) -> History:
    """Train one history, or take it from the cache; about a minute on one core."""
    shape, steps = plan(kind, number, seed)
    known = json.dumps([VERSION, kind, number, seed, shape, [asdict(s) for s in steps]], sort_keys=True)
    path = cache / f"history-{hashlib.sha256(known.encode()).hexdigest()[:32]}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = _grown(kind, shape, steps, folder)
        part = path.with_suffix(".part.npz")
        np.savez(part, **{f"{m}|{n}": x for m, arrays in made.items() for n, x in arrays.items()})
        part.replace(path)
    arrays: dict[str, Arrays] = {}
    with np.load(path) as stored:
        for key in stored.files:
            model, name = key.split("|", 1)
            arrays.setdefault(model, {})[name] = stored[key]
    by_name = {s.name: s for s in steps}
    root = by_name["root"]
    passed = [m for m in arrays if "@" in m]
    before = ["", *passed]
    chain = {m: replace(root, name=m, parent=p, how="checkpoint") for m, p in zip(passed, before, strict=False)}
    by_name["root"] = replace(root, parent=before[-1])
    return History(kind, number, chain | by_name, arrays)


def _grown(kind: str, shape: dict, steps: list[Step], folder: Path) -> dict[str, Arrays]:
    out: dict[str, Arrays] = {}
    for step in steps:
        torch.manual_seed(step.order)
        net = built(kind, shape)
        if step.parent:
            kept = {n: torch.from_numpy(x.copy()) for n, x in out[step.parent].items()}
            if step.how in ("fresh-head", "head"):
                kept = {n: x for n, x in kept.items() if not n.startswith(head(kind))}
            net.load_state_dict(kept, strict=False)
        for share, arrays in _trained(net, kind, step, folder):
            out[step.name if share == 1 else f"{step.name}@{share}"] = arrays
    return out


def _trained(net: nn.Module, kind: str, step: Step, folder: Path) -> Iterator[tuple[float, Arrays]]:
    """Train in place; the state at checkpoints, by the share of the steps, and at the end."""
    adapter = _Adapter(net, step.order) if step.how == "lora" else None
    leaves = adapter.leaves if adapter else [
        p for n, p in net.named_parameters() if step.how != "head" or n.startswith(head(kind))
    ]  # fmt: skip
    learner = _learner(step, leaves)
    job = TrainingJob(kind, step.task, step.order, folder, 16 if kind in TEXTS else 32)
    net.train(step.how != "head")
    stops = {round(step.steps * s): s for s in (0.3, 0.5, 0.75)} if step.how == "root" else {}
    for at in range(step.steps):
        if step.falling:
            learner.param_groups[0]["lr"] = step.rate * (0.5 + 0.5 * float(np.cos(np.pi * at / step.steps)))
        learner.zero_grad()
        with adapter or nullcontext():
            job.loss(net).backward()
        nn.utils.clip_grad_norm_(leaves, 2.0)
        learner.step()
        if at + 1 in stops:
            yield stops[at + 1], _state(net)
    if adapter:
        adapter.merge()
    yield 1, _state(net)


def _learner(step: Step, leaves: list) -> torch.optim.Optimizer:
    if step.rule in ("sgd", "momentum"):
        return torch.optim.SGD(leaves, step.rate, 0.9 if step.rule == "momentum" else 0.0, weight_decay=step.decay)
    make = torch.optim.Adam if step.rule == "adam" else torch.optim.AdamW
    return make(leaves, step.rate, weight_decay=step.decay)


def _state(net: nn.Module) -> Arrays:
    tied = set()
    out = {}
    for n, x in net.state_dict().items():
        if x.data_ptr() not in tied or x.dim() < 2:
            out[n] = x.detach().numpy().copy()
        tied.add(x.data_ptr())
    return out


class _Adapter:
    """A product of two thin matrices added to every matrix with more than sixteen rows and columns."""

    def __init__(self, net: nn.Module, seed: int, rank: int = 4) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.parts = []
        for p in net.parameters():
            p.requires_grad_(False)
            rows, columns = p.shape[0], p[0].numel() if p.dim() > 1 else 0
            if p.dim() > 1 and min(rows, columns) > 16:
                up = torch.zeros(rows, rank, requires_grad=True)
                down = (torch.randn(rank, columns, generator=rng) / columns**0.5).requires_grad_()
                self.parts.append((p, up, down))
        self.leaves = [x for _, up, down in self.parts for x in (up, down)]
        self.start = [p.detach().clone() for p, _, _ in self.parts]

    def __enter__(self) -> None:
        for (p, up, down), w in zip(self.parts, self.start, strict=True):
            p.data = w + (up @ down).detach().view_as(w)
            p.requires_grad_(True)
            p.grad = None

    def __exit__(self, *_: object) -> None:
        for p, up, down in self.parts:
            g = p.grad.reshape(len(p), -1)
            up.grad, down.grad = g @ down.detach().T, up.detach().T @ g
            p.requires_grad_(False)

    def merge(self) -> None:
        for (p, up, down), w in zip(self.parts, self.start, strict=True):
            p.data = w + (up @ down).detach().view_as(w)

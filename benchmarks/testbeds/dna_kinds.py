"""Sources and children of many input kinds and architectures, trained many at a time, for choices about Model DNA.

Nothing here is shared with `stemma.zoo`: pictures, tables, sounds and tokens, perceptrons of two activations, residual
networks with batch norm, plain and one-dimensional convolutions, and attention. Every group holds sources that differ
in the seed alone, and children of each of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stemma.fingerprints.canonical_outputs import log_probabilities
from stemma.probes import Probes
from stemma.probes.augmentation import perturb
from stemma.types import Spec
from stemma.zoo import batched
from stemma.zoo.batched import Stack, linear
from stemma.zoo.cache import recall

PROBE_COUNT = 384
TARGET_CLASSES = 6
DRAWS = 3
"""Draws of the perturbations that are kept, as a DNA makes them."""

Data = tuple[np.ndarray, np.ndarray]
Way = tuple[str, str, int, bool]

WAYS: tuple[Way, ...] = (
    ("new head", "b", 150, True), ("new head, long", "b", 900, True), ("new head, few", "few", 100, True),
    ("same head, other labels", "labels", 200, False), ("distilled", "distil", 450, False),
)  # fmt: skip
"""Name, what is learned, for how many updates, and whether the head is new."""


@dataclass(frozen=True)
class Kind:
    """A group: its data (of the source's and of the children's task) and network."""

    name: str
    data: Callable[[int], tuple[Data, Data]]
    config: Mapping[str, Any]
    seed: int
    sources: int = 22
    steps: int = 350
    rate: float = 3e-3
    tokens: bool = False


# Data


def _digits(seed: int) -> tuple[Data, Data]:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (found.images / 16).astype(np.float32)[:, None]
    other = np.rot90(x, 1, (2, 3))[:, :, ::-1].copy()
    kept = found.target >= 10 - TARGET_CLASSES
    order = np.random.default_rng(seed).permutation(len(x))
    return (x[order], found.target[order]), (other[kept], found.target[kept] - (10 - TARGET_CLASSES))


def _table(seed: int) -> tuple[Data, Data]:
    from sklearn.datasets import make_classification

    def one(state: int, classes: int) -> Data:
        x, y = make_classification(
            3000, 24, n_informative=12, n_redundant=6, n_classes=classes, n_clusters_per_class=2, class_sep=1.3,
            random_state=state,
        )  # fmt: skip
        return (x / x.std(0)).astype(np.float32), y

    return one(seed, 10), one(seed + 1, TARGET_CLASSES)


def _sounds(seed: int) -> tuple[Data, Data]:
    """Log spectra of chords: a class is a set of tones with its own envelope; pitch, noise and onset vary."""
    rng = np.random.default_rng(seed)

    def one(classes: int) -> Data:
        tones = rng.uniform(2, 13, (classes, 3))
        decay = rng.uniform(0.5, 4, (classes, 3))
        y = rng.integers(classes, size=3000)
        t, f = np.arange(12)[None, :, None], np.arange(16)[None, None]
        onset = rng.uniform(0, 4, (len(y), 1, 1))
        x = np.zeros((len(y), 12, 16))
        for k in range(3):
            pitch = (tones[y, k] * rng.normal(1, 0.06, len(y)))[:, None, None]
            loud = np.exp(-np.maximum(t - onset, 0) / decay[y, k][:, None, None]) * (t >= onset)
            x += rng.uniform(0.3, 1.5, (len(y), 1, 1)) * loud * np.exp(-((f - pitch) ** 2))
        x = np.log(x + 0.05 * rng.exponential(1, x.shape))
        return ((x - x.mean()) / x.std()).astype(np.float32)[:, None], y

    return one(10), one(TARGET_CLASSES)


def _chains(seed: int) -> tuple[Data, Data]:
    """Token sequences: a class is a Markov chain over 32 tokens, near a common one."""
    rng = np.random.default_rng(seed)

    def one(classes: int, length: int = 20) -> Data:
        common = rng.dirichlet(np.full(32, 0.15), 32)
        tables = 0.55 * common + 0.45 * rng.dirichlet(np.full(32, 0.15), (classes, 32))
        y = rng.integers(classes, size=3000)
        x = np.zeros((len(y), length), np.int64)
        x[:, 0] = rng.integers(32, size=len(y))
        for t in range(1, length):
            steps = tables[y, x[:, t - 1]].cumsum(1)
            x[:, t] = np.minimum((steps < rng.random((len(y), 1))).sum(1), 31)
        return x, y

    return one(10), one(TARGET_CLASSES)


def _folder(name: str, side: int) -> Callable[[int], tuple[Data, Data]]:
    """Pictures of a data set in the data folder, made smaller: ten classes, and six of them turned over."""

    def read(seed: int) -> tuple[Data, Data]:
        from stemma.zoo import datasets

        found = np.load(datasets.folder() / f"{name}_train.npz")
        order = np.random.default_rng(seed).permutation(len(found["labels"]))[:6000]
        x, y = found["images"][order].astype(np.float32) / 255, found["labels"][order].astype(np.int64)
        edge = (x.shape[1] // side) * side
        x = x[:, :edge, :edge].reshape(len(x), side, edge // side, side, edge // side).mean((2, 4))[:, None]
        kept = y[3000:] >= 10 - TARGET_CLASSES
        turned = 1 - x[3000:][kept][:, :, ::-1].copy()
        return (x[:3000], y[:3000]), (turned, y[3000:][kept] - (10 - TARGET_CLASSES))

    return read


def _cnn(channels: int, classes: int, widths: Sequence[int]) -> dict[str, Any]:
    return {"model_type": "stemma-cnn", "input_shape": [channels, 8, 8], "stem": widths[0], "widths": list(widths),
            "strides": [1, *[2] * (len(widths) - 1)], "classes": classes}  # fmt: skip


KINDS = (
    Kind("table-relu", _table, {"model_type": "perceptron", "hidden": (96, 96), "act": "relu", "inputs": 24}, 11),
    Kind("table-tanh", _table, {"model_type": "perceptron", "hidden": (64, 64, 64), "act": "tanh", "inputs": 24}, 21),
    Kind("sound-gelu", _sounds, {"model_type": "perceptron", "hidden": (128, 96), "act": "gelu", "inputs": 192}, 31),
    Kind("sound-tanh", _sounds, {"model_type": "perceptron", "hidden": (96, 96), "act": "tanh", "inputs": 192}, 41),
    Kind("digits-batchnorm", _digits, _cnn(1, 10, (8, 12)), 51),
    Kind("mnist-conv", _folder("mnist", 14), {"model_type": "conv", "widths": (8, 16), "flat": 144}, 61),
    Kind("sound-batchnorm", _sounds, _cnn(1, 10, (8, 12)), 71),
    Kind("tokens-conv", _chains, {"model_type": "text-conv", "width": 24, "vocabulary": 32}, 81, tokens=True),
    Kind("tokens-attention", _chains, {"model_type": "text-attention", "width": 24, "vocabulary": 32, "length": 20},
         91, tokens=True),
)  # fmt: skip


# Networks


def shapes(config: Mapping[str, Any], classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of one network."""
    kind = config["model_type"]
    if kind == "perceptron":
        sizes = [config["inputs"], *config["hidden"]]
        out = {}
        for i in range(len(sizes) - 1):
            out |= {f"layers.{i}.weight": (sizes[i + 1], sizes[i]), f"layers.{i}.bias": (sizes[i + 1],)}
        return out | {"head.weight": (classes, sizes[-1]), "head.bias": (classes,)}
    if kind == "stemma-cnn":
        from stemma.networks.cnn import Cnn

        return {n: tuple(t.shape) for n, t in Cnn({**config, "classes": classes}).state_dict().items() if t.ndim}
    if kind == "conv":
        a, b = config["widths"]
        return {"c0.weight": (a, 1, 3, 3), "c0.bias": (a,), "c1.weight": (b, a, 3, 3), "c1.bias": (b,),
                "fc.weight": (48, config["flat"]), "fc.bias": (48,),
                "head.weight": (classes, 48), "head.bias": (classes,)}  # fmt: skip
    w = config["width"]
    out = {"embed": (config["vocabulary"], w)}
    if kind == "text-conv":
        out |= {"c0.weight": (2 * w, w, 3), "c0.bias": (2 * w,)}
    else:
        out |= {"place": (config["length"], w), "c0.weight": (2 * w, w), "c0.bias": (2 * w,)}
        out |= {f"{s}.{part}": (w, w)[: 2 if part == "weight" else 1] for s in "qkvo" for part in ("weight", "bias")}
    return out | {"fc.weight": (w, 2 * w), "fc.bias": (w,), "head.weight": (classes, w), "head.bias": (classes,)}


def start(config: Mapping[str, Any], classes: int, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random starts of several networks."""
    out = {}
    for name, shape in shapes(config, classes).items():
        if name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            out[name] = torch.ones(count, *shape)
        elif len(shape) == 1:
            out[name] = torch.zeros(count, *shape)
        else:
            scale = 0.5 if name in ("embed", "place") else (1.6 / np.prod(shape[1:])) ** 0.5
            out[name] = torch.randn(count, *shape, generator=generator) * scale
    return out


def forward(config: Mapping[str, Any], p: Stack, x: torch.Tensor, training: bool = False) -> torch.Tensor:
    """Logits `[m, n, classes]` of m networks for inputs `[m, n, ...]`."""
    kind = config["model_type"]
    if kind == "stemma-cnn":
        return batched.forward(config, p, x, training=training)
    if kind == "perceptron":
        act = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu}[config["act"]]
        x = x.flatten(2)
        for i in range(len(config["hidden"])):
            x = act(linear(p, f"layers.{i}", x))
        return linear(p, "head", x)
    m, n = x.shape[:2]
    if kind == "conv":
        y = x.transpose(0, 1).flatten(1, 2)
        for i in range(2):
            y = F.conv2d(y, p[f"c{i}.weight"].flatten(0, 1), p[f"c{i}.bias"].flatten(), padding=1, groups=m)
            y = F.max_pool2d(y.relu(), 2)
        y = y.view(n, m, -1).transpose(0, 1)
        return linear(p, "head", F.leaky_relu(linear(p, "fc", y), 0.1))
    offset = torch.arange(m)[:, None, None] * config["vocabulary"]
    y = F.embedding(x + offset, p["embed"].flatten(0, 1))
    if kind == "text-conv":
        flat = y.permute(1, 0, 3, 2).flatten(1, 2)
        flat = F.conv1d(flat, p["c0.weight"].flatten(0, 1), p["c0.bias"].flatten(), padding=1, groups=m).relu()
        y = flat.view(n, m, -1, flat.shape[-1]).amax(-1).transpose(0, 1)
    else:
        y = y + p["place"][:, None]
        q, k, v = (linear(p, s, y) for s in "qkv")
        y = y + linear(p, "o", F.scaled_dot_product_attention(q, k, v))
        y = F.gelu(linear(p, "c0", y)).mean(2)
    return linear(p, "head", F.gelu(linear(p, "fc", y)))


def fit(
    kind: Kind, p: Mapping[str, torch.Tensor], data: Data, steps: int, seed: int,
    targets: torch.Tensor | None = None, batch: int = 48,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Train networks on the same data, each in its own order; `targets` are soft answers `[m, n, classes]`."""
    buffers = {n: t.clone() for n, t in p.items() if "running" in n}
    learned = {n: t.clone().requires_grad_() for n, t in p.items() if n not in buffers}
    optimizer = torch.optim.AdamW(learned.values(), lr=kind.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.rate, total_steps=steps, pct_start=0.15)
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    m, generator = len(next(iter(p.values()))), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (m, batch), generator=generator)
        out = forward(kind.config, learned | buffers, x[rows], training=True)
        if targets is None:
            loss = F.cross_entropy(out.flatten(0, 1), y[rows].flatten()) * m
        else:
            wanted = targets[torch.arange(m)[:, None], rows]
            loss = -(wanted.softmax(-1) * out.log_softmax(-1)).sum(-1).mean() * m
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {n: t.detach() for n, t in (learned | buffers).items()}


@torch.no_grad()
def answers(kind: Kind, p: Stack, x: np.ndarray) -> torch.Tensor:
    """Logits `[m, n, classes]` for the same inputs."""
    m, t = len(next(iter(p.values()))), torch.from_numpy(x)
    return torch.cat([forward(kind.config, p, t[i : i + 128].expand(m, *t[i : i + 128].shape))
                      for i in range(0, len(t), 128)], 1)  # fmt: skip


def _new_head(p: Stack, config: Mapping[str, Any], classes: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    fresh = start(config, classes, len(p["head.weight"]), generator)
    return {**p, "head.weight": fresh["head.weight"], "head.bias": fresh["head.bias"]}


def _rounded(p: Stack, bits: int) -> dict[str, torch.Tensor]:
    out = {}
    for n, t in p.items():
        step = t.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
        step = step.view(-1, *[1] * (t.ndim - 1)).clamp_min(1e-9)
        out[n] = t if "running" in n or n.startswith("head") else (t / step).round() * step
    return out


def members(kind: Kind) -> dict[str, dict[str, torch.Tensor]]:
    """Stacks of networks by way; `source` and `control` (further sources of the same data) are the first."""
    (xa, ya), (xb, yb) = kind.data(kind.seed)
    held = len(xa) * 4 // 5
    a, b = (xa[:held], ya[:held].astype(np.int64)), (xb[: len(xb) * 4 // 5], yb[: len(xb) * 4 // 5].astype(np.int64))
    g = torch.Generator().manual_seed(kind.seed)
    config = kind.config
    out = {"source": fit(kind, start(config, 10, kind.sources, g), a, kind.steps, kind.seed)}
    half = {n: t[: kind.sources // 2] for n, t in out["source"].items()}
    for place, (name, what, steps, fresh) in enumerate(WAYS):
        seed = kind.seed + 1000 * (place + 1)
        first = _new_head(half, config, TARGET_CLASSES, g) if fresh else half
        if what == "distil":
            soft = answers(kind, half, a[0])
            out[name] = fit(kind, start(config, 10, len(soft), g), a, steps, seed, targets=soft)
        elif what == "labels":
            shuffled = np.random.default_rng(kind.seed).permutation(10)
            out[name] = fit(kind, half, (a[0], shuffled[a[1]]), steps, seed)
        else:
            few = np.concatenate([np.flatnonzero(b[1] == c)[:10] for c in range(TARGET_CLASSES)])
            out[name] = fit(kind, first, (b[0][few], b[1][few]) if what == "few" else b, steps, seed)
    out["4-bit"] = _rounded(half, 4)
    return out


def probes(kind: Kind) -> Probes:
    """Inputs held out from all training, two thirds of the source's task and a third of the children's."""
    (xa, _), (xb, _) = kind.data(kind.seed)
    one, two = xa[len(xa) * 4 // 5 :], xb[len(xb) * 4 // 5 :]
    rng = np.random.default_rng([kind.seed, 5])
    count = min(PROBE_COUNT, len(one) * 3 // 2)
    first, second = min(len(one), count * 2 // 3), min(len(two), count // 3)
    x = np.concatenate([one[rng.permutation(len(one))[:first]], two[rng.permutation(len(two))[:second]]])
    return Probes.of(x[rng.permutation(len(x))], kind="tokens" if kind.tokens else None)


def measured(kind: Kind) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Log-probabilities by way, `float32 [models, 1 + 3 * DRAWS, probes, classes]`, and accuracies; cached."""
    config = {**kind.config, "name": kind.name, "seed": kind.seed, "sources": kind.sources, "steps": kind.steps,
              "rate": kind.rate, "ways": WAYS, "probes": PROBE_COUNT, "version": 1}  # fmt: skip

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        stacks, asked = members(kind), probes(kind)
        inputs = [asked.inputs, *(x for seed in range(DRAWS) for x in perturb(asked, seed))]
        found, about = {}, {}
        (xa, ya), (xb, yb) = kind.data(kind.seed)
        for way, p in stacks.items():
            asked_of = [answers(kind, p, x).numpy() for x in inputs]
            found[way] = np.stack(
                [np.stack([log_probabilities(x[i]) for x in asked_of]) for i in range(len(asked_of[0]))]
            ).astype(np.float32)
            x, y = (xb, yb) if found[way].shape[-1] == TARGET_CLASSES else (xa, ya)
            test = len(x) * 4 // 5
            hits = answers(kind, p, x[test:]).argmax(-1).numpy() == y[test:]
            about[way] = round(float(hits.mean()), 3)
        return found, about

    return recall(Spec("dna-kinds", 1, config).digest, make, keep=True)

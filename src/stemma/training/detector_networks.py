"""Small networks of many make for the detector's curriculum, many of one make evaluated and trained at once.

Every parameter carries a first axis, one entry per network. A make is a kind of input, a body (perceptron, convolution,
attention), an activation, a normalisation, a width and a depth, drawn by a seed. Nothing is downloaded: the inputs are
drawn too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stemma.errors import MisuseError

INPUTS = ("table", "image", "sound", "tokens")
BODIES = {
    "table": ("perceptron",),
    "image": ("convolution", "perceptron", "attention"),
    "sound": ("perceptron", "convolution", "attention"),
    "tokens": ("attention", "perceptron"),
}
ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "leaky": F.leaky_relu}
NORMS = ("none", "layer", "batch")
STARTS = ("torch", "xavier", "normal", "orthogonal")
MOST_CLASSES = 12
"""Rows of every head while it trains; a network keeps those of its own classes."""

SIDE, LENGTH, VOCABULARY, COLUMNS = 10, 10, 48, 20
"""Side of an image and of a spectrogram, tokens of a text, words, columns of a table."""


@dataclass(frozen=True)
class Make:
    """What networks of one make have in common."""

    inputs: str
    body: str
    activation: str
    norm: str
    width: int
    depth: int
    start: str
    seed: int

    @property
    def name(self) -> str:
        """Short name for reports."""
        return f"{self.inputs}-{self.body}-{self.activation}-{self.norm}-{self.width}x{self.depth}-{self.seed}"


def draw_make(inputs: str, seed: int) -> Make:
    """A make for one kind of input."""
    if inputs not in INPUTS:
        raise MisuseError(f"no kind of input is called '{inputs}'. There are: {', '.join(INPUTS)}")
    rng = np.random.default_rng([seed, INPUTS.index(inputs), 61])

    def pick(of: Sequence[Any]) -> Any:
        return of[int(rng.integers(len(of)))]

    body = pick(BODIES[inputs])
    width = pick((16, 24, 32)) if body != "perceptron" else pick((24, 32, 48, 64))
    depth = pick((1, 2)) if body == "attention" else pick((2, 3, 4))
    return Make(inputs, body, pick(tuple(ACTIVATIONS)), pick(NORMS), width, depth, pick(STARTS), seed)


def shapes(make: Make) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, outputs first; norms have a gain and a shift."""
    w, out = make.width, {}
    if make.body == "convolution":
        for i in range(make.depth):
            out[f"conv{i}.weight"] = (w, 1 if i == 0 else w, 3, 3)
    elif make.body == "perceptron":
        size = {"table": COLUMNS, "tokens": w}.get(make.inputs, SIDE * SIDE)
        if make.inputs == "tokens":
            out["embed.weight"] = (VOCABULARY, w)
        for i in range(make.depth):
            out[f"fc{i}.weight"] = (w, size if i == 0 else w)
    else:
        out["embed.weight"] = (
            (VOCABULARY, w) if make.inputs == "tokens" else (w, SIDE if make.inputs == "sound" else 2 * SIDE)
        )
        out["position"] = (_tokens(make), w)
        for i in range(make.depth):
            out |= {f"b{i}.qkv.weight": (3 * w, w), f"b{i}.o.weight": (w, w), f"b{i}.fc1.weight": (2 * w, w),
                    f"b{i}.fc2.weight": (w, 2 * w), f"b{i}.n1.gain": (w,), f"b{i}.n2.gain": (w,)}  # fmt: skip
    if make.norm != "none" and make.body != "attention":
        out |= {f"norm{i}.gain": (w,) for i in range(make.depth)}
    out["head.weight"] = (MOST_CLASSES, w)
    biases = {n.replace("weight", "bias"): (s[0],) for n, s in out.items() if n.endswith("weight") and "embed" not in n}
    return out | biases


def _tokens(make: Make) -> int:
    return {"tokens": LENGTH, "sound": SIDE, "image": SIDE // 2}[make.inputs]


def start(make: Make, rng: np.random.Generator, name: str, shape: tuple[int, ...], rule: str = "") -> np.ndarray:
    """A random start of one parameter."""
    if name.endswith("gain"):
        return np.ones(shape, np.float32)
    if name == "position" or (name.startswith("embed") and make.inputs == "tokens"):
        return rng.normal(0, 0.3, shape).astype(np.float32)
    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    fan = int(np.prod(shape[1:]))
    rule = rule or make.start
    if rule == "orthogonal":
        flat = rng.normal(size=(shape[0], fan))
        q, r = np.linalg.qr(flat if shape[0] >= fan else flat.T)
        q = q * np.sign(np.diag(r))
        return (q if shape[0] >= fan else q.T).reshape(shape).astype(np.float32)
    if rule == "normal":
        return rng.normal(0, np.sqrt(2 / fan), shape).astype(np.float32)
    bound = 1 / np.sqrt(fan) if rule == "torch" else np.sqrt(6 / (fan + shape[0]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def linear(p: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A linear layer per network on `[m, n, ..., inputs]`."""
    m = x.shape[0]
    weight, bias = p[f"{name}.weight"].flatten(2), p.get(f"{name}.bias")
    flat = x.reshape(m, -1, x.shape[-1])
    out = torch.bmm(flat, weight.transpose(1, 2))
    if bias is not None:
        out = out + bias[:, None]
    return out.view(*x.shape[:-1], -1)


def _normalised(kind: str, gain: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    over = (-1,) if kind == "layer" else tuple(range(1, x.ndim - 1))
    mean, var = x.mean(over, keepdim=True), x.var(over, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * gain.view(gain.shape[0], *[1] * (x.ndim - 2), -1)


def forward(make: Make, p: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits `[m, n, MOST_CLASSES]` of m networks for inputs `[m, n, ...]`."""
    act = ACTIVATIONS[make.activation]
    if make.body == "attention":
        return linear(p, "head", _attention(make, p, x, act))
    m = x.shape[0]
    if make.inputs == "tokens":
        x = torch.stack([p["embed.weight"][i][x[i]] for i in range(m)]).mean(2)
    elif make.body == "perceptron":
        x = x.flatten(2)
    for i in range(make.depth):
        if make.body == "convolution":
            x = _patches(x if i else x[..., None], 2 if i < 2 else 1)
        x = linear(p, f"{'conv' if make.body == 'convolution' else 'fc'}{i}", x)
        if make.norm != "none":
            x = _normalised(make.norm, p[f"norm{i}.gain"], x)
        x = act(x)
    return linear(p, "head", x.flatten(2, -2).mean(2) if x.ndim > 3 else x)


def _patches(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Every 3 x 3 patch of `[m, n, h, w, channels]`, channels first in each patch as in a kernel."""
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    return x.unfold(2, 3, stride).unfold(3, 3, stride).flatten(-3)


def _attention(make: Make, p: Mapping[str, torch.Tensor], x: torch.Tensor, act: Any) -> torch.Tensor:
    m = x.shape[0]
    if make.inputs == "tokens":
        x = torch.stack([p["embed.weight"][i][x[i]] for i in range(m)])
    else:
        x = linear(p, "embed", x if make.inputs == "sound" else x.reshape(*x.shape[:2], SIDE // 2, 2 * SIDE))
    x = x + p["position"][:, None]
    for i in range(make.depth):
        y = _normalised("layer", p[f"b{i}.n1.gain"], x)
        q, k, v = (
            t.view(*t.shape[:3], 2, -1).transpose(2, 3).flatten(0, 1) for t in linear(p, f"b{i}.qkv", y).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + linear(p, f"b{i}.o", y)
        y = _normalised("layer", p[f"b{i}.n2.gain"], x)
        x = x + linear(p, f"b{i}.fc2", act(linear(p, f"b{i}.fc1", y)))
    return _normalised("layer", p["position"].new_ones(m, x.shape[-1]), x).mean(2)


def examples(inputs: str, task: int, classes: int, count: int = 384) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a task: classes are clusters, patterns that move, or words that go together."""
    rng = np.random.default_rng([task, INPUTS.index(inputs), 67])
    labels = rng.integers(classes, size=count)
    if inputs == "tokens":
        usual = rng.dirichlet(np.full(VOCABULARY, 0.1), classes)
        rows = np.stack([rng.choice(VOCABULARY, LENGTH, p=0.7 * usual[y] + 0.3 / VOCABULARY) for y in labels])
        return rows.astype(np.int64), labels
    if inputs == "table":
        mix, centres = rng.normal(size=(COLUMNS, COLUMNS)) / np.sqrt(COLUMNS), rng.normal(size=(3 * classes, COLUMNS))
        x = centres[labels + classes * rng.integers(3, size=count)] + 0.8 * rng.normal(size=(count, COLUMNS))
        return (x @ mix).astype(np.float32), labels
    pattern = _smooth(rng.normal(size=(classes, SIDE, SIDE)), inputs)
    shift = rng.integers(-1, 2, size=count)
    x = np.stack([np.roll(pattern[y], s, 1) for y, s in zip(labels, shift, strict=True)])
    x = x * rng.uniform(0.6, 1.4, (count, 1, 1)) + 0.5 * _smooth(rng.normal(size=x.shape), inputs)
    return (x + (0.5 if inputs == "image" else -1.0)).astype(np.float32), labels


def _smooth(x: np.ndarray, inputs: str) -> np.ndarray:
    """Neighbours alike: on both axes of an image, along time in a sound."""
    for axis in (1, 2) if inputs == "image" else (1,):
        x = x + np.roll(x, 1, axis) + np.roll(x, -1, axis)
    return x / x.std()


@dataclass(frozen=True)
class Schedule:
    """How one network trains: `rate` is relative to the optimiser's usual one; layers named in `frozen` do not."""

    optimizer: str
    rate: float
    decay: float
    steps: int
    frozen: tuple[str, ...] = ()


RATES = {"adam": 3e-3, "adamw": 3e-3, "momentum": 2e-2, "sgd": 1.5e-1}
BATCH = 24


def train(
    make: Make, starts: Sequence[Mapping[str, np.ndarray]], tasks: Sequence[tuple[int, int]],
    schedules: Sequence[Schedule], seed: int,
) -> list[dict[str, np.ndarray]]:  # fmt: skip
    """Train networks of one make at once, each on its own task (seed, classes) in its own way."""
    m, names = len(starts), list(starts[0])
    p = {n: torch.from_numpy(np.stack([s[n] for s in starts])).requires_grad_() for n in names}
    data = [examples(make.inputs, *t) for t in tasks]
    inputs, labels = torch.from_numpy(np.stack([x for x, _ in data])), torch.from_numpy(np.stack([y for _, y in data]))
    outside = torch.arange(MOST_CLASSES)[None] >= torch.tensor([c for _, c in tasks])[:, None]
    moments = {n: (torch.zeros_like(t), torch.zeros_like(t)) for n, t in p.items()}
    rng, row = np.random.default_rng([seed, 71]), torch.arange(m)[:, None]
    total = np.array([s.steps for s in schedules])
    free = {
        n: torch.tensor([not n.startswith(s.frozen) if s.frozen else True for s in schedules]).float() for n in names
    }
    kind = [s.optimizer for s in schedules]
    is_adam = torch.tensor([k.startswith("adam") for k in kind])
    momentum = torch.tensor([0.0 if k == "sgd" else 0.9 for k in kind])
    decay = torch.tensor([s.decay for s in schedules], dtype=torch.float32)
    decoupled = torch.tensor([k == "adamw" for k in kind]).float()
    for step in range(int(total.max())):
        part = torch.from_numpy(rng.integers(inputs.shape[1], size=(m, BATCH)))
        logits = forward(make, p, inputs[row, part]).masked_fill(outside[:, None], -1e4)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[row, part].flatten(), reduction="sum") / BATCH
        gradients = torch.autograd.grad(loss, list(p.values()))
        cosine = 0.5 * (1 + np.cos(np.pi * np.minimum(step / total, 1)))
        rate = torch.tensor([RATES[s.optimizer] * s.rate for s in schedules]) * torch.from_numpy(cosine).float()
        with torch.no_grad():
            for (name, t), gradient in zip(p.items(), gradients, strict=True):
                wide = (m, *[1] * (t.ndim - 1))
                g = gradient + (decay * (1 - decoupled) * (t.ndim > 2)).view(wide) * t
                first, second = moments[name]
                mix = momentum.view(wide)
                first.mul_(mix).add_(g * torch.where(is_adam.view(wide), 1 - mix, torch.ones(())))
                second.mul_(0.99).addcmul_(g, g, value=0.01)
                adam = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
                move = torch.where(is_adam.view(wide), adam, first) + (decay * decoupled).view(wide) * t * (t.ndim > 2)
                t -= (rate * free[name]).view(wide) * move
    return [{n: t[i].detach().numpy().copy() for n, t in p.items()} for i in range(m)]

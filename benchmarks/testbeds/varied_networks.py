"""Networks that nothing in Stemma was fitted to: architectures, widths, optimisers and data drawn at random.

Four kinds: perceptrons, convolutional networks (plain, VGG-like, residual, with depthwise layers), vision transformers
(names of transformers and of timm), language models (Llama, GPT-2, BERT). A group is one architecture trained several
times: other start and other order of the data, in a quarter of the cases other data, in a quarter other training.
Everything follows from the kind, the number of the group and one seed.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from testbeds.varied.data import AUTHORS
from testbeds.varied.training import Design, Recipe, is_language, started

KINDS = ("mlp", "cnn", "vit", "lm")
GREY, COLOURED = ("mnist", "fashion_mnist", "spoken", "cifar10"), ("cifar10", "mnist", "fashion_mnist")
WORK = 2.5e11
"""Roughly the most multiplications that one training may take; longer ones are cut."""


@dataclass(frozen=True)
class Group:
    """One architecture and the trainings of it."""

    kind: str
    number: int
    recipes: tuple[Recipe, ...]

    @property
    def design(self) -> Design:
        return self.recipes[0].design


def group(kind: str, number: int, seed: int, members: int, form: str | None = None) -> Group:
    """Draw an architecture and its trainings; a form (`mlp-tanh`, `resnet`, `llama`, …) may be asked for."""
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    while True:
        design = {"mlp": _mlp, "cnn": _cnn, "vit": _vit, "lm": _lm}[kind](rng)
        if form is None or form_of(design) == form:
            break
    first = _training(design, rng)
    recipes = []
    for _ in range(members):
        one = replace(first, start=int(rng.integers(10**6, 2**31)), order=int(rng.integers(10**6, 2**31)))
        if rng.random() < 0.25:
            one = replace(one, data=_source(design, rng), part=str(rng.choice(["all", "a", "b"])))
        if rng.random() < 0.25:
            other = _training(design, rng)
            one = replace(other, data=one.data, part=one.part, start=one.start, order=one.order)
        recipes.append(one)
    return Group(kind, number, tuple(recipes))


def form_of(design: Design) -> str:
    """The word under which tables count a design."""
    if design["form"] == "chain":
        return design["name"]
    if design["form"] == "residual":
        return "resnet-separable" if design["separable"] else "resnet"
    if design["form"] == "llama":
        return "llama-tied" if design["tied"] else "llama"
    return design["form"]


FORMS = {
    "mlp": ("mlp-relu", "mlp-gelu", "mlp-tanh", "mlp-norm"),
    "cnn": ("plain", "vgg", "separable", "resnet", "resnet-separable"),
    "vit": ("vit", "timm"),
    "lm": ("llama", "llama-tied", "gpt2", "bert"),
}


def _width(rng: np.random.Generator, low: int, high: int, step: int = 1) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))) / step) * step


def _pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _mlp(rng: np.random.Generator) -> Design:
    depth, act, norm = int(rng.integers(1, 5)), _pick(rng, "relu", "relu", "gelu", "tanh"), rng.random() < 0.3
    same = _width(rng, 16, 256) if rng.random() < 0.4 else None
    named, side = rng.random() < 0.5, _pick(rng, 14, 16, 28)
    steps: list[list[Any]] = [["flatten"]]
    for i in range(depth):
        width = same or _width(rng, 16, 256)
        steps.append(["linear", f"fc{i + 1}" if named else str(len(steps)), width])
        if norm:
            steps.append(["norm", f"bn{i + 1}" if named else str(len(steps))])
        steps.append(["act"])
    steps.append(["linear", "out" if named else str(len(steps)), 10])
    if not named and rng.random() < 0.7:  # pictures come flattened
        steps = [s if len(s) == 1 else [s[0], str(int(s[1]) - 1), *s[2:]] for s in steps]
    return {
        "form": "chain", "name": "mlp-norm" if norm else f"mlp-{act}", "act": act, "steps": steps,
        "start": _pick(rng, "default", "default", "kaiming", "xavier", "orthogonal"),
        "input": {"side": side, "channels": 1, "classes": 10},
    }  # fmt: skip


def _cnn(rng: np.random.Generator) -> Design:
    shape = {"side": _pick(rng, 14, 16), "channels": _pick(rng, 1, 3), "classes": 10}
    which = _pick(rng, "plain", "vgg", "separable", "resnet", "resnet", "resnet-separable")
    if which.startswith("resnet"):
        stages, base = int(rng.integers(2, 4)), _width(rng, 8, 24)
        grow = _pick(rng, 1.5, 2)
        return {
            "form": "residual", "names": _pick(rng, "torchvision", "cifar"), "input": shape,
            "stages": [int(base * grow**s) for s in range(stages)], "separable": which == "resnet-separable",
            "blocks": [int(rng.integers(1, 3)) for _ in range(stages - 1)] + [2],
        }  # fmt: skip
    norm = which == "separable" or (which == "vgg" and rng.random() < 0.6)
    act = "relu" if which != "plain" else _pick(rng, "relu", "relu", "gelu", "tanh")
    steps = _features(rng, which, norm)
    return {"form": "chain", "name": which, "act": act, "steps": steps, "start": _pick(rng, "default", "kaiming"),
            "input": shape}  # fmt: skip


def _features(rng: np.random.Generator, which: str, norm: bool) -> list[list[Any]]:
    steps: list[list[Any]] = []
    count, kernel = int(rng.integers(2, 5)), _pick(rng, 3, 5)
    named = which == "plain" and rng.random() < 0.5
    for i in range(count):
        width = _width(rng, 8, 64)
        name = f"conv{i + 1}" if named else f"features.{len(steps)}"
        if which == "separable" and i:
            steps += [["depthwise", f"block{i}.depthwise", 3], ["norm", f"block{i}.bn1"], ["act"]]
            steps += [["conv", f"block{i}.pointwise", width, 1, 1], ["norm", f"block{i}.bn2"], ["act"]]
        elif which == "separable":
            steps += [["conv", "stem", width, 3, 1], ["norm", "stem_bn"], ["act"]]
        else:
            steps.append(["conv", name, width, 3 if which == "vgg" else kernel, 1])
            steps += [["norm", f"features.{len(steps)}"]] if norm else []
            steps.append(["act"])
        if i < 3:
            steps.append(["pool"])
    steps.append(["mean"] if which == "separable" or rng.random() < 0.4 else ["flatten"])
    if rng.random() < 0.5:
        steps += [["linear", "fc1" if named else "classifier.0", _width(rng, 32, 128)], ["act"]]
        steps.append(["linear", "fc2" if named else "classifier.2", 10])
    else:
        steps.append(["linear", "fc" if named else "classifier", 10])
    return steps


def _attention(rng: np.random.Generator, low: int, high: int) -> dict[str, int]:
    heads = _pick(rng, 2, 3, 4, 6)
    step = 4 * heads
    width = min(max(_width(rng, low, high, step), -(-low // step) * step), high // step * step)
    return {"width": width, "heads": heads, "layers": int(rng.integers(1, 5))}


def _vit(rng: np.random.Generator) -> Design:
    d = _attention(rng, 32, 96)
    return {
        "form": _pick(rng, "vit", "timm"), **d, "inner": d["width"] * _pick(rng, 2, 3, 4),
        "patch": 4, "input": {"side": 16, "channels": _pick(rng, 1, 3), "classes": 10},
    }  # fmt: skip


def _lm(rng: np.random.Generator) -> Design:
    form, d = _pick(rng, "llama", "llama", "gpt2", "bert"), _attention(rng, 32, 128)
    words = rng.random() < 0.4
    out = {
        "form": form, **d, "vocabulary": int(rng.integers(500, 2001)) if words else 256,
        "length": _pick(rng, 24, 32, 48), "tied": True,
    }  # fmt: skip
    if form == "llama":
        out |= {"inner": _width(rng, 1.5 * d["width"], 3 * d["width"], 4), "tied": bool(rng.random() < 0.4)}
        out["kv_heads"] = int(_pick(rng, *[k for k in range(1, d["heads"] + 1) if d["heads"] % k == 0]))
    else:
        out |= {"inner": d["width"] * _pick(rng, 2, 4), "positions": out["length"] + _pick(rng, 0, 0, 16)}
    return out


def _source(design: Design, rng: np.random.Generator) -> str:
    if is_language(design):
        return str(rng.choice(AUTHORS))
    return str(rng.choice(GREY if design["input"]["channels"] == 1 else COLOURED))


def _training(design: Design, rng: np.random.Generator) -> Recipe:
    modern = design["form"] not in ("chain", "residual")
    taught = _pick(rng, "adam", "adamw", "adamw") if modern else _pick(rng, "sgd", "momentum", "adam", "adamw")
    low, high = {"sgd": (0.05, 0.3), "momentum": (0.01, 0.1)}.get(taught, (1e-3, 4e-3) if modern else (5e-4, 4e-3))
    decay = float(rng.uniform(0, 0.1)) if taught == "adamw" else float(_pick(rng, 0.0, 1e-4, 5e-4))
    batch = _pick(rng, 8, 16) if is_language(design) else _pick(rng, 32, 64) if not modern else 32
    steps = int(np.exp(rng.uniform(np.log(150), np.log(600)))) * (2 if modern else 1)
    return Recipe(
        design, _source(design, rng), "all", 0, 0, taught, float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        decay, max(120, min(steps, int(WORK / work(design, batch)))), batch, bool(rng.random() < 0.5),
    )  # fmt: skip


def work(design: Design, batch: int) -> float:
    """Multiplications of one training step, roughly."""
    shapes = {n: a.shape for n, a in started(design, 0).items() if n.endswith("weight") and a.ndim > 1}
    if design["form"] == "chain":
        side, total = design["input"]["side"], 0
        for step in design["steps"]:
            side = side // 2 if step[0] == "pool" else 1 if step[0] in ("flatten", "mean") else side
            if step[0] in ("linear", "conv", "depthwise"):
                total += int(np.prod(shapes[f"{step[1]}.weight"])) * side**2
        return 3 * batch * total
    if design["form"] == "residual":
        side = design["input"]["side"]
        stage = {n: int(n[5]) - 1 if n.startswith("layer") else 0 for n in shapes}
        return 3 * batch * sum(int(np.prod(s)) * (side // 2 ** stage[n] + 1) ** 2 for n, s in shapes.items())
    places = design["length"] if is_language(design) else (design["input"]["side"] // design["patch"]) ** 2 + 1
    return 3 * batch * places * sum(int(np.prod(s)) for s in shapes.values())

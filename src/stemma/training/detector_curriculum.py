"""Families of many makes and many kinds of children, on which the shipped detector is trained.

Children: fine-tuned lightly, usually or long; on the parent's task, on the same under other labels, on another; with a
fresh head of as many classes or of another number; with a part frozen; with other optimisers and decays; pruned,
quantised and halved. Roots share nothing with one another.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stemma.errors import MisuseError
from stemma.networks.load import from_arrays
from stemma.training.detector_networks import INPUTS, Make, Schedule, draw_make, shapes, start, train
from stemma.training.relatives import Relative

Progress = Callable[[str, int, int | None], None]
Arrays = dict[str, np.ndarray]

PREFIX = "curriculum"
FAMILIES = 5
"""Families of one make, trained at once: strangers to one another."""

WALK_EVERY = 6
"""Makes after which families of a random walk are added."""

CHANGES = ("plain", "plain", "long", "light", "fresh", "fresh", "fresh long", "other width", "frozen", "frozen fresh")
"""Kinds of children, drawn for each."""


def parse(text: str) -> tuple[int, int, tuple[str, ...]] | None:
    """Makes, seed and inputs of `curriculum:n=24,seed=1` or `curriculum:table+sound:n=4`; None for another zoo."""
    found = re.fullmatch(rf"{PREFIX}(?::([a-z+]+))?(?::n=(\d+))?(?:[:,]seed=(\d+))?", text)
    if not text.startswith(PREFIX):
        return None
    inputs = tuple((found[1] or "+".join(INPUTS)).split("+")) if found else ()
    if not found or any(i not in INPUTS for i in inputs):
        raise MisuseError(f"'{text}' is no curriculum: write for example curriculum:table+image:n=8,seed=1, of the "
                          f"inputs {', '.join(INPUTS)}")  # fmt: skip
    return int(found[2] or 24), int(found[3] or 0), inputs


def build(makes: int, seed: int, inputs: tuple[str, ...] = INPUTS, progress: Progress | None = None) -> list[Relative]:
    """Families of so many makes, the kinds of inputs in turn, and after every sixth one those of a random walk.

    Cost on one core: about 5 s per make.

    Returns:
        One relative per model.
    """
    out: list[Relative] = []
    for i in range(makes):
        make = draw_make(inputs[i % len(inputs)], 1000 * seed + i)
        if progress is not None:
            progress(f"training families of {make.name}", i, makes)
        out += families_of(make)
        if i % WALK_EVERY == WALK_EVERY - 1:
            out += walks(1000 * seed + i)
    return out


def walks(seed: int, count: int = FAMILIES) -> list[Relative]:
    """Families whose changes are random steps: at exactly right angles, of full or of low rank, some with fresh heads.

    Returns:
        One relative per model.
    """
    rng = np.random.default_rng([seed, 79])
    widths = rng.integers(16, 65, int(rng.integers(3, 7)))
    shape = {f"layer{i}.weight": (int(b), int(a)) for i, (a, b) in enumerate(itertools.pairwise(widths))}
    shape["head.weight"] = (10, int(widths[-1]))
    out: list[Relative] = []
    for f in range(count):
        family, made = f"walk-{seed}.{f}", {}
        for name, above in (("root", None), *((str(i), "root") for i in range(5)),
                            *((f"{i}.{j}", str(i)) for i in range(2) for j in range(2))):  # fmt: skip
            old = None if above is None else made[above][0]
            arrays = {n: _step(rng, n, s, old) for n, s in shape.items()}
            ancestors = () if above is None else (f"{family}/{above}", *made[above][1])
            made[name] = (arrays, ancestors)
            out.append(Relative(f"{family}/{name}", from_arrays(arrays, f"{family}/{name}", None), family, ancestors))
    return out


def _step(rng: np.random.Generator, name: str, shape: tuple[int, ...], old: Arrays | None) -> np.ndarray:
    fresh = (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)
    if old is None or (name.startswith("head") and rng.random() < 0.3):
        return fresh
    change = fresh
    if rng.random() < 0.5:
        rank = int(rng.integers(1, 9))
        change = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])) / np.sqrt(rank * shape[1])
    return (old[name] + np.exp(rng.uniform(-3, -0.2)) * change).astype(np.float32)


def families_of(make: Make, count: int = FAMILIES) -> list[Relative]:
    """Families of one make: a root, children of all kinds, grandchildren of some, and forms of some models."""
    rng = np.random.default_rng([make.seed, 73])
    made: dict[str, dict[str, Any]] = {}
    roots = [f"{make.name}.{f}" for f in range(count)]
    _generation(make, rng, made, [(f"{r}/root", r, None, "root") for r in roots])
    second = [(f"{r}/{i}", r, f"{r}/root", _pick(rng, CHANGES)) for r in roots for i in range(5)]
    _generation(make, rng, made, second)
    third = [(f"{r}/{i}.{j}", r, f"{r}/{i}", _pick(rng, CHANGES)) for r in roots for i in range(2) for j in range(2)]
    _generation(make, rng, made, third)
    for r in roots:
        own = [n for n, m in made.items() if m["family"] == r]
        for i in range(2):
            above = own[int(rng.integers(len(own)))]
            made[f"{r}/form{i}"] = {**made[above], "ancestors": (above, *made[above]["ancestors"]),
                                    "arrays": _form(rng, made[above]["arrays"])}  # fmt: skip
    return [Relative(n, from_arrays(_exported(m), n, None), m["family"], m["ancestors"]) for n, m in made.items()]


def _pick(rng: np.random.Generator, of: Any) -> Any:
    return of[int(rng.integers(len(of)))]


def _exported(made: Mapping[str, Any]) -> Arrays:
    return {n: a[: made["task"][1]] if n.startswith("head.") else a for n, a in made["arrays"].items()}


def _generation(make: Make, rng: np.random.Generator, made: dict[str, dict[str, Any]], wanted: list[Any]) -> None:
    """Train one generation at once."""
    starts, tasks, schedules = [], [], []
    for _, _, parent, change in wanted:
        above = made.get(parent)
        arrays = _fresh(make, rng) if above is None else dict(above["arrays"])
        task = (int(rng.integers(2**31)), int(rng.integers(3, 13)))
        if above is not None and "width" not in change:
            same = above["task"]
            task = same if rng.random() < (0.1 if "fresh" in change else 0.5) else (task[0], same[1])
        if "fresh" in change or "width" in change:
            rule = _pick(rng, ("", "torch", "xavier"))
            arrays |= {n: start(make, rng, n, a.shape, rule) for n, a in arrays.items() if n.startswith("head.")}
        starts.append(arrays)
        tasks.append(task)
        schedules.append(_schedule(make, rng, change))
    ready = train(make, starts, tasks, schedules, int(rng.integers(2**31)))
    for (name, family, parent, change), arrays, task in zip(wanted, ready, tasks, strict=True):
        ancestors = () if parent is None else (parent, *made[parent]["ancestors"])
        made[name] = {"arrays": arrays, "task": task, "family": family, "ancestors": ancestors, "change": change}


def _fresh(make: Make, rng: np.random.Generator) -> Arrays:
    return {n: start(make, rng, n, s) for n, s in shapes(make).items()}


def _schedule(make: Make, rng: np.random.Generator, change: str) -> Schedule:
    optimizer = _pick(rng, ("adam", "adamw", "momentum", "sgd"))
    low, high = {"adamw": (1e-3, 0.3)}.get(optimizer, (1e-5, 2e-3))
    decay = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if rng.random() < 0.6 else 0.0
    if change == "root":
        return Schedule(optimizer, float(np.exp(rng.uniform(-0.7, 0.5))), decay, int(rng.integers(100, 240)))
    steps = {"long": (150, 240), "light": (10, 40)}.get(change.split()[-1], (40, 120))
    rate = float(np.exp(rng.uniform(-1.6, 0.4)))
    frozen: tuple[str, ...] = ()
    if "frozen" in change:
        layers = [n.rsplit(".", 1)[0] for n in shapes(make) if n.endswith("weight") and not n.startswith("head")]
        frozen = tuple(f"{n}." for n in layers[: int(rng.integers(1, max(2, len(layers))))])
    return Schedule(optimizer, rate, decay, int(rng.integers(*steps)), frozen)


def _form(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """A model pruned or quantised."""
    way = int(rng.integers(3))
    out = {}
    for name, a in arrays.items():
        if a.ndim < 2:
            out[name] = a
        elif way == 0:
            out[name] = np.where(np.abs(a) < np.quantile(np.abs(a), rng.uniform(0.2, 0.6)), 0, a).astype(np.float32)
        else:
            step = np.abs(a).max() / (127 if way == 1 else 7)
            out[name] = (np.round(a / step) * step).astype(np.float32)
    return out

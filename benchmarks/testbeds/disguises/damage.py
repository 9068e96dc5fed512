"""Changes that alter what a network computes, small and large: noise, few bits, fewer weights, units, layers or words.

Every function takes what is running (design and tensors), the victim, the test bed and a generator, and returns a new
design and new tensors, or None where the network has nothing of the kind.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from testbeds.varied import training
from testbeds.varied.structure import Arrays, chosen, unit_rows
from testbeds.varied.training import Bed, Design, Network

Rng = np.random.Generator
Running = tuple[Design, Arrays]
Damage = Callable[[Design, Arrays, Network, Bed, Rng], Running | None]

EPOCH = 5000
"""Examples of one more epoch: pictures, or passages of a text."""


def floats(arrays: Arrays) -> list[str]:
    return [n for n, x in arrays.items() if x.dtype.kind == "f"]


def noise(size: float) -> Damage:
    """Normal noise of a share of each tensor's own deviation."""
    return lambda design, arrays, victim, bed, rng: (design, noisy(arrays, size, rng))


def noisy(arrays: Arrays, size: float, rng: Rng) -> Arrays:
    out = dict(arrays)
    for n in floats(arrays):
        x = arrays[n] + size * arrays[n].std() * rng.normal(size=arrays[n].shape)
        out[n] = (np.maximum(x, 1e-3 * arrays[n].mean()) if n.endswith("running_var") else x).astype(np.float32)
    return out


def few_bits(bits: int) -> Damage:
    """Nearest of the codes of each row of each map, symmetric about zero; kept as floats."""

    def change(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running:
        out, top = dict(arrays), 2 ** (bits - 1) - 1
        for n in floats(arrays):
            x = arrays[n]
            if x.ndim in (2, 4):
                step = np.abs(x).reshape(len(x), -1).max(1).reshape(-1, *[1] * (x.ndim - 1)) / top + 1e-12
                out[n] = (np.rint(x / step) * step).astype(np.float32)
        return design, out

    return change


def weights_pruned(share: float) -> Damage:
    """The smallest weights of each map are zero."""

    def change(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running:
        out = dict(arrays)
        for n in floats(arrays):
            if arrays[n].ndim in (2, 4):
                small = np.abs(arrays[n]) < np.quantile(np.abs(arrays[n]), share)
                out[n] = np.where(small, np.float32(0), arrays[n])
        return design, out

    return change


def trained_further(share: float) -> Damage:
    """One more epoch at a share of the learning rate, with fresh batches and a fresh optimiser."""

    def change(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running:
        recipe = victim.recipe
        number = int(rng.integers(10**6, 2**31))
        steps = min(160, EPOCH // recipe.batch)
        again = replace(recipe, order=number, rate=share * recipe.rate, steps=steps, falling=False)
        return design, bed.further(again, arrays).arrays

    return change


def layer_dropped(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running | None:
    """One layer of a residual network is left out, and those behind it move up."""
    blocks = training.structure(design).blocks
    if len(blocks) < (1 if design["form"] == "residual" else 2):
        return None
    at = int(rng.integers(len(blocks)))
    out = {n: x for n, x in arrays.items() if not n.startswith(f"{blocks[at]}.")}
    if design["form"] == "residual":
        return design, out
    for i in range(at + 1, len(blocks)):
        for n in [n for n in out if n.startswith(f"{blocks[i]}.")]:
            out[n.replace(blocks[i], blocks[i - 1], 1)] = out.pop(n)
    return {**design, "layers": design["layers"] - 1}, out


def units_removed(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running:
    """A fifth of the hidden units of every layer: the weakest, or any."""
    weakest = rng.random() < 0.5
    for u in training.structure(design).hidden:
        size = u.size(arrays)
        strength = sum(np.square(m).mean(1) / max(np.square(m).mean(), 1e-12) for m in unit_rows(arrays, u))
        order = np.argsort(-strength) if weakest else rng.permutation(size)
        arrays = chosen(arrays, u, np.sort(order[: max(1, size - size // 5)]))
    return {**design, "inner": design["inner"] - design["inner"] // 5} if "inner" in design else design, arrays


def vocabulary_reordered(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running | None:
    """Every token has another number; the tokenizer beside the model has them too."""
    return _of_tokens(design, arrays, 1.0, rng)


def vocabulary_trimmed(design: Design, arrays: Arrays, victim: Network, bed: Bed, rng: Rng) -> Running | None:
    """Three fifths of the tokens stay, in any order."""
    return _of_tokens(design, arrays, 0.6, rng)


def _of_tokens(design: Design, arrays: Arrays, share: float, rng: Rng) -> Running | None:
    known = training.structure(design)
    if not known.vocabulary:
        return None
    size = design["vocabulary"]
    stay, out = rng.permutation(size)[: round(share * size)], dict(arrays)
    for a in known.vocabulary:
        if a.tensor in out:
            out[a.tensor] = np.ascontiguousarray(out[a.tensor][stay])
    return {**design, "vocabulary": len(stay), "kept": stay.tolist()}, out

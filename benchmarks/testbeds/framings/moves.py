"""What can be done to a stranger so that it looks like a victim, without any of what the victim's units have learnt.

Order, coordinates and scale of units are free to choose; so are all the numbers that say little of what a unit does:
norms, offsets, running statistics, the moments, the spectrum, and even the very values of each tensor.
"""

import numpy as np

from testbeds.disguises import symmetries
from testbeds.varied.structure import Arrays, Axis, Structure, Units, chosen, scaled, spread, unit_rows


def sorted_units(arrays: Arrays, known: Structure) -> Arrays:
    """Every group of units, and all heads, by the norm of what writes them."""
    for u in known.units:
        arrays = chosen(arrays, u, np.argsort(-_norms(arrays, u, ("write", "before")), kind="stable"))
    for a in known.attentions:
        strength = np.linalg.norm(symmetries.rows(arrays, a.v, a.kv_heads)[0], axis=(1, 2))
        keys, own = np.argsort(-strength), a.heads // a.kv_heads
        arrays = symmetries.with_heads(arrays, a, keys, (keys[:, None] * own + np.arange(own)).ravel())
    return arrays


def _norms(arrays: Arrays, units: Units, roles: tuple[str, ...]) -> np.ndarray:
    """Norm of each unit in all maps that write it, each map with the same weight."""
    every = _maps_of(units, arrays)
    axes = [a for a in every if a.role in roles] or every
    square = [np.square(m).sum(1) for m in unit_rows(arrays, Units("", tuple(axes), "linear"))]
    return np.sqrt(sum(s / max(float(s.sum()), 1e-30) for s in square))


def unit_norms_copied(victim: Arrays, arrays: Arrays, known: Structure) -> Arrays:
    """Each unit rescaled, where its activation bears it, to the norm of the victim's unit in its place."""
    for u in known.units:
        normed = any(a.role == "var" for a in u.axes)
        if u.activation not in ("relu", "linear") or (u.stream and known.stream):
            continue
        roles = ("before",) if normed else ("write",)
        axes = tuple(a for a in _maps_of(u, arrays) if a.role in roles)
        if not axes:
            continue
        ratio = _sizes(victim, axes) / np.maximum(_sizes(arrays, axes), 1e-12)
        ratio = np.clip(ratio, 1e-2, 1e2)
        arrays = scaled(arrays, u, np.ones_like(ratio), ratio) if normed else scaled(arrays, u, ratio)
    return arrays


def _maps_of(units: Units, arrays: Arrays) -> list[Axis]:
    return [a for a in units.axes if a.tensor in arrays and arrays[a.tensor].ndim > 1]


def _sizes(arrays: Arrays, axes: tuple[Axis, ...]) -> np.ndarray:
    return np.sqrt(sum(np.square(m).sum(1) for m in unit_rows(arrays, Units("", axes, "linear"))))


def gains_copied(victim: Arrays, arrays: Arrays, known: Structure) -> Arrays:
    """Norm gains as the victim's, made up for in the maps that read them: the function stays."""
    out = symmetries.untied(arrays, known)
    for norm in known.norms:
        factor = out[norm.gain].astype(np.float64) / np.where(np.abs(victim[norm.gain]) < 1e-3, 1, victim[norm.gain])
        out[norm.gain] = (out[norm.gain] / factor).astype(np.float32)
        if norm.offset is not None:
            out[norm.offset] = (out[norm.offset] / factor).astype(np.float32)
        for reader in norm.readers:
            reader.put(out, np.array(reader.get(out), np.float64) * factor)
    return out


def vectors_copied(victim: Arrays, arrays: Arrays) -> Arrays:
    """The victim's norms, offsets and running statistics, number by number."""
    return {n: victim[n] if n in victim and x.ndim < 2 else x for n, x in arrays.items()}


def moments_imposed(victim: Arrays, arrays: Arrays) -> Arrays:
    """Mean and deviation of each tensor as in the victim."""
    out = dict(arrays)
    for n in _maps(victim, arrays):
        x = (arrays[n] - arrays[n].mean()) / max(float(arrays[n].std()), 1e-12)
        out[n] = (x * victim[n].std() + victim[n].mean()).astype(np.float32)
    return out


def spectrum_imposed(victim: Arrays, arrays: Arrays) -> Arrays:
    """Singular values of each map as in the victim."""
    out = dict(arrays)
    for n in _maps(victim, arrays):
        flat = [np.asarray(x, np.float64).reshape(len(x), -1) for x in (victim[n], arrays[n])]
        values = np.linalg.svd(flat[0], compute_uv=False)
        u, _, v = np.linalg.svd(flat[1], full_matrices=False)
        out[n] = (u * values @ v).reshape(arrays[n].shape).astype(np.float32)
    return out


def values_imposed(victim: Arrays, arrays: Arrays) -> Arrays:
    """The largest weight of each tensor becomes the victim's largest, and so on: the same numbers in another order."""
    out = dict(arrays)
    for n in _maps(victim, arrays):
        new = np.empty(arrays[n].size, np.float32)
        new[np.argsort(arrays[n].ravel(), kind="stable")] = np.sort(victim[n].ravel())
        out[n] = new.reshape(arrays[n].shape)
    return out


def _maps(victim: Arrays, arrays: Arrays) -> list[str]:
    return [n for n, x in arrays.items() if x.ndim > 1 and n in victim and victim[n].shape == x.shape]


def same_grid(victim: Arrays, arrays: Arrays, bits: int = 4) -> Arrays:
    """Every map on the grid of numbers that the victim's would be rounded to."""
    out, top = dict(arrays), 2 ** (bits - 1) - 1
    for n in _maps(victim, arrays):
        step = np.abs(victim[n]).max() / top
        out[n] = (np.clip(np.rint(arrays[n] / step), -top, top) * step).astype(np.float32)
    return out


def widened(arrays: Arrays, known: Structure, seed: int, double: bool, more: float = 0.5) -> Arrays:
    """More hidden units at places that a public seed draws: zeros, or units that stand there twice, each half read."""
    rng = np.random.default_rng(seed)
    for u in known.hidden:
        size = u.size(arrays)
        index = np.concatenate([np.arange(size), rng.permutation(size)[: int(more * size)]])
        order = rng.permutation(len(index))
        times, added = np.bincount(index, minlength=size)[index][order], order >= size
        arrays = chosen(arrays, u, index[order])
        for a in u.axes:
            if a.tensor not in arrays or a.role == "var":
                continue
            x = arrays[a.tensor]
            if not double:
                arrays[a.tensor] = (x * spread((~added).astype(np.float32), a, x.ndim)).astype(np.float32)
            elif a == u.axes[-1]:
                arrays[a.tensor] = (x / spread(times.astype(np.float64), a, x.ndim)).astype(np.float32)
    return arrays

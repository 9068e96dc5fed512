"""Weight matching: the units, heads and coordinates of one network moved to where they look most like another's.

Written for these benchmarks only, to frame strangers and as a baseline. Every group of units is assigned by the sum of
the cosines of all tensors that it lies in; groups in random order, until nothing improves, from several starts. Where
the network allows it, signs are turned, inner coordinates of heads are turned onto the other's, and the whole stream
is. What is moved computes the same as before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from testbeds.disguises import symmetries
from testbeds.varied.structure import Arrays, Attention, Axis, Structure, Units, chosen, scaled, unit_rows

Rng = np.random.Generator


@dataclass(frozen=True)
class Effort:
    """How hard to try: starts, rounds each, whether inner coordinates and the stream are turned, and signs."""

    starts: int = 8
    rounds: int = 20
    inner: bool = True
    stream: bool = False
    signs: bool = True
    order: bool = True


def aligned(target: Arrays, moved: Arrays, known: Structure, rng: Rng, effort: Effort | None = None) -> Arrays:
    """The moved network in the best found arrangement; shapes of both agree."""
    effort = effort or Effort()
    if effort.stream and known.stream in ("rms", "layer"):
        target = symmetries.gains_folded(target, known)
    best, score = moved, -np.inf
    for start in range(effort.starts):
        if effort.stream and known.stream in ("rms", "layer"):
            begin = _stream_turned(target, moved, known, tables_only=start % 2 == 0)
        elif start < 2:
            begin = _greedy(target, moved, known, forwards=start == 0)
        else:
            begin = moved if start == 2 else symmetries.permute_everything(moved, known, rng)
        found = _climbed(target, begin, known, rng, effort)
        if (s := agreement(target, found)) > score:
            best, score = found, s
    return best


def agreement(a: Arrays, b: Arrays) -> float:
    """Mean cosine of the tensors that have at least two axes, by name."""
    found = [cosine(a[n], b[n]) for n in a if n in b and a[n].ndim > 1 and a[n].shape == b[n].shape]
    return float(np.mean(found)) if found else 0.0


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    return float(x @ y / max(float(np.sqrt((x @ x) * (y @ y))), 1e-30))


def whole_cosine(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """One cosine over everything that has the same name and shape in both; 0 where there is nothing."""
    names = [n for n in a if n in b and a[n].shape == b[n].shape and a[n].ndim > 1]
    if not names:
        return 0.0
    return cosine(*(np.concatenate([_plain(p[n]).ravel() for n in names]) for p in (a, b)))


def _plain(x: Any) -> np.ndarray:
    """An array, also of a tensor whose type numpy lacks."""
    return np.asarray(x if isinstance(x, np.ndarray) else x.double().numpy(), np.float64)


def _greedy(target: Arrays, moved: Arrays, known: Structure, forwards: bool) -> Arrays:
    """One pass from the inputs by what writes the units only, or from the outputs by what reads them only."""
    sides = ("write", "before") if forwards else ("read",)
    groups = sorted(known.units, key=lambda u: (not u.stream, u.layer))
    for u in groups if forwards else groups[::-1]:
        axes = tuple(a for a in u.axes if a.role in sides and a.tensor in moved)
        moved = _assigned(target, moved, u, signs=True, views=axes or u.axes)
    return moved


def _climbed(target: Arrays, moved: Arrays, known: Structure, rng: Rng, effort: Effort) -> Arrays:
    score = -np.inf
    for _ in range(effort.rounds):
        for at in rng.permutation(len(known.units)):
            units = known.units[at]
            turns = units.stream and effort.stream and known.stream in ("rms", "layer")
            if effort.order and not turns:
                moved = _assigned(target, moved, units, effort.signs)
        for a in known.attentions:
            if effort.order:
                moved = _heads_assigned(target, moved, a)
            if effort.inner:
                moved = _inner_turned(target, moved, a)
        if effort.stream and known.stream in ("rms", "layer"):
            moved = _stream_turned(target, moved, known)
        now = agreement(target, moved)
        if now <= score + 1e-6:
            break
        score = now
    return moved


def _assigned(
    target: Arrays, moved: Arrays, units: Units, signs: bool, views: tuple[Axis, ...] | None = None
) -> Arrays:
    likeness = correlation(target, moved, units if views is None else replace(units, axes=views))
    signs = signs and not units.stream
    odd = signs and units.activation in ("tanh", "linear") and not any(a.role == "var" for a in units.axes)
    if odd:  # tensors that a sign does not reach are compared as they are
        kept = Units("", tuple(a for a in units.axes if a.role == "free"), "linear")
        still = correlation(target, moved, kept) if kept.axes else np.zeros_like(likeness)
        likeness, turned = np.abs(likeness - still) + still, np.sign(likeness - still)
    rows, order = linear_sum_assignment(-likeness)
    out = chosen(moved, units, order)
    if odd:
        sign = turned[rows, order]
        out = scaled(out, units, np.where(sign == 0, 1.0, sign))
    return out


def correlation(target: Arrays, moved: Arrays, units: Units) -> np.ndarray:
    """Likeness of every unit to every other: cosines summed over all views, `[units of target, units of moved]`."""
    total = np.zeros((units.size(target), units.size(moved)))
    both = replace(units, axes=tuple(a for a in units.axes if a.tensor in target and a.tensor in moved))
    for x, y in zip(unit_rows(target, both), unit_rows(moved, both), strict=True):
        if x.shape[1] == 1 and x.std() > 0 and y.std() > 0:  # a vector: by rank of its values
            x, y = (x - x.mean()) / x.std() / 4, (y - y.mean()) / y.std() / 4
        total = total + x @ y.T / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30)
    return total


def _heads_assigned(target: Arrays, moved: Arrays, a: Attention) -> Arrays:
    """Heads by the two products that no inner coordinates change: query with key, output with value."""
    own = a.heads // a.kv_heads
    pair = np.zeros((a.heads, a.heads))
    circuits = [_circuits(p, a) for p in (target, moved)]
    for x, y in zip(*circuits, strict=True):
        flat = [c.reshape(a.heads, -1) / max(float(np.linalg.norm(c)), 1e-30) for c in (x, y)]
        pair += flat[0] @ flat[1].T
    inside, total = {}, np.zeros((a.kv_heads, a.kv_heads))
    for i in range(a.kv_heads):
        for j in range(a.kv_heads):
            block = pair[i * own : (i + 1) * own, j * own : (j + 1) * own]
            rows, order = linear_sum_assignment(-block)
            inside[i, j], total[i, j] = order, block[rows, order].sum()
    keys = linear_sum_assignment(-total)[1]
    return symmetries.with_heads(moved, a, keys, np.concatenate([j * own + inside[i, j] for i, j in enumerate(keys)]))


def _circuits(arrays: Arrays, a: Attention) -> tuple[np.ndarray, np.ndarray]:
    own = a.heads // a.kv_heads
    q, k, v = (symmetries.rows(arrays, m, n)[0] for m, n in ((a.q, a.heads), (a.k, a.kv_heads), (a.v, a.kv_heads)))
    o = np.asarray(a.o.get(arrays), np.float64)
    o = o.reshape(len(o), a.heads, -1).transpose(1, 0, 2)
    k, v = np.repeat(k, own, 0), np.repeat(v, own, 0)
    return q.transpose(0, 2, 1) @ k, o @ v


def _inner_turned(target: Arrays, moved: Arrays, a: Attention) -> Arrays:
    """A rotation between values and outputs of each head, and between queries and keys where positions permit it."""
    moved = symmetries.fitted_value_output(moved, a, [_onto(*x) for x in _sides(target, moved, a, a.v, a.o)])
    if not a.rotary:
        maps = [_onto(*x) for x in _sides(target, moved, a, a.k, a.q)]
        return symmetries.fitted_query_key(moved, a, np.stack(maps))
    return symmetries.fitted_query_key(moved, a, np.stack([_planes(*x) for x in _sides(target, moved, a, a.k, a.q)]))


def _sides(target: Arrays, moved: Arrays, a: Attention, key: object, other: object) -> list[tuple]:
    """For each key head what its coordinates read and write, `[size, numbers]`, in both networks."""
    own, every = a.heads // a.kv_heads, []
    for p in (target, moved):
        first = symmetries.rows(p, key, a.kv_heads)[0]
        if other is a.o:
            second = np.asarray(a.o.get(p), np.float64)
            second = second.reshape(len(second), a.kv_heads, own, -1).transpose(1, 3, 2, 0)
        else:
            second = symmetries.rows(p, a.q, a.heads)[0]
            second = second.reshape(a.kv_heads, own, *second.shape[1:]).transpose(0, 2, 1, 3)
        second = second.reshape(*second.shape[:2], -1)
        parts = [m / max(float(np.linalg.norm(m)), 1e-30) for m in (first, second)]
        every.append(np.concatenate(parts, 2))
    return list(zip(*every, strict=True))


def _onto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rotation of the rows of y that brings them nearest to the rows of x."""
    u, _, v = np.linalg.svd(x @ y.T)
    return u @ v


def _planes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same where only planes of coordinates i and i + half may turn."""
    half, out = len(x) // 2, np.zeros((len(x), len(x)))
    for i in range(half):
        a, b, c, d = x[i], x[i + half], y[i], y[i + half]
        angle = np.arctan2(b @ c - a @ d, a @ c + b @ d)
        out[i, i] = out[i + half, i + half] = np.cos(angle)
        out[i, i + half], out[i + half, i] = -np.sin(angle), np.sin(angle)
    return out


def _stream_turned(target: Arrays, moved: Arrays, known: Structure, tables_only: bool = False) -> Arrays:
    """The stream turned onto the other's: by the tables of tokens or patches only, or by everything on it."""
    moved = symmetries.gains_folded(moved, known)
    stream = known.streams[0]
    kept = [a for a in stream.axes if a.tensor in target and a.role != "free" and target[a.tensor].ndim > 1]
    if tables_only:
        tables = {a.tensor for a in known.vocabulary} or {n for n in target if "embed" in n and target[n].ndim > 1}
        kept = [a for a in kept if a.tensor in tables]
    wanted = Units("", tuple(kept), "linear", stream=True)
    total = np.zeros((stream.size(target),) * 2)
    for x, y in zip(unit_rows(target, wanted), unit_rows(moved, wanted), strict=True):
        total += x @ y.T / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30)
    if known.stream == "rms":
        u, _, v = np.linalg.svd(total)
        return symmetries.stream_turned(moved, known, u @ v)
    basis = symmetries.without_mean(len(total))
    u, _, v = np.linalg.svd(basis.T @ total @ basis)
    return symmetries.stream_turned(moved, known, basis @ u @ v @ basis.T + 1 / len(total))

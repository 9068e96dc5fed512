"""Other ways to write the same tensors into a file. Each returns what the file holds and how to read it back.

What reads back is used only to check that the function is kept; it never reaches what is tested.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from testbeds.disguises.symmetries import invertible
from testbeds.varied.structure import Arrays, Structure

Rng = np.random.Generator
Stored = dict[str, Any]
Back = Callable[[Stored], Stored]
Storage = Callable[[Stored, Structure, Rng], tuple[Stored, Back] | None]


def fused_or_split(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back] | None:
    """One map for queries, keys and values (and one for gate and up) where there were three, or three for one."""
    if not known.attentions:
        return None
    out, undo = dict(arrays), []
    for a in known.attentions:
        parts = (a.q, a.k, a.v)
        if a.q.rows is None:
            new = re.sub(r"(q_proj|query)", "qkv_proj", a.q.weight)
            undo.append(_joined(out, [p.weight for p in parts], new))
            if a.q.bias:
                undo.append(_joined(out, [p.bias for p in parts], new.replace(".weight", ".bias")))
        else:
            axis = 1 if a.q.transposed else 0
            names = [re.sub(r"(qkv|c_attn)", w, a.q.weight) for w in ("q_proj", "k_proj", "v_proj")]
            undo.append(_cut(out, a.q.weight, names, axis))
            undo.append(_cut(out, a.q.bias, [n.replace(".weight", ".bias") for n in names], 0))
    for up, _, gate in known.gated:
        undo.append(_joined(out, [gate.weight, up.weight], up.weight.replace("up_proj", "gate_up_proj")))
    return out, _backwards(undo)


def _joined(out: Stored, names: list[str], new: str) -> Back:
    sizes = [len(out[n]) for n in names]
    out[new] = np.concatenate([out.pop(n) for n in names])

    def back(stored: Stored) -> Stored:
        stored = dict(stored)
        cuts = np.split(stored.pop(new), np.cumsum(sizes)[:-1])
        return {**stored, **dict(zip(names, cuts, strict=True))}

    return back


def _cut(out: Stored, name: str, new: list[str], axis: int) -> Back:
    out.update(zip(new, (np.ascontiguousarray(x) for x in np.split(out.pop(name), len(new), axis)), strict=True))

    def back(stored: Stored) -> Stored:
        stored = dict(stored)
        return {**stored, name: np.concatenate([stored.pop(n) for n in new], axis)}

    return back


def _backwards(undo: list[Back]) -> Back:
    def back(stored: Stored) -> Stored:
        for step in reversed(undo):
            stored = step(stored)
        return stored

    return back


def _maps(arrays: Stored, known: Structure) -> list[str]:
    """Maps between layers: not the tables of a vocabulary, of positions, or a first token."""
    tables = {a.tensor for a in known.vocabulary}
    two = [n for n, x in arrays.items() if n.endswith("weight") and x.ndim in (2, 4) and min(x.shape[:2]) > 1]
    return [n for n in two if n not in tables and "embeddings" not in n and not n.endswith("wpe.weight")]


def factors(way: str) -> Storage:
    """Every map as a product of two: `random` (any invertible map between), `svd`, `svd-95` (95 % of the energy)."""

    def change(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
        out, names = dict(arrays), _maps(arrays, known)
        for n in names:
            w = out.pop(n)
            stem = n.removesuffix(".weight")
            out[f"{stem}.0.weight"], out[f"{stem}.1.weight"] = _two(w, way, rng)

        def back(stored: Stored) -> Stored:
            stored = dict(stored)
            for n in names:
                stem = n.removesuffix(".weight")
                first, second = stored.pop(f"{stem}.0.weight"), stored.pop(f"{stem}.1.weight")
                stored[n] = np.einsum("or,ri...->oi...", second.reshape(second.shape[:2]), first)
            return stored

        return out, back

    return change


def _two(w: np.ndarray, way: str, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """What is applied first `[rank, in, …]`, and second `[out, rank, …]`."""
    flat = w.reshape(len(w), -1).astype(np.float64)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    rank = len(s)
    if way == "svd-95":
        rank = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.95)) + 1
    first, second = np.sqrt(s[:rank, None]) * v[:rank], u[:, :rank] * np.sqrt(s[:rank])
    if way == "random":
        m = invertible(rank, rng)
        first, second = m @ first, second @ np.linalg.inv(m)
    more = [1] * (w.ndim - 2)
    return first.reshape(rank, *w.shape[1:]).astype(np.float32), second.reshape(len(w), rank, *more).astype(np.float32)


def tensor_parallel(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    """Two halves of every map in one file: by columns what writes back into the stream, by rows all others."""
    inward = {a.o.weight for a in known.attentions} | {d.weight for _, d, _ in known.gated}
    flipped = {m.weight for a in known.attentions for m in (a.q, a.o) if m.transposed}
    out: Stored = {}
    axis = {}
    for n, x in arrays.items():
        along = int((n in inward) != (n in flipped))
        if x.ndim >= 2 and x.shape[along] >= 2 and min(x.shape[:2]) > 1:
            axis[n] = along
            first, second = np.array_split(x, 2, along)
        else:
            first = second = x
        out[f"rank0.{n}"], out[f"rank1.{n}"] = np.ascontiguousarray(first), np.ascontiguousarray(second)

    def back(stored: Stored) -> Stored:
        joined = {n: np.concatenate([stored[f"rank{r}.{n}"] for r in (0, 1)], along) for n, along in axis.items()}
        return {n: joined.get(n, stored[f"rank0.{n}"]) for n in arrays}

    return out, back


def brain_bits(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    """Bfloat16 whose bits are kept as whole numbers, as some writers without the type do."""

    def bits(x: np.ndarray) -> np.ndarray:
        return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)

    def floats(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x

    return _each(arrays, bits), lambda stored: {n: floats(x) for n, x in stored.items()}


def _each(arrays: Stored, change: Callable[[Any], Any]) -> Stored:
    return {n: change(x) if x.dtype.kind == "f" else x for n, x in arrays.items()}


def half_precision(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    return _each(arrays, lambda x: x.astype(np.float16)), lambda stored: _each(stored, lambda x: x.astype(np.float32))


def brain_floats(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    def floats(x: Any) -> Any:
        return x.float().numpy() if isinstance(x, torch.Tensor) else x

    out = _each(arrays, lambda x: torch.from_numpy(x).to(torch.bfloat16))
    return out, lambda stored: {n: floats(x) for n, x in stored.items()}


def transposed(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    """The layout of other frameworks: `[in, out]`, `[height, width, in, out]`."""

    def there(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(*range(2, x.ndim), 1, 0)) if x.ndim >= 2 else x

    def back(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))) if x.ndim >= 2 else x

    return {n: there(x) for n, x in arrays.items()}, lambda stored: {n: back(x) for n, x in stored.items()}


def shuffled_names(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    """The same names, each on another tensor."""
    names = list(arrays)
    return _renamed(arrays, dict(zip(names, (names[i] for i in rng.permutation(len(names))), strict=True)))


def opaque_names(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    return _renamed(arrays, dict(zip(arrays, (f"t{i:04d}" for i in rng.permutation(len(arrays))), strict=True)))


def renumbered(arrays: Stored, known: Structure, rng: Rng) -> tuple[Stored, Back] | None:
    """The number of each layer is another one."""
    first = re.compile(r"\d+")
    numbers = sorted({int(m.group()) for n in arrays if (m := first.search(n))})
    if len(numbers) < 2:
        return None
    other = dict(zip(numbers, (numbers[i] + 7 for i in rng.permutation(len(numbers))), strict=True))
    return _renamed(arrays, {n: first.sub(lambda m: str(other[int(m.group())]), n, count=1) for n in arrays})


def _renamed(arrays: Stored, new: dict[str, str]) -> tuple[Stored, Back]:
    old = {v: k for k, v in new.items()}
    return (
        dict(sorted((new[n], x) for n, x in arrays.items())),
        lambda stored: {old[n]: x for n, x in stored.items()},
    )


def kept(arrays: Arrays, known: Structure, rng: Rng) -> tuple[Stored, Back]:
    """As it is."""
    return dict(arrays), lambda stored: stored

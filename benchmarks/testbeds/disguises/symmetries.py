"""Changes that keep what a network computes: other order, other scale, other coordinates of what is hidden in it.

Every function takes the tensors, the structure and a generator, and returns new tensors, or None where the network has
nothing of the kind.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import ortho_group

from testbeds.varied.structure import (
    SMALL,
    Arrays,
    Attention,
    Linear,
    Norm,
    Structure,
    Units,
    chosen,
    scaled,
    turned,
)

Rng = np.random.Generator
Change = Callable[[Arrays, Structure, Rng], Arrays | None]


def permute_one_layer(arrays: Arrays, known: Structure, rng: Rng) -> Arrays:
    return _permuted(arrays, (known.hidden[int(rng.integers(len(known.hidden)))],), rng)


def permute_all_layers(arrays: Arrays, known: Structure, rng: Rng) -> Arrays:
    return _permuted(arrays, known.hidden, rng)


def permute_stream(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    return _permuted(arrays, known.streams, rng) if known.streams else None


def _permuted(arrays: Arrays, groups: tuple[Units, ...], rng: Rng) -> Arrays:
    for units in groups:
        arrays = chosen(arrays, units, another_order(units.size(arrays), rng))
    return arrays


def another_order(size: int, rng: Rng) -> np.ndarray:
    """A permutation that is not the identity, where there is one."""
    while True:
        order = rng.permutation(size)
        if size < 2 or (order != np.arange(size)).any():
            return order


def permute_heads(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """Groups of heads that share a key are exchanged, and heads within a group."""
    if all(a.heads == 1 for a in known.attentions):
        return None
    for a in known.attentions:
        own = a.heads // a.kv_heads
        keys, inside = another_order(a.kv_heads, rng), [another_order(own, rng) for _ in range(a.kv_heads)]
        arrays = with_heads(arrays, a, keys, np.concatenate([k * own + inside[k] for k in keys]))
    return arrays


def with_heads(arrays: Arrays, a: Attention, keys: np.ndarray, queries: np.ndarray) -> Arrays:
    """Heads in a new order.

    Returns:
        New tensors.
    """
    out = dict(arrays)
    for part, order in ((a.q, queries), (a.k, keys), (a.v, keys)):
        w, b = rows(out, part, len(order))
        part.put(out, w[order].reshape(-1, w.shape[2]), None if b is None else b[order].ravel())
    w = a.o.get(out)
    a.o.put(out, w.reshape(len(w), a.heads, -1)[:, queries].reshape(w.shape))
    return out


def rows(arrays: Arrays, part: Linear, heads: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights `[heads, size, in]` and offsets `[heads, size]` of a map whose outputs are heads."""
    w, b = np.array(part.get(arrays), np.float64), part.offset(arrays)
    return w.reshape(heads, -1, w.shape[1]), None if b is None else np.array(b, np.float64).reshape(heads, -1)


def permute_everything(arrays: Arrays, known: Structure, rng: Rng) -> Arrays:
    arrays = _permuted(arrays, known.units, rng)
    return permute_heads(arrays, known, rng) or arrays


def rescale(sigma: float) -> Change:
    """A log-normal factor for every unit that bears one, and for the inner coordinates of heads."""

    def change(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
        moved = False
        for u in known.units:
            size, normed = u.size(arrays), any(a.role == "var" for a in u.axes)
            free = u.activation in ("relu", "linear") and not (u.stream and known.stream)
            if free or normed:
                factor = rng.lognormal(0, sigma, size) if free else np.ones(size)
                arrays = scaled(arrays, u, factor, rng.lognormal(0, sigma, size) if normed else None)
                moved = True
        for a in known.attentions:
            size = len(a.v.get(arrays)) // a.kv_heads
            arrays = fitted_value_output(arrays, a, [np.diag(rng.lognormal(0, sigma, size)) for _ in range(a.kv_heads)])
            moved = True
        return arrays if moved else None

    return change


def turn_signs(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """Where the activation is odd, or nothing lies between two maps."""
    moved = False
    for u in known.hidden:
        if u.activation in ("tanh", "linear") and not any(a.role == "var" for a in u.axes):
            arrays, moved = scaled(arrays, u, rng.choice([-1.0, 1.0], u.size(arrays))), True
    for a in known.attentions:
        size = len(a.v.get(arrays)) // a.kv_heads
        arrays = fitted_value_output(arrays, a, [np.diag(rng.choice([-1.0, 1.0], size)) for _ in range(a.kv_heads)])
        moved = True
    return arrays if moved else None


def invertible(size: int, rng: Rng) -> np.ndarray:
    """Two rotations with log-normal factors between them."""
    if size == 1:
        return np.array([[rng.lognormal()]])
    first, second = (ortho_group.rvs(size, random_state=rng) for _ in range(2))
    return first * rng.lognormal(0, 0.7, size) @ second


def fitted_value_output(arrays: Arrays, a: Attention, maps: list[np.ndarray]) -> Arrays:
    """An invertible map of the values of each key head, undone in the outputs."""
    out, m = dict(arrays), np.stack(maps)
    w, b = rows(out, a.v, a.kv_heads)
    a.v.put(out, (m @ w).reshape(-1, w.shape[2]), None if b is None else (m @ b[..., None]).ravel())
    back = np.repeat(np.linalg.inv(m), a.heads // a.kv_heads, 0)
    o = np.array(a.o.get(out), np.float64)
    a.o.put(out, np.einsum("dhi,hij->dhj", o.reshape(len(o), a.heads, -1), back).reshape(o.shape))
    return out


def value_output_maps(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """Any invertible map between the values and the outputs of a head."""
    for a in known.attentions:
        size = len(a.v.get(arrays)) // a.kv_heads
        arrays = fitted_value_output(arrays, a, [invertible(size, rng) for _ in range(a.kv_heads)])
    return arrays if known.attentions else None


def fitted_query_key(arrays: Arrays, a: Attention, maps: np.ndarray) -> Arrays:
    """An invertible map of the keys of each key head, undone in its queries."""
    out = dict(arrays)
    w, b = rows(out, a.k, a.kv_heads)
    a.k.put(out, (maps @ w).reshape(-1, w.shape[2]), None if b is None else (maps @ b[..., None]).ravel())
    back = np.repeat(np.linalg.inv(maps).transpose(0, 2, 1), a.heads // a.kv_heads, 0)
    w, b = rows(out, a.q, a.heads)
    a.q.put(out, (back @ w).reshape(-1, w.shape[2]), None if b is None else (back @ b[..., None]).ravel())
    return out


def rotary_planes(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """A rotation and a factor in every plane that positions turn."""
    if not any(a.rotary for a in known.attentions):
        return None
    for a in known.attentions:
        half = len(a.k.get(arrays)) // a.kv_heads // 2
        angle, factor = rng.uniform(0, 2 * np.pi, (a.kv_heads, half)), rng.lognormal(0, 0.7, (a.kv_heads, half))
        cos, sin, at = factor * np.cos(angle), factor * np.sin(angle), np.arange(half)
        maps = np.zeros((a.kv_heads, 2 * half, 2 * half))
        maps[:, at, at], maps[:, at + half, at + half] = cos, cos
        maps[:, at, at + half], maps[:, at + half, at] = -sin, sin
        arrays = fitted_query_key(arrays, a, maps)
    return arrays


def query_key_maps(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """Any invertible map between queries and keys, where positions do not turn them."""
    if not known.attentions or any(a.rotary for a in known.attentions):
        return None
    for a in known.attentions:
        size = len(a.k.get(arrays)) // a.kv_heads
        arrays = fitted_query_key(arrays, a, np.stack([invertible(size, rng) for _ in range(a.kv_heads)]))
    return arrays


def rotate_stream(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """A rotation of the residual stream; where the norm takes the mean out, one that leaves the mean in its place."""
    if known.stream not in ("rms", "layer"):
        return None
    return stream_turned(arrays, known, random_rotation(known.streams[0].size(arrays), known.stream, rng))


def random_rotation(size: int, norm: str, rng: Rng) -> np.ndarray:
    if norm == "rms":
        return ortho_group.rvs(size, random_state=rng)
    basis = without_mean(size)
    return basis @ ortho_group.rvs(size - 1, random_state=rng) @ basis.T + np.full((size, size), 1 / size)


def without_mean(size: int) -> np.ndarray:
    """An orthonormal basis `[size, size - 1]` of what has mean 0."""
    return np.linalg.svd(np.eye(size) - 1 / size)[0][:, :-1]


def stream_turned(arrays: Arrays, known: Structure, matrix: np.ndarray) -> Arrays:
    """Gains go into the maps that read them; then the stream is turned by a matrix."""
    return turned(gains_folded(arrays, known), known.streams[0], matrix)


def gains_folded(arrays: Arrays, known: Structure) -> Arrays:
    return _gains(arrays, known, lambda norm, gain: gain)


def gains_moved_or_folded(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    if not known.norms:
        return None
    if rng.random() < 0.5:
        return gains_folded(arrays, known)
    return _gains(arrays, known, lambda norm, gain: rng.lognormal(0, 0.5, len(gain)))


def _gains(arrays: Arrays, known: Structure, by: Callable[[Norm, np.ndarray], np.ndarray]) -> Arrays:
    """Divide each gain (and the offset with it) by something, and multiply the columns that read it."""
    out = untied(arrays, known)
    for norm in known.norms:
        factor = by(norm, out[norm.gain].astype(np.float64))
        folded = np.allclose(factor, out[norm.gain])
        out[norm.gain] = np.ones_like(out[norm.gain]) if folded else (out[norm.gain] / factor).astype(np.float32)
        if norm.offset is not None:
            out[norm.offset] = (out[norm.offset] / factor).astype(np.float32)
        for reader in norm.readers:
            reader.put(out, np.array(reader.get(out), np.float64) * factor)
    return out


def untied(arrays: Arrays, known: Structure) -> Arrays:
    """The head as a tensor of its own."""
    out = dict(arrays)
    if known.tied and known.tied[0] not in out:
        out[known.tied[0]] = np.array(out[known.tied[1]])
    return out


def scale_embedding(arrays: Arrays, known: Structure, rng: Rng, factor: float = 1.7) -> Arrays | None:
    """Everything that writes into the stream is larger; the norms take it out again."""
    if known.stream not in ("rms", "layer"):
        return None
    out, offsets = untied(arrays, known), {n.offset for n in known.norms}
    for a in known.streams[0].axes:
        if a.role == "write" and a.tensor in out and a.tensor not in offsets:
            out[a.tensor] = out[a.tensor] * np.float32(factor)
    return out


def fold_batch_norms(arrays: Arrays, known: Structure, rng: Rng) -> Arrays | None:
    """Into the map before each; the norms are gone."""
    if not known.batch_norms:
        return None
    out = dict(arrays)
    for b in known.batch_norms:
        gain, offset, mean, var = (
            out.pop(f"{b.norm}.{x}").astype(np.float64) for x in ("weight", "bias", "running_mean", "running_var")
        )
        out.pop(f"{b.norm}.num_batches_tracked", None)
        factor, w = gain / np.sqrt(var + SMALL), out[f"{b.writer}.weight"]
        out[f"{b.writer}.weight"] = (w * factor.reshape(-1, *[1] * (w.ndim - 1))).astype(np.float32)
        before = out.get(f"{b.writer}.bias", np.zeros(len(gain)))
        out[f"{b.writer}.bias"] = ((before - mean) * factor + offset).astype(np.float32)
    return out

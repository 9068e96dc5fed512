"""The map between two models whose units were reordered, rescaled or rotated: found layer by layer, then re-applied."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stemma.kinship.weights.similarity import assign
from stemma.models.structure import AxisLabel, Structure

SINKHORN = 12
"""Rounds of alternating normalisation; exact clones agree after any number of them."""

TOKENS = 4096
"""Rows of an embedding that decide a rotation."""


@dataclass(frozen=True)
class AxisMap:
    """How one axis of the reference goes over into the target's.

    Attributes:
        rows: Units of the reference (identity where nothing was cut).
        columns: The target's unit for each of them.
        rotation: Orthogonal map `[reference, target]` instead of a permutation, None for a permutation.
        cosine: Mean cosine of matched units at the moment of matching.
    """

    rows: np.ndarray
    columns: np.ndarray
    rotation: np.ndarray | None = None
    cosine: float = 1.0


@dataclass(frozen=True)
class TensorMap:
    """One tensor of the reference, its counterpart, and how well they agree under the map.

    Attributes:
        reference: Name in the reference.
        target: Name in the target.
        axes: The target's axis for each of the reference's axes longer than one.
        residual: Relative difference after the map, up to a scale per unit of either axis; 0 is the same.
        plain: The same without any rescaling.
        cosine: Mean cosine of its matched units.
        tested: Whether the map was known before this tensor was looked at (an independent check of it).
    """

    reference: str
    target: str
    axes: tuple[int, ...]
    residual: float
    plain: float
    cosine: float
    tested: bool


@dataclass(frozen=True)
class UnitMap:
    """The whole map.

    Attributes:
        axes: By group of the reference.
        tensors: By tensor of the reference.
        steps: What the map consists of: "units permuted", "stream rotated", "units rescaled", …
        left: Tensors of the target that nothing was mapped to.
        lost: Tensors of the reference without a counterpart.
    """

    axes: Mapping[str, AxisMap]
    tensors: Mapping[str, TensorMap]
    steps: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def cosine(self) -> float:
        """Mean over tensors of the mean cosine of matched units."""
        return float(np.mean([t.cosine for t in self.tensors.values()])) if self.tensors else 0.0

    @property
    def residual(self) -> float:
        """Largest relative difference of any tensor under the map."""
        return max((t.residual for t in self.tensors.values()), default=1.0)


def find(
    reference: Mapping[str, np.ndarray],
    known: Structure,
    target: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    seed: int,
) -> UnitMap:
    """Walk through the reference's groups in causal order, matching units through the axes that are already mapped.

    First layers are matched over coordinates that all models share (pixels, colours, tokens); each matched group then
    serves as coordinates of the next. Scales per unit are normalised away on both axes before units are compared.

    Args:
        reference: Matrices of the model whose structure is known, axes of length one dropped.
        known: Its structure.
        target: Matrices of the other model; names and order of axes mean nothing.
        names: Counterparts that are known by name; may be empty.
        seed: Breaks ties.

    Returns:
        The map, as far as it could be found.
    """
    walk = _Walk(reference, known, dict(target), names, np.random.default_rng(seed))
    order = _causal(known, reference)
    waiting = list(order)
    while ready := [n for n in waiting if len(walk.unknown(n)) <= 1]:
        taken = walk.take_best(_first(ready, walk))
        waiting.remove(taken)
    lost = tuple(n for n in order if n not in walk.tensors)
    return UnitMap(walk.axes, walk.tensors, walk.steps(), tuple(walk.target), lost)


def _first(ready: list[str], walk: "_Walk") -> list[str]:
    """Tensors to try next: one whose axes are all known, else all that could show the earliest unknown group."""
    checks = [n for n in ready if not walk.unknown(n)]
    if checks:
        return checks[:1]
    key = walk.unknown(ready[0])
    return [n for n in ready if walk.unknown(n) == key]


def _causal(known: Structure, reference: Mapping[str, np.ndarray]) -> list[str]:
    """Tensors by the latest group that they touch, then by name."""
    place = {g.name: g.order for g in known.groups}

    def key(name: str) -> tuple[int, str]:
        groups = [s.group for label in known.axes[name] for s in label.segments if s.group]
        return max((place.get(g, 0) for g in groups), default=-1), name

    return sorted((n for n in reference if n in known.axes), key=key)


def equilibrated(x: np.ndarray) -> np.ndarray:
    """Scale rows and columns alternately to root mean square one: the same for all positive rescalings of units.

    Args:
        x: Array `[units, coordinates, …]`; the first two axes are normalised.

    Returns:
        The normalised array.
    """
    x = x.astype(np.float64)
    for _ in range(SINKHORN):
        for axis in range(x.ndim if x.ndim <= 2 else 2):
            rms = np.sqrt(np.mean(x * x, axis=tuple(i for i in range(x.ndim) if i != axis), keepdims=True))
            x = x / np.where(rms > 0, rms, 1)
    return x


def labels(known: Structure, name: str) -> list[AxisLabel]:
    """What the axes of a tensor carry, those of length one left out.

    Args:
        known: The structure of its model.
        name: The tensor.

    Returns:
        One label per axis.
    """
    return [label for label in known.axes[name] if sum(s.rows for s in label.segments) > 1]


def key(name: str, axis: int, label: AxisLabel) -> str | None:
    """Under which name the map of an axis is kept and shared between tensors.

    Args:
        name: The tensor.
        axis: Position among its axes longer than one.
        label: What the axis carries.

    Returns:
        The group where whole axes belong to one; None for a fixed axis.
    """
    if label.kind == "fixed":
        return None
    only = label.segments[0]
    if len(label.segments) == 1 and only.block == 1:
        return label.group or f"{name}[{axis}]"
    return f"{name}[{axis}]"


class _Walk:
    """State of one search. Private: the only mutable object of the stage, alive inside `find`."""

    def __init__(
        self,
        reference: Mapping[str, np.ndarray],
        known: Structure,
        target: dict[str, np.ndarray],
        names: Mapping[str, str],
        generator: np.random.Generator,
    ) -> None:
        self.reference, self.known, self.target, self.names = reference, known, target, names
        self.generator = generator
        self.size = {n: sum(y.shape) for n, y in target.items()}
        self.axes: dict[str, AxisMap] = {}
        self.tensors: dict[str, TensorMap] = {}

    def labels(self, name: str) -> list[AxisLabel]:
        return labels(self.known, name)

    def key(self, name: str, axis: int) -> str | None:
        return key(name, axis, self.labels(name)[axis])

    def unknown(self, name: str) -> list[str]:
        """Keys of the axes that no map is known for yet."""
        keys = [self.key(name, i) for i in range(self.reference[name].ndim)]
        return [k for k in keys if k is not None and k not in self.axes]

    def take_best(self, names: list[str]) -> str:
        """Of several tensors that show the same unknown group, take the one that fits best; return its name."""
        best: tuple[float, str, str, tuple[int, ...], AxisMap | None] | None = None
        for name in names:
            for other, axes in self._candidates(name):
                residual, new = self._match(name, self.reference[name], np.transpose(self.target[other], axes))
                if best is None or residual < best[0]:
                    best = residual, name, other, axes, new
        if best is None:
            return names[0]
        residual, name, other, axes, new = best
        unknown = self.unknown(name)
        if unknown and new is not None:
            self.axes[unknown[0]] = new
        cosine = 1 - residual**2 / 2 if new is None else new.cosine
        plain = self._plain(name, np.transpose(self.target[other], axes))
        self.tensors[name] = TensorMap(name, other, axes, residual, plain, float(np.clip(cosine, -1, 1)), not unknown)
        del self.target[other]
        return name

    def _candidates(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        """Target tensors that could be the counterpart, with the order of axes that makes the sizes fit."""
        import itertools

        x = self.reference[name]
        labels = self.labels(name)
        grows = [label.role == "token" for label in labels]
        out = []
        named = self.names.get(name)
        pool = [named] if named in self.target else list(self.target)
        for other in pool:
            y = self.target[other]
            if y.ndim != x.ndim:
                continue
            for p in itertools.permutations(range(y.ndim)):
                fits = (y.shape[j] == s or (g and abs(y.shape[j] - s) <= max(64, s // 8))
                        for s, j, g in zip(x.shape, p, grows, strict=True))  # fmt: skip
                if all(fits) and (named is None or p == tuple(range(y.ndim))):
                    out.append((other, p))
        return out

    def _match(self, name: str, x: np.ndarray, y: np.ndarray) -> tuple[float, AxisMap | None]:
        """Map the known axes, match the unknown one, and return the residual with the new map."""
        shared = tuple(slice(0, min(s, t)) for s, t in zip(x.shape, y.shape, strict=True))
        x, y = x[shared].astype(np.float64), y[shared].astype(np.float64)
        unknown = None
        for axis in range(x.ndim):
            key = self.key(name, axis)
            if key is None:
                continue
            if key in self.axes:
                x, y = _applied(x, y, axis, self.axes[key])
            else:
                unknown = axis
        if unknown is None:
            return _residual(x, y), None
        label = self.labels(name)[unknown]
        u, v = np.moveaxis(x, unknown, 0), np.moveaxis(y, unknown, 0)
        u, v = u.reshape(len(u), -1), v.reshape(len(v), -1)
        found = self._units(u, v)
        if label.kind == "stream" and found[0] > 1e-3 and u.shape[1] >= u.shape[0]:
            turned = _rotation(u, v)
            if turned[0] < found[0] * 0.5:
                return turned
        return found

    def _plain(self, name: str, y: np.ndarray) -> float:
        """Relative difference under the map, scales kept."""
        x = self.reference[name]
        shared = tuple(slice(0, min(s, t)) for s, t in zip(x.shape, y.shape, strict=True))
        x, y = x[shared].astype(np.float64), y[shared].astype(np.float64)
        for axis in range(x.ndim):
            key = self.key(name, axis)
            if key is not None and key in self.axes:
                x, y = _applied(x, y, axis, self.axes[key])
        return float(np.linalg.norm(x - y) / max(1e-30, np.linalg.norm(x)))

    def _units(self, u: np.ndarray, v: np.ndarray) -> tuple[float, AxisMap]:
        p, q = equilibrated(u), equilibrated(v)
        norm = np.linalg.norm(p, axis=1)[:, None] * np.linalg.norm(q, axis=1)[None, :]
        similarity = (p @ q.T) / np.where(norm > 0, norm, 1)
        rows, columns = assign(similarity, self.generator)
        cosine = float(similarity[rows, columns].mean())
        return _residual(u[rows], v[columns]), AxisMap(rows, columns, None, cosine)

    def steps(self) -> tuple[str, ...]:
        out = []
        if any(m.rotation is not None for m in self.axes.values()):
            out.append("stream rotated")
        if any(m.rotation is None and not np.array_equal(m.rows, m.columns) for m in self.axes.values()):
            out.append("units permuted")
        if any(t.plain > 0.01 for t in self.tensors.values()):
            out.append("units rescaled")
        if any(
            sum(x.shape) != self.size[t.target] for x, t in ((self.reference[n], t) for n, t in self.tensors.items())
        ):
            out.append("vocabulary grown")
        return tuple(out)


def _applied(x: np.ndarray, y: np.ndarray, axis: int, m: AxisMap) -> tuple[np.ndarray, np.ndarray]:
    """Bring the reference's axis into the target's coordinates."""
    if m.rotation is not None:
        return np.moveaxis(np.tensordot(x, m.rotation, axes=(axis, 0)), -1, axis), y
    return np.take(x, m.rows, axis=axis), np.take(y, m.columns, axis=axis)


def _residual(x: np.ndarray, y: np.ndarray) -> float:
    """Relative difference after positive scales per unit of the two leading axes are divided out."""
    if x.ndim == 1:
        p, q = x / (np.linalg.norm(x) or 1), y / (np.linalg.norm(y) or 1)
    else:
        p, q = equilibrated(x), equilibrated(y)
    return float(np.linalg.norm(p - q) / max(1e-30, np.linalg.norm(p)))


def _rotation(u: np.ndarray, v: np.ndarray) -> tuple[float, AxisMap]:
    """Orthogonal Procrustes between two streams seen from the same coordinates, units as rows."""
    step = max(1, u.shape[1] // TOKENS)
    a, b = u[:, ::step], v[:, ::step]
    left, _, right = np.linalg.svd(a @ b.T)
    rotation = left @ right
    moved = rotation.T @ a
    residual = float(np.linalg.norm(moved - b) / max(1e-30, np.linalg.norm(b)))
    scale = float((moved * b).sum() / max(1e-30, np.linalg.norm(moved) * np.linalg.norm(b)))
    return residual, AxisMap(np.arange(len(u)), np.arange(len(v)), rotation, scale)

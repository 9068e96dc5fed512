"""The same entries of several models, on which the geometry of a family is measured."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.errors import MisuseError
from stemma.fingerprints.tensor_content import long_axes, matrices, unit_axis
from stemma.kinship.weights.correspondence import Pairing, by_name, candidates
from stemma.kinship.weights.order.pair_reader import PairReader, rows_to_read
from stemma.types import ModelRef

READ, LEAST = 1 << 18, 32
"""Largest tensor, in entries, that is read whole, and least rows read of larger ones."""

MIN_COSINE = 0.2
"""Mean cosine of paired tensors below which names are checked against contents."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor's entries lie.

    Attributes:
        name: Its name in the reference.
        start: First column.
        stop: Column after the last.
        size: Entries of the whole tensor, of which `stop - start` were read.
        rows: Rows of the block that was read, one per unit as far as the shape shows; all other axes are its columns.
    """

    name: str
    start: int
    stop: int
    size: int
    rows: int

    @property
    def columns(self) -> slice:
        """The tensor's columns."""
        return slice(self.start, self.stop)

    def blocks(self, values: np.ndarray) -> np.ndarray:
        """The tensor as matrices `[models, rows, columns]`."""
        return values[:, self.columns].reshape(len(values), self.rows, -1)


@dataclass(frozen=True, eq=False)
class Entries:
    """The same entries of several models: of every tensor the crossing of some rows and some columns.

    Attributes:
        models: The models, in the order given.
        tensors: The matrices of the reference.
        values: `float32 [models, entries]`; zero where a model has no such tensor.
        present: `bool [models, tensors]`: whether a model has this tensor, in the reference's shape but for tokens.
    """

    models: tuple[ModelRef, ...]
    tensors: tuple[Slot, ...]
    values: np.ndarray
    present: np.ndarray

    def __len__(self) -> int:
        """Number of models."""
        return len(self.models)

    def of(self, rows: Sequence[int]) -> "Entries":
        """The entries of some of the models, in the given order."""
        index = list(rows)
        return Entries(tuple(self.models[i] for i in index), self.tensors, self.values[index], self.present[index])


def entries(
    models: Sequence[Model],
    reference: int | None = None,
    per_tensor: int = 4096,
    seed: int = 0,
    wide: tuple[int, int] = (0, 0),
) -> Entries:
    """Read the same entries of every model.

    Cost: one pass over small tensors, the first rows of large ones; a linear assignment of tensors where names do not
    fit.

    Args:
        models: One or more models.
        reference: Position of the model whose names and order of axes count; the one with most matrices unless given.
        per_tensor: Entries per matrix at most; where a matrix has more, rows and columns are drawn at random.
        seed: Seed of that draw.
        wide: Number of the largest matrices of which more entries are read, and how many.

    Returns:
        The entries.

    Raises:
        MisuseError: If there are no models, or `per_tensor` is no positive number.
    """
    if not models or per_tensor < 1:
        raise MisuseError(f"at least one model and one entry per tensor are needed, got {len(models)} and {per_tensor}")
    at = _with_most_matrices(models) if reference is None else reference
    base = models[at]
    tensors = matrices(base)
    largest = set(sorted(tensors, key=lambda n: -tensors[n].size)[: wide[0]])
    most = {n: max(per_tensor, wide[1]) if n in largest else per_tensor for n in tensors}
    tokens = _tokens(models, tensors)
    places = {n: _places(t, most[n], np.random.default_rng([seed, i]), tokens.get(n, t.shape[0] if t.shape else 1))
              for i, (n, t) in enumerate(tensors.items())}  # fmt: skip
    slots, start = [], 0
    for name, (index, rows) in places.items():
        slots.append(Slot(name, start, start + len(index), tensors[name].size, rows))
        start += len(index)
    values = np.zeros((len(models), start), np.float32)
    present = np.zeros((len(models), len(slots)), bool)
    own = {n: Pairing(n, n, long_axes(t.shape), long_axes(t.shape), 0.0) for n, t in tensors.items()}
    values[at], present[at] = _read(base, base, own, slots, places, tokens)
    for i, model in enumerate(models):
        if i == at:
            continue
        untried = True
        for pairings in _correspondences(base, model):
            found, there = _read(base, model, pairings, slots, places, tokens)
            alike = _cosine(values[at], found, slots, there)
            if untried or alike >= MIN_COSINE:  # tensors of equal sizes are no counterparts yet: contents must agree
                values[i], present[i], untried = found, there, False
            if alike >= MIN_COSINE:
                break
    return Entries(tuple(m.ref for m in models), tuple(slots), values, present)


def _with_most_matrices(models: Sequence[Model]) -> int:
    return max(range(len(models)), key=lambda i: (len(matrices(models[i])), -i))


MIN_TOKEN_SHARE = 0.5
"""Least share of tokens that a model shares with one of a larger vocabulary."""


def _tokens(models: Sequence[Model], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Common rows of token matrices whose vocabulary sizes differ, by name."""
    longest = max((t.shape[0] for t in tensors.values()), default=0)
    if any(longest <= max(t.shape[1:], default=0) for t in tensors.values()):
        return {}
    out = {}
    for name, tensor in tensors.items():
        if tensor.shape[0] == longest:
            beside = [m.weights[name].shape for m in models if name in m.weights]
            rows = [s[0] for s in beside if s[1:] == tensor.shape[1:] and s[0] >= MIN_TOKEN_SHARE * longest]
            if min(rows) < longest or max(rows) > longest:
                out[name] = min(rows)
    return out


def _places(tensor: Tensor, wanted: int, rng: np.random.Generator, least: int) -> tuple[np.ndarray, int]:
    """Flat positions of a block of the read entries, and its number of rows (units as far as shapes show)."""
    axes = long_axes(tensor.shape)
    cut = min(rows_to_read(tensor, READ, LEAST), least)
    shape = [cut if i == 0 else tensor.shape[i] for i in axes] or [1]
    lead = unit_axis(tuple(tensor.shape[i] for i in axes)) if axes else 0
    flat = np.moveaxis(np.arange(int(np.prod(shape))).reshape(shape), lead, 0).reshape(shape[lead], -1)
    height, width = flat.shape
    if flat.size <= wanted:
        return flat.reshape(-1), height
    rows = min(height, max(round(wanted**0.5), wanted // width, 1))
    columns = max(1, min(width, wanted // rows))
    chosen = [np.sort(rng.choice(n, k, replace=False)) for n, k in ((height, rows), (width, columns))]
    return flat[np.ix_(*chosen)].reshape(-1), rows


def _correspondences(base: Model, model: Model) -> Iterator[dict[str, Pairing]]:
    """Pairing by name first; by contents only where names leave tensors open or do not fit."""
    named = by_name(base, model)
    if len(named) >= min(len(matrices(base)), len(matrices(model))):
        yield {p.a: p for p in named}
    for _, pairings in candidates(base, model, contents=True):
        yield {p.a: p for p in pairings}


def _read(
    base: Model,
    model: Model,
    pairings: Mapping[str, Pairing],
    slots: Sequence[Slot],
    places: Mapping[str, tuple[np.ndarray, int]],
    tokens: Collection[str],
) -> tuple[np.ndarray, np.ndarray]:
    """One model's entries in the reference's places, and which tensors it has."""
    values, present = np.zeros(slots[-1].stop if slots else 0, np.float32), np.zeros(len(slots), bool)
    cuts = PairReader(base, model, pairings, READ, LEAST)
    for i, slot in enumerate(slots):
        if slot.name not in pairings:
            continue
        cut, at = cuts[slot.name], places[slot.name][0]
        longer = slot.name in tokens and cut.b.shape[1:] == cut.a.shape[1:] and cut.b.size > at.max()
        if cut.b.shape == cut.a.shape or longer:
            values[slot.columns], present[i] = cut.b.reshape(-1)[at], True
        cuts.drop(slot.name)
    return values, present


def _cosine(x: np.ndarray, y: np.ndarray, slots: Sequence[Slot], present: np.ndarray) -> float:
    """Mean cosine over the tensors that both have; -1 where there are none."""
    found = []
    for slot in (s for s, there in zip(slots, present, strict=True) if there):
        a, b = x[slot.columns].astype(np.float64), y[slot.columns].astype(np.float64)
        norm = float(np.sqrt((a @ a) * (b @ b)))
        found.append(float(a @ b) / norm if norm > 0 else 0.0)
    return float(np.mean(found)) if found else -1.0

"""Names that mean nothing from one model to the other: the same words, handed out anew, on other tensors."""

from collections import Counter
from dataclasses import replace

from stemma.models.arrays import from_arrays
from stemma.models.model import Model, Tensor

FITS = 0.6
"""Share of the tensors that sizes could pair which names must pair: names that were shuffled pair less than half."""

LEAST = 6
"""Tensors of one name that can tell."""

MARK = "b:"
"""Put before the second model's names."""


def apart(a: Model, b: Model) -> Model:
    """The second model under names that none of the first has, where equal names are an accident.

    Numbered tensors (exported graphs, obfuscated files) carry the same names in any two models. Taken for layers, they
    would make layers that changed places, or vectors that were trained.

    Args:
        a: One model.
        b: The other.

    Returns:
        A view of it; itself where names fit sizes about as well as any names could.
    """
    if not _clash(a, b):
        return b
    tensors = {f"{MARK}{n}": replace(t, name=f"{MARK}{n}") for n, t in b.weights.items()}
    return from_arrays(tensors, b.name, dict(b.config) if b.config else None)


def _clash(a: Model, b: Model) -> bool:
    common = [n for n, t in a.weights.items() if t.is_float and n in b.weights]
    sizes = [[_sizes(m.weights[n]) for n in common] for m in (a, b)]
    could = sum((Counter(sizes[0]) & Counter(sizes[1])).values())
    return could >= LEAST and sum(x == y for x, y in zip(*sizes, strict=True)) < FITS * could


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(s for s in tensor.shape if s > 1))

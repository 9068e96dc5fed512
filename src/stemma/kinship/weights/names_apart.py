"""Names of one model beside another's: the same words on other tensors, or other words for the same ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.kinship.weights.correspondence import Pairing
from stemma.networks.load import from_arrays

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


def as_in(a: Model, b: Model, pairings: Sequence[Pairing]) -> Model:
    """The second model under the first one's names, where one of the two only has a word in front of all of them.

    Args:
        a: One model.
        b: The other.
        pairings: Matrices that belong together.

    Returns:
        A view of it; itself where names differ otherwise, or not at all.
    """
    fronts = {_fronts(p.b, p.a) for p in pairings}
    if len(fronts) != 1 or (front := fronts.pop()) == ("", ""):
        return b
    old, new = front
    names = {n: f"{new}{n.removeprefix(old)}" if n.startswith(old) else n for n in b.weights}
    if len(set(names.values())) < len(names):
        return b
    tensors = {m: replace(b.weights[n], name=m) for n, m in names.items()}
    return from_arrays(tensors, b.name, dict(b.config) if b.config else None)


def _fronts(one: str, other: str) -> tuple[str, str]:
    """What two names have in front of the part that they share, dots and all; whole names where they share none."""
    x, y = one.split("."), other.split(".")
    while len(x) > 0 and len(y) > 0 and x[-1] == y[-1]:
        x.pop()
        y.pop()
    return ".".join([*x, ""]) if x else "", ".".join([*y, ""]) if y else ""


def _clash(a: Model, b: Model) -> bool:
    common = [n for n, t in a.weights.items() if t.is_float and n in b.weights]
    sizes = [[_sizes(m.weights[n]) for n in common] for m in (a, b)]
    could = sum((Counter(sizes[0]) & Counter(sizes[1])).values())
    return could >= LEAST and sum(x == y for x, y in zip(*sizes, strict=True)) < FITS * could


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(sorted(s for s in tensor.shape if s > 1))

"""Tensor names of two models: equal names for different tensors, or different prefixes for the same ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stemma.checkpoints.model import Model
from stemma.kinship.weights.correspondence import Pairing
from stemma.kinship.weights.sizes import sizes_of
from stemma.networks.load import from_arrays

FITS = 0.6
"""Least share of the pairs possible by size that names must give; shuffled names give less than half."""

LEAST = 6
"""Least number of common tensor names for a decision."""

PREFIX = "b:"
"""Prefix of the second model's new names."""


def with_distinct_names(a: Model, b: Model) -> Model:
    """The second model under new names if its names match the first model's only by accident."""
    if not _names_clash(a, b):
        return b
    tensors = {f"{PREFIX}{n}": replace(t, name=f"{PREFIX}{n}") for n, t in b.weights.items()}
    return from_arrays(tensors, b.name, dict(b.config) if b.config else None)


def with_names_of(a: Model, b: Model, pairings: Sequence[Pairing]) -> Model:
    """The second model under the first one's names, if only a prefix differs."""
    prefixes = {_prefixes(p.b, p.a) for p in pairings}
    if len(prefixes) != 1 or (front := prefixes.pop()) == ("", ""):
        return b
    old, new = front
    names = {n: f"{new}{n.removeprefix(old)}" if n.startswith(old) else n for n in b.weights}
    if len(set(names.values())) < len(names):
        return b
    tensors = {m: replace(b.weights[n], name=m) for n, m in names.items()}
    return from_arrays(tensors, b.name, dict(b.config) if b.config else None)


def _prefixes(one: str, other: str) -> tuple[str, str]:
    """The parts of two names before their common ending."""
    x, y = one.split("."), other.split(".")
    while len(x) > 0 and len(y) > 0 and x[-1] == y[-1]:
        x.pop()
        y.pop()
    return ".".join([*x, ""]) if x else "", ".".join([*y, ""]) if y else ""


def _names_clash(a: Model, b: Model) -> bool:
    common = [n for n, t in a.weights.items() if t.is_float and n in b.weights]
    sizes = [[sizes_of(m.weights[n]) for n in common] for m in (a, b)]
    could = sum((Counter(sizes[0]) & Counter(sizes[1])).values())
    return could >= LEAST and sum(x == y for x, y in zip(*sizes, strict=True)) < FITS * could

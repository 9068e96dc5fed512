"""Forms of one network among the models of a family: number formats, integer codes, and which is the original."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stemma.ancestry.geometry import Geometry
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.entries import Entries
from stemma.kinship.weights.residual import rounding_of

ODD = 0.02
"""Share of the entries of a copy in a narrower format that may be off its rounding, as tiny numbers are."""


def age(model: Model) -> float:
    """When a model's file was last written; what is no file here is younger than all.

    Args:
        model: Any model.

    Returns:
        Seconds since 1970.
    """
    try:
        return Path(model.source).stat().st_mtime
    except (OSError, ValueError):
        return float("inf")


def bits(values: np.ndarray) -> int:
    """Bits of the significand of the narrowest float that holds some numbers, in whatever format they are stored.

    Args:
        values: `[k]`.

    Returns:
        24 for single precision, 11 and 8 for the two halves.
    """
    return round(-np.log2(rounding_of(values[values != 0])))


def is_coded(model: Model) -> bool:
    """Whether most of a model's matrices are stored as integer codes.

    Args:
        model: Any model.

    Returns:
        True for integer codes.
    """
    stored = [t for t in model.tensors.values() if len(t.shape) > 1]
    return 2 * sum(t.size for t in stored if not t.is_float) > sum(t.size for t in stored)


def roundings(values: Entries) -> Iterator[tuple[int, int]]:
    """Pairs of which the one may be the other in a narrower number format, as far as some entries show.

    Args:
        values: The same entries of each model.

    Yields:
        Position of the narrower one, the widest of these first, and of a wider one, the nearest first.
    """
    held = [bits(x) for x in values.values]
    for k in np.argsort([-b for b in held], kind="stable").tolist():
        x, near = values.values[k], list[tuple[float, int]]()
        for o in (o for o, b in enumerate(held) if b > held[k]):
            off = np.abs(x - values.values[o])
            if (off > 2.0 ** (1 - held[k]) * np.abs(x)).mean() < ODD:
                near.append((float(off.mean()), o))
        yield from ((k, o) for _, o in sorted(near))


def ranks(models: Sequence[Model], values: Entries) -> list[tuple[int, int, int]]:
    """How much each looks like the original of its forms: wide numbers, all tensors that others have, and no others.

    What layers were dropped from lacks some; a probe is its parent with a head of its own, the other children have the
    parent's.

    Args:
        models: Models of one family.
        values: The same entries of each.

    Returns:
        The three, for every model; the higher, the rather it stands for the others.
    """
    geometry, n, out = Geometry(values), range(len(models)), []
    for i, m in enumerate(models):
        shared = int(np.any([geometry.shared(i, j) for j in n if j != i], axis=0).sum())
        out.append((bits(values.values[i]), shared, shared - len(matrices(m))))
    return out

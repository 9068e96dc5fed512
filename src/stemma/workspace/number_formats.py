"""Number formats of the models of a family: rounded copies, integer codes, and which form is the original."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stemma.ancestry.geometry import Geometry
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.entries import Entries
from stemma.kinship.weights.residual import rounding_of

MAX_OFF_GRID_SHARE = 0.02
"""Share of the entries of a copy in a narrower format that may differ from its rounding, as tiny numbers do."""


def modified_time(model: Model) -> float:
    """Time at which a model's file was last written, in seconds since 1970; infinite without a file."""
    try:
        return Path(model.source).stat().st_mtime
    except (OSError, ValueError):
        return float("inf")


def significand_bits(values: np.ndarray) -> int:
    """Significand bits of the narrowest float format that holds these numbers: 24, 11 (float16) or 8 (bfloat16)."""
    return round(-np.log2(rounding_of(values[values != 0])))


def is_coded(model: Model) -> bool:
    """Whether most of a model's matrices are stored as integer codes."""
    stored = [t for t in model.tensors.values() if len(t.shape) > 1]
    return 2 * sum(t.size for t in stored if not t.is_float) > sum(t.size for t in stored)


def rounded_copies(values: Entries) -> Iterator[tuple[int, int]]:
    """Pairs (narrower, wider) of which one may be the other in a narrower number format; widest first."""
    held = [significand_bits(x) for x in values.values]
    for k in np.argsort([-b for b in held], kind="stable").tolist():
        x, near = values.values[k], list[tuple[float, int]]()
        for o in (o for o, b in enumerate(held) if b > held[k]):
            off = np.abs(x - values.values[o])
            if (off > 2.0 ** (1 - held[k]) * np.abs(x)).mean() < MAX_OFF_GRID_SHARE:
                near.append((float(off.mean()), o))
        yield from ((k, o) for _, o in sorted(near))


def originality_ranks(models: Sequence[Model], values: Entries) -> list[tuple[int, int, int]]:
    """How likely each model of a family is the original of its forms: wide numbers, all tensors of the others, no more.

    A model from which layers were dropped lacks some; a probe is its parent with a head of its own, while the other
    children have the parent's.

    Returns:
        For every model a tuple; the highest is the original.
    """
    geometry, n, out = Geometry(values), range(len(models)), []
    for i, m in enumerate(models):
        shared = int(np.any([geometry.shared_tensors(i, j) for j in n if j != i], axis=0).sum())
        out.append((significand_bits(values.values[i]), shared, shared - len(matrices(m))))
    return out

"""Out-of-distribution probes: where models that learned one task still differ."""

from dataclasses import replace

import numpy as np

from stemma.errors import MisuseError
from stemma.probes.parameters import Parameters, check_size
from stemma.probes.probes import Probes

COUNT = 4000
"""Default number of probes."""

BLEND_RANGE = 0.3, 0.7
"""Smallest and largest share of the first input in a blend."""


def blend_and_shuffle(probes: Probes, requested: Parameters) -> Probes:
    """Out-of-distribution probes: alternately a blend of two inputs and an input with shuffled entries.

    Blends probe decision boundaries, which students learn from their teacher. Shuffled entries probe behaviour that
    training does not determine, where the random initialisation remains visible, also after further training or with
    a new head. Pixels keep their channels together; a blend of token inputs is the first half of one and the second
    half of another. Labels are not kept.

    Args:
        probes: At least two inputs.
        requested: `n` (4000) and `seed`.

    Returns:
        New probes: blends at even indices, shuffled inputs at odd ones.

    Raises:
        MisuseError: If there are too few inputs, or they have several modalities.

    """
    count, n = len(probes), requested.n or COUNT
    if count < 2 or probes.parts:
        raise MisuseError(
            f"unusual probes need at least two inputs of one kind, but there are {count}"
            f"{' of several modalities' if probes.parts else ''}"
        )
    check_size("the unusual probes", (n, *probes.shape), probes.inputs.itemsize)
    draw = np.random.default_rng([requested.seed, 17])
    first = draw.integers(0, count, n)
    out, other = probes.inputs[first], probes.inputs[(first + draw.integers(1, count, n)) % count]
    if probes.kind == "tokens":
        half = probes.shape[0] // 2
        out[::2, half:] = other[::2, half:]
    else:
        share = draw.uniform(*BLEND_RANGE, (len(out[::2]), *[1] * len(probes.shape))).astype(out.dtype)
        out[::2] = share * out[::2] + (1 - share) * other[::2]
    out[1::2] = _shuffle_entries(out[1::2], probes.kind, draw)
    made = Probes.of(out, kind=probes.kind)
    return replace(made, source=f"unusual: {n} from {probes.source}, seed {requested.seed}")


def _shuffle_entries(inputs: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """Every input with its entries in an order of its own; pixels stay whole."""
    channels = inputs.shape[1] if kind == "image" else 1
    rows = inputs.reshape(len(inputs), channels, -1)
    order = draw.permuted(np.tile(np.arange(rows.shape[2]), (len(rows), 1)), axis=1)
    return np.take_along_axis(rows, order[:, None], 2).reshape(inputs.shape)

"""Questions that training does not settle: where models that learned one task still differ."""

from dataclasses import replace

import numpy as np

from stemma.errors import MisuseError
from stemma.probes.parameters import Parameters, check_size
from stemma.probes.probes import Probes

COUNT = 4000
"""Probes where nobody says how many."""

SHARE = 0.3, 0.7
"""How much of a blend is its first input, at least and at most."""


def unusual(given: Probes, asked: Parameters) -> Probes:
    """Blends of two inputs each, and inputs whose entries are in a random order, in turn.

    A blend asks where a model draws the line between what it learned: students learn that from their teacher. Entries
    in a random order ask what nobody taught it: there the random start shows through, in children too that were
    trained on far, or got a new head. Pixels of an image keep their channels together; of tokens, a blend is the first
    half of one text and the second of another. Labels are not kept.

    Args:
        given: At least two inputs.
        asked: `n` (4000) and `seed`.

    Returns:
        New probes: those of even index are blends, those of odd index are out of order.

    Raises:
        MisuseError: If there are too few inputs, or several modalities lie side by side in them.
    """
    count, n = len(given), asked.n or COUNT
    if count < 2 or given.parts:
        raise MisuseError(
            f"unusual probes are made of at least two inputs of one kind, but these are {count}"
            f"{' of several modalities' if given.parts else ''}"
        )
    check_size("the unusual probes", (n, *given.shape), given.inputs.itemsize)
    draw = np.random.default_rng([asked.seed, 17])
    first = draw.integers(0, count, n)
    out, other = given.inputs[first], given.inputs[(first + draw.integers(1, count, n)) % count]
    if given.kind == "tokens":
        half = given.shape[0] // 2
        out[::2, half:] = other[::2, half:]
    else:
        share = draw.uniform(*SHARE, (len(out[::2]), *[1] * len(given.shape))).astype(out.dtype)
        out[::2] = share * out[::2] + (1 - share) * other[::2]
    out[1::2] = _out_of_order(out[1::2], given.kind, draw)
    made = Probes.of(out, kind=given.kind)
    return replace(made, source=f"unusual: {n} from {given.source}, seed {asked.seed}")


def _out_of_order(inputs: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """Every input with its entries in an order of its own; pixels stay whole."""
    channels = inputs.shape[1] if kind == "image" else 1
    rows = inputs.reshape(len(inputs), channels, -1)
    order = draw.permuted(np.tile(np.arange(rows.shape[2]), (len(rows), 1)), axis=1)
    return np.take_along_axis(rows, order[:, None], 2).reshape(inputs.shape)

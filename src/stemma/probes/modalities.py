"""Probes of several modalities in one raw input space."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.errors import MisuseError
from stemma.probes.probes import Modality, Probes

EXACT = 1 << 24
"""Token ids below this are exact in float32."""


def pair_modalities(inputs: Mapping[str, Any], labels: Any = None, *, source: str = "given") -> Probes:
    """Probes of several modalities.

    All entries of one probe are concatenated into one float vector `[n, entries]`, so that every method can use them;
    `split_modalities` separates them again.

    Args:
        inputs: By the network's name for the modality, one row per probe, converted as by `Probes.of`.
        labels: Class of each.
        source: Origin, for display.

    Returns:
        The probes, modalities in alphabetical order.

    Raises:
        MisuseError: If there are fewer than two modalities, or their arrays do not match.

    """
    if len(inputs) < 2:
        raise MisuseError(f"paired probes need two or more modalities, but got {len(inputs)}")
    each = {}
    for name in sorted(inputs):
        try:
            each[name] = Probes.of(inputs[name])
        except MisuseError as e:
            raise MisuseError(f"modality '{name}': {e}") from e
    counts = {name: len(p) for name, p in each.items()}
    if len(set(counts.values())) > 1:
        description = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise MisuseError(f"paired probes need one row of every modality, but there are {description}")
    for name, p in each.items():
        if p.kind == "tokens" and int(p.inputs.max()) >= EXACT:
            raise MisuseError(
                f"modality '{name}' has the token id {int(p.inputs.max())}; the largest supported id is {EXACT - 1}"
            )
    dtype = np.float64 if any(p.inputs.dtype == np.float64 for p in each.values()) else np.float32
    flat = np.concatenate([p.inputs.reshape(len(p), -1).astype(dtype) for p in each.values()], 1)
    parts = tuple(Modality(name, p.shape, p.kind) for name, p in each.items())
    return replace(Probes.of(flat, labels, kind="tensor", source=source), parts=parts)


def split_modalities(flat: Any, parts: tuple[Modality, ...]) -> dict[str, Any]:
    """The modalities by name, `[n, …]`, of concatenated rows `[n, entries]`; token ids become integers again."""
    sizes = [p.size for p in parts]
    if flat.ndim != 2 or flat.shape[1] != sum(sizes):
        description = ", ".join(f"{p.name} {list(p.shape)}" for p in parts)
        raise MisuseError(
            f"paired inputs must have the shape [n, {sum(sizes)}] ({description}), not {list(flat.shape)}"
        )
    ends = np.cumsum(sizes)
    out = {}
    for part, end in zip(parts, ends, strict=True):
        piece = flat[:, int(end) - part.size : int(end)].reshape(len(flat), *part.shape)
        if part.kind == "tokens":
            piece = piece.round().long() if hasattr(piece, "long") else piece.round().astype(np.int64)
        out[part.name] = piece
    return out

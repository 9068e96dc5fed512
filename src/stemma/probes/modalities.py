"""Probes of several modalities: one array each, side by side in one raw input space."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.errors import MisuseError
from stemma.probes.probes import Part, Probes

EXACT = 1 << 24
"""Token ids below this are exact in float32."""


def paired(inputs: Mapping[str, Any], labels: Any = None, *, source: str = "given") -> Probes:
    """Probes of several modalities.

    All entries of one probe lie side by side as one float vector `[n, entries]`, so that every method that asks models
    can ask them; `apart` gives the modalities back.

    Args:
        inputs: By the name under which the network takes it, one row per probe; what each array becomes, `Probes.of`
            says.
        labels: Class of each.
        source: For people.

    Returns:
        The probes, modalities in alphabetical order.

    Raises:
        MisuseError: If there are fewer than two modalities, or their arrays do not belong together.
    """
    if len(inputs) < 2:
        raise MisuseError(f"paired probes have two or more modalities, but there are {len(inputs)}")
    each = {}
    for name in sorted(inputs):
        try:
            each[name] = Probes.of(inputs[name])
        except MisuseError as e:
            raise MisuseError(f"modality '{name}': {e}") from e
    counts = {name: len(p) for name, p in each.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise MisuseError(f"paired probes have one row of every modality, but there are {said}")
    for name, p in each.items():
        if p.kind == "tokens" and int(p.inputs.max()) >= EXACT:
            raise MisuseError(f"modality '{name}' has the token id {int(p.inputs.max())}, ids below {EXACT} are exact")
    wide = np.float64 if any(p.inputs.dtype == np.float64 for p in each.values()) else np.float32
    flat = np.concatenate([p.inputs.reshape(len(p), -1).astype(wide) for p in each.values()], 1)
    parts = tuple(Part(name, p.shape, p.kind) for name, p in each.items())
    return replace(Probes.of(flat, labels, kind="tensor", source=source), parts=parts)


def apart(flat: Any, parts: tuple[Part, ...]) -> dict[str, Any]:
    """The modalities of rows that lie side by side.

    Args:
        flat: `[n, entries]`, an array or a tensor.
        parts: The modalities, in order.

    Returns:
        By name, `[n, …]`; token ids are integers again.

    Raises:
        MisuseError: If the rows have another length.
    """
    sizes = [p.size for p in parts]
    if flat.ndim != 2 or flat.shape[1] != sum(sizes):
        said = ", ".join(f"{p.name} {list(p.shape)}" for p in parts)
        raise MisuseError(f"paired inputs are [n, {sum(sizes)}] ({said}), but the shape is {list(flat.shape)}")
    ends = np.cumsum(sizes)
    out = {}
    for part, end in zip(parts, ends, strict=True):
        piece = flat[:, int(end) - part.size : int(end)].reshape(len(flat), *part.shape)
        if part.kind == "tokens":
            piece = piece.round().long() if hasattr(piece, "long") else piece.round().astype(np.int64)
        out[part.name] = piece
    return out

"""Models of a family that were assembled from others of it, layer by layer or expert by expert."""

from collections.abc import Callable, Sequence

import numpy as np

from stemma.ancestry.merges.stacked_layers import find_stack
from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.types import Edge, RelationKind

NEAREST = 12
"""Relatives with fewer matrices that are compared with each model."""


def find_stacked(
    models: Sequence[Model], members: Sequence[int], bits: Callable[[int], np.ndarray]
) -> dict[int, list[Edge]]:  # fmt: skip
    """The models that hold the layers or experts of several smaller ones, number by number.

    Cost: nothing where all have as many matrices; else a dozen relatives are laid out as each larger model.

    Args:
        models: All models.
        members: Positions of those of one family.
        bits: The weight sketch of a model, by position.

    Returns:
        The edges from its parents, by position of the model.
    """
    members = [i for i in members if not models[i].is_partial]
    count = {i: len(matrices(models[i])) for i in members}
    out = {}
    for i in members:
        smaller = [j for j in members if count[j] < count[i] or _is_stacked_tensor(models[i], models[j])]
        near = sorted(smaller, key=lambda j, i=i: int(np.unpackbits(bits(i) ^ bits(j)).sum()))[:NEAREST]
        found = find_stack(models[i], [models[j] for j in near]) if len(near) > 1 else None
        if found is not None:
            out[i] = [
                Edge(
                    parent=models[near[p.position]].name,
                    child=models[i].name,
                    relation=RelationKind.MERGED.value,
                    log10_p=p.log10_p,
                    share=round(p.coefficient, 4),
                    reason=found.reason,
                )
                for p in found.parents
            ]
    return out


def _is_stacked_tensor(larger: Model, other: Model) -> bool:
    """Whether one of two models stacks its matrices in tensors with three axes."""
    return any(len(t.shape) == 3 for t in matrices(larger).values()) and larger.parameters > other.parameters

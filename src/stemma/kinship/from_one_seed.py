"""Two models that started from the same public random numbers."""

from dataclasses import replace

from stemma.types import Comparison, Relation, RelationKind

STARTED = 0.5
"""Largest effect of a common start."""


def started(found: Comparison, seed: int) -> Comparison:
    """The answer about two models that started from one public seed: that is no descent, however alike they stayed.

    Args:
        found: The answer by their weights.
        seed: Of torch's default initialiser.

    Returns:
        The same evidence under another relation.
    """
    said = (
        f"both trainings started from torch's default initialiser under the public seed {seed}; two trainings from it, "
        "and a model made from the other, cannot be told apart by weights"
    )
    parameters = {**found.relation.parameters, "public_seed": seed, "weights": found.relation.kind.value}
    relation = Relation(RelationKind.SAME_INIT, parameters, ("same-init",), f"{said}; {found.relation.reason}")
    weights = replace(found.weights, effect=min(found.weights.effect, STARTED))
    return replace(found, relation=relation, weights=weights, evidence=(weights, *found.evidence[1:]))

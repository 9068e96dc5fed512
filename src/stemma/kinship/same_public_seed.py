"""Two models whose training started from the same public random numbers."""

from dataclasses import replace

from stemma.types import Comparison, Relation, RelationKind

MAX_EFFECT = 0.5
"""Largest effect of a common initialisation."""


def common_start(found: Comparison, seed: int) -> Comparison:
    """The result for two models initialised from one public seed, which is no shared training history."""
    said = (
        f"both models were initialised by torch's default initialiser with the public seed {seed}, so independent "
        "training and derivation cannot be distinguished by weights"
    )
    parameters = {**found.relation.parameters, "public_seed": seed, "weights": found.relation.kind.value}
    relation = Relation(RelationKind.SAME_INIT, parameters, ("same-init",), f"{said}; {found.relation.reason}")
    weights = replace(found.weights, effect=min(found.weights.effect, MAX_EFFECT))
    return replace(found, relation=relation, weights=weights, evidence=(weights, *found.evidence[1:]))

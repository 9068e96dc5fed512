"""The family tree of loaded models."""

from collections.abc import Mapping, Sequence

import numpy as np

from stemma.ancestry.parent_model import ParentModel
from stemma.ancestry.trees.forest import Forest
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.registry import comparisons
from stemma.types import Lineage
from stemma.workspace.lineage_builder import DETAILED, LineageBuilder, Progress
from stemma.workspace.workspace import ALPHA


def lineage(
    models: Sequence[Model],
    *,
    alpha: float = ALPHA,
    sketches: Mapping[str, np.ndarray] | None = None,
    method: Forest | None = None,
    parent_model: ParentModel | None = None,
    detailed: int = DETAILED,
    total: int = 0,
    progress: Progress | None = None,
) -> Lineage:
    """Reconstruct which of some models was made from which.

    Cost: one sketch per model, about one test of a pair per model, and one comparison per edge; a thousand small models
    take about two minutes.

    Args:
        models: The models, each under a name of its own.
        alpha: Level of the decision that two models are related, over all pairs.
        sketches: Bits of the weight sketches of some of them, by digest; the others are computed.
        method: Draws the tree; with its defaults unless given.
        parent_model: Gives the probability that one model is another's parent; the shipped one unless given.
        detailed: Compare every edge in full up to this many models.
        total: Models that were searched where these are a part of them: the level is corrected for all pairs.
        progress: Called with what happens, how many models are done, and of how many.

    Returns:
        The lineage.

    Raises:
        MisuseError: If there are no models, or two with the same name, or alpha is no level.
    """
    from stemma.training import shipped_parent_model

    comparisons.check_alpha(alpha)
    if not models:
        raise MisuseError("a lineage needs at least one model, and none was given")
    names = [m.name for m in models]
    if len(set(names)) < len(names):
        duplicate = min(n for n in names if names.count(n) > 1)
        raise MisuseError(f"two models are named {duplicate!r}: give each model a unique name")
    builder = LineageBuilder(
        list(models), alpha, dict(sketches or {}), detailed, parent_model or shipped_parent_model(),
        progress or (lambda what, done, total: None), total,
    )  # fmt: skip
    return builder.build(method or Forest())

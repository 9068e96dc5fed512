"""What was done between two models, and whether they were compared at all."""

from dataclasses import dataclass, replace
from typing import Any

from stemma.checkpoints.model import Model
from stemma.kinship.explain import explain
from stemma.kinship.relation.explanation import Explanation
from stemma.registry import comparisons
from stemma.types import NotTested, RelationKind, jsonable
from stemma.workspace.comparison_cache import compared
from stemma.workspace.workspace import ALPHA

NOT_COMPARED = "not compared"
"""What is said of a layer where nothing showed whether the two models are related."""

_FACT = "inherited"
"""What is seen without any test: the same bits."""


@dataclass(frozen=True)
class Explained:
    """An explanation, with what could not be tested.

    Attributes:
        explanation: What was done, and what became of every layer.
        undetermined: Whether nothing was decided: then no layer is said not to be inherited.
        not_tested: What could not be tested.
    """

    explanation: Explanation
    undetermined: bool = False
    not_tested: tuple[NotTested, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document of `stemma explain`; `kind` is null where nothing was decided.

        Returns:
            Plain JSON values.
        """
        document = {**self.explanation.to_dict(), "not_tested": jsonable(self.not_tested)}
        return {**document, "kind": None} if self.undetermined else document


def explained(parent: Model, child: Model, alpha: float = ALPHA) -> Explained:
    """Say what was done to a parent to get a child, and do not take the untested for the unrelated.

    Cost: that of `explain`; where no kinship is found, a comparison more.

    Args:
        parent: The model that the child may come from.
        child: The model that is to be explained.
        alpha: Level of the decision about kinship.

    Returns:
        The explanation.
    """
    comparisons.check_alpha(alpha)
    found = explain(parent, child, alpha=alpha)
    if found.kind is not RelationKind.UNRELATED:
        return Explained(found)
    comparison = compared(parent, child, alpha)
    if comparison.verdict != "inconclusive":
        return Explained(found, not_tested=comparison.open_questions)
    layers = tuple(replace(c, status=NOT_COMPARED) if c.status != _FACT else c for c in found.layers)
    return Explained(replace(found, layers=layers), undetermined=True, not_tested=comparison.open_questions)

"""What was done between two models, and whether they could be compared at all."""

from dataclasses import dataclass, replace
from typing import Any

from stemma.checkpoints.model import Model
from stemma.kinship.explain import explain
from stemma.kinship.relation.explanation import Explanation
from stemma.registry import comparisons
from stemma.types import NotTested, RelationKind, jsonable
from stemma.workspace.comparison_cache import compare_weights
from stemma.workspace.workspace import ALPHA

NOT_COMPARED = "not compared"
"""Status of a layer where nothing shows whether the two models are related."""

_IDENTICAL = "inherited"
"""Status that needs no test: the same bits."""


@dataclass(frozen=True)
class Explained:
    """An explanation, with what could not be tested.

    Attributes:
        explanation: What was done, and what became of every layer.
        undetermined: Whether nothing was decided: then no layer is reported as not inherited.
        not_tested: What could not be tested.
    """

    explanation: Explanation
    undetermined: bool = False
    not_tested: tuple[NotTested, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document of `stemma explain`; `kind` is null where nothing was decided."""
        document = {**self.explanation.to_dict(), "not_tested": jsonable(self.not_tested)}
        return {**document, "kind": None} if self.undetermined else document


def explain_pair(parent: Model, child: Model, alpha: float = ALPHA) -> Explained:
    """Explain what was done to a parent to get a child; where they look unrelated, list what was not tested."""
    comparisons.check_alpha(alpha)
    explanation = explain(parent, child, alpha=alpha)
    if explanation.kind is not RelationKind.UNRELATED:
        return Explained(explanation)
    comparison = compare_weights(parent, child, alpha)
    if comparison.verdict != "inconclusive":
        return Explained(explanation, not_tested=comparison.open_questions)
    layers = tuple(replace(c, status=NOT_COMPARED) if c.status != _IDENTICAL else c for c in explanation.layers)
    return Explained(replace(explanation, layers=layers), undetermined=True, not_tested=comparison.open_questions)

"""Which story fits a dense difference: fine-tuned, siblings, or two trainings from one random start."""

from dataclasses import dataclass

from stemma.kinship.relation.pair import Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class Story:
    """What a dense difference looks like.

    Attributes:
        kind: The relation.
        probability: Of that kind, None where it was not calibrated.
        position: Where the origin lies between parent (0) and child (1).
    """

    kind: RelationKind
    probability: float | None
    position: float | None


def story(pair: Pair) -> Story:
    """Tell which story fits.

    Args:
        pair: A pair with a dense difference.

    Returns:
        The story.
    """
    return Story(RelationKind.FINETUNED, None, None)

"""What related models are to a suspect: one by one, and the set that holds its parent."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Role(enum.StrEnum):
    """What a relative is."""

    PARENT = "parent"
    CHILD = "child"
    SAME = "same"
    RELATIVE = "relative"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Standing:
    """What one related candidate is to the suspect.

    Attributes:
        role: Its parent, its child, the same network in another form (or not to be told apart from it), another
            relative (a sibling, a more distant ancestor), or unknown where nothing could be tested.
        confidence: Calibrated probability of the role, None where it has none.
        reason: One sentence why; empty for the reason of the kinship itself.
        relation: The relation, where the whole family shows another one than the pair does (`merged`); else empty.
        share: Part of the suspect that comes from it, where that is known otherwise than by units in place.
    """

    role: Role
    confidence: float | None = None
    reason: str = ""
    relation: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Member:
    """One possible parent: a model, or an ancestor that nobody has enrolled.

    Attributes:
        positions: Of the model among the related ones, and of those that hardly differ from it; empty for the unknown
            ancestor.
        probability: That the parent is among them.
    """

    positions: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class Kin:
    """What all related models are to a suspect.

    Attributes:
        standings: One per related model.
        parent_set: The likeliest parents, the likeliest first; with the stated coverage one of them is the parent.
    """

    standings: Sequence[Standing]
    parent_set: tuple[Member, ...] = ()

"""Roles of related models: parent, child, same network or other relative of a suspect, and its possible parents."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Role(enum.StrEnum):
    """What a related model is to the suspect."""

    PARENT = "parent"
    CHILD = "child"
    SAME = "same"
    RELATIVE = "relative"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RelativeRole:
    """The role of one related candidate.

    Attributes:
        role: Parent, child, the same network in another form (or indistinguishable from it), another relative (a
            sibling, a more distant ancestor), or unknown where nothing could be tested.
        confidence: Calibrated probability of the role, None where there is none.
        reason: One sentence why; empty to use the reason of the pairwise comparison.
        relation: The relation, where all relatives together show another one than the pair does (`merged`); else empty.
        share: Part of the suspect that comes from this model, where it is known other than from matching units.
    """

    role: Role
    confidence: float | None = None
    reason: str = ""
    relation: str = ""
    share: float | None = None


@dataclass(frozen=True)
class PossibleParent:
    """One entry of a parent set: a model, or an ancestor that is not enrolled.

    Attributes:
        positions: The model's position among the related ones, then those of models almost identical to it; empty for
            the ancestor that is not enrolled.
        probability: That the parent is among them.
    """

    positions: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class RelativeRoles:
    """The roles of all related models.

    Attributes:
        roles: One per related model.
        parent_set: Most probable first; one of them is the parent with the stated coverage.
    """

    roles: Sequence[RelativeRole]
    parent_set: tuple[PossibleParent, ...] = ()

"""Families of models with known history, wherever they were trained: training data of direction and parents."""

from dataclasses import dataclass

from stemma.checkpoints.model import Model


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a family.

    Attributes:
        name: Unique in the family.
        model: Its weights.
        ancestors: Names of its ancestors, nearest first, members or not.
        leaf: Whether nothing is made from it by rule (integer codes).
    """

    name: str
    model: Model
    ancestors: tuple[str, ...]
    leaf: bool = False


@dataclass(frozen=True, eq=False)
class Family:
    """Models of one root, the root among them; `number` distinguishes families of a kind."""

    kind: str
    number: int
    members: tuple[Member, ...]

    def positions(self) -> dict[str, int]:
        """Position of each member by name."""
        return {m.name: i for i, m in enumerate(self.members)}

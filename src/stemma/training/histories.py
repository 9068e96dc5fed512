"""Families of models with known history, wherever they were trained: what direction and parenthood learn from."""

from dataclasses import dataclass

from stemma.checkpoints.model import Model


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a family.

    Attributes:
        name: Unique in the family.
        model: Its weights.
        ancestors: Names of what it was made from, nearest first, whether they are there or not.
        leaf: Whether nothing is made from it by rule (integer codes).
    """

    name: str
    model: Model
    ancestors: tuple[str, ...]
    leaf: bool = False


@dataclass(frozen=True, eq=False)
class Family:
    """Models of one root.

    Attributes:
        kind: Of network.
        number: Tells families of a kind apart.
        members: The models, the root among them.
    """

    kind: str
    number: int
    members: tuple[Member, ...]

    def positions(self) -> dict[str, int]:
        """Where each member stands."""
        return {m.name: i for i, m in enumerate(self.members)}

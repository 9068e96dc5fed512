"""Families of models with known history, wherever they were trained: what direction and parenthood learn from."""

from dataclasses import dataclass

from stemma.models.model import Model


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a family.

    Attributes:
        name: Unique in the family.
        model: Its weights.
        ancestors: Names of what it was made from, nearest first, whether they are there or not.
        tuned: What it was tuned by, for tables.
        task: What it learnt, likewise.
        leaf: Whether nothing is made from it by rule (integer codes).
    """

    name: str
    model: Model
    ancestors: tuple[str, ...]
    tuned: str = ""
    task: str = ""
    leaf: bool = False


@dataclass(frozen=True, eq=False)
class Family:
    """Models of one root.

    Attributes:
        kind: Of network.
        number: Tells families of a kind apart.
        members: The models, the root among them.
        usual: Whether children were made as they usually are, neither much weaker nor much stronger.
    """

    kind: str
    number: int
    members: tuple[Member, ...]
    usual: bool = True

    def parent(self, name: str) -> str | None:
        """The parent of a member, None for the root."""
        [member] = (m for m in self.members if m.name == name)
        return next(iter(member.ancestors), None)

    def positions(self) -> dict[str, int]:
        """Where each member stands."""
        return {m.name: i for i, m in enumerate(self.members)}

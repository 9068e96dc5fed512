"""Edges that are known, not inferred: edits whose receipts lie beside the weights that they name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stemma.types import Digest, Edge, ModelRef


class Claimant(Protocol):
    """A model, or the record of one, with what is claimed of it."""

    @property
    def ref(self) -> ModelRef:
        """Name and digest."""
        ...

    @property
    def digest(self) -> Digest:
        """Of the weights."""
        ...

    @property
    def claims(self) -> Mapping[str, str]:
        """Metadata that came with the weights."""
        ...


@dataclass(frozen=True, slots=True)
class KnownEdge:
    """An edit, by its receipt.

    Attributes:
        parent: The model before.
        child: The model after.
        operation: What was done: `prune` or `unlearn`.
    """

    parent: ModelRef
    child: ModelRef
    operation: str

    def drawn(self, edges: Sequence[Edge]) -> str:
        """How a lineage that was inferred from the weights has this edit.

        Args:
            edges: Of the lineage.

        Returns:
            `same`, `reversed`, `elsewhere` where the child has other parents, or `not`.
        """
        pairs = {(e.parent, e.child) for e in edges}
        if (self.parent.name, self.child.name) in pairs:
            return "same"
        if (self.child.name, self.parent.name) in pairs:
            return "reversed"
        return "elsewhere" if any(child == self.child.name for _, child in pairs) else "not"

    def to_dict(self, edges: Sequence[Edge]) -> dict[str, str]:
        """What a lineage says of this edit.

        Args:
            edges: Of the lineage.

        Returns:
            Names of `parent` and `child`, `operation`, and how it is `drawn`.
        """
        names = {"parent": self.parent.name, "child": self.child.name}
        return {**names, "operation": self.operation, "drawn": self.drawn(edges)}


def known_edges(models: Iterable[Claimant]) -> tuple[KnownEdge, ...]:
    """The edges that receipts tell, among some models.

    A receipt lies beside weights and names the digests of both models; it counts only beside these very weights, so a
    receipt that was moved to others makes no edge. It is what the editor says, not evidence: an inferred edge is
    compared with it, never replaced by it.

    Args:
        models: Models, or records of live ones.

    Returns:
        Edges sorted by the child's name.
    """
    listed = list(models)
    by_digest = {str(m.digest): m for m in listed}
    out = []
    for m in listed:
        parent = by_digest.get(m.claims.get("edited_from", ""))
        if parent is not None and m.claims.get("edited_to") == str(m.digest):
            out.append(KnownEdge(parent.ref, m.ref, m.claims.get("edit", "")))
    return tuple(sorted(out, key=lambda e: e.child.name))

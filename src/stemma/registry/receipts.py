"""Lineage edges that receipts of edits document, in contrast to inferred ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stemma.types import Digest, Edge, ModelRef


class ModelWithClaims(Protocol):
    """A model, or the record of one, with its claims."""

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
class ReceiptEdge:
    """An edit documented by a receipt.

    Attributes:
        parent: The model before.
        child: The model after.
        operation: `prune` or `unlearn`.

    """

    parent: ModelRef
    child: ModelRef
    operation: str

    def shown_as(self, edges: Sequence[Edge]) -> str:
        """How inferred edges show this edit: `same`, `reversed`, `elsewhere` (the child has other parents) or `not`."""
        pairs = {(e.parent, e.child) for e in edges}
        if (self.parent.name, self.child.name) in pairs:
            return "same"
        if (self.child.name, self.parent.name) in pairs:
            return "reversed"
        return "elsewhere" if any(child == self.child.name for _, child in pairs) else "not"

    def to_dict(self, edges: Sequence[Edge]) -> dict[str, str]:
        """`parent`, `child` and `operation`, and how the inferred lineage shows the edit (`drawn`)."""
        names = {"parent": self.parent.name, "child": self.child.name}
        return {**names, "operation": self.operation, "drawn": self.shown_as(edges)}


def edges_from_receipts(models: Iterable[ModelWithClaims]) -> tuple[ReceiptEdge, ...]:
    """Edges documented by receipts, sorted by the child's name."""
    listed = list(models)
    by_digest = {str(m.digest): m for m in listed}
    out = []
    for m in listed:
        parent = by_digest.get(m.claims.get("edited_from", ""))
        if parent is not None and m.claims.get("edited_to") == str(m.digest):
            out.append(ReceiptEdge(parent.ref, m.ref, m.claims.get("edit", "")))
    return tuple(sorted(out, key=lambda e: e.child.name))

"""Edges that are known, not inferred: edits whose receipts were enrolled together with both models."""

from collections.abc import Iterable
from dataclasses import dataclass

from stemma.registry.records import ModelRecord
from stemma.types import ModelRef


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


def known_edges(records: Iterable[ModelRecord]) -> tuple[KnownEdge, ...]:
    """The edges that receipts tell, among enrolled models.

    A receipt lies beside weights and names the digests of both models; it counts only where these very weights are
    enrolled, so a receipt that was moved to other weights makes no edge. It is what the editor says, not evidence: an
    inferred edge is compared with it, never replaced by it.

    Args:
        records: Live models.

    Returns:
        Edges sorted by the child's name.
    """
    listed = list(records)
    by_digest = {str(r.digest): r for r in listed}
    out = []
    for r in listed:
        parent = by_digest.get(r.claims.get("edited_from", ""))
        if parent is not None and r.claims.get("edited_to") == str(r.digest):
            out.append(KnownEdge(parent.ref, r.ref, r.claims.get("edit", "")))
    return tuple(sorted(out, key=lambda e: e.child.name))

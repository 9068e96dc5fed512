"""The shortest account of a pair: every sequence of operations that leaves nothing but rounding, measured in bits."""

from collections.abc import Iterator
from dataclasses import dataclass

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, entry_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair

DEPTH = 4
"""Most operations in one account."""

STEP_BITS = 16.0
"""What naming one more operation costs, so that two never stand where one does."""


@dataclass(frozen=True, eq=False)
class Account:
    """Operations that together explain a pair.

    Attributes:
        steps: In the order in which they were taken, as far as that shows.
        pair: The pair with the marks that they left.
    """

    steps: tuple[Step, ...]
    pair: Pair

    @property
    def bits(self) -> float:
        """Length of the description."""
        return sum(s.bits + STEP_BITS for s in self.steps)


def accounts(pair: Pair, operations: tuple[AbstractOperation, ...]) -> list[Account]:
    """All accounts that leave nothing but rounding.

    Cost: nothing is read again; each operation looks at the sums of every layer.

    Args:
        pair: Parent and child.
        operations: What may have been done.

    Returns:
        Accounts, the shortest first; empty where none fits.
    """
    found: dict[frozenset[str], Account] = {}
    for account in _search(pair, operations, ()):
        key = frozenset(s.name for s in account.steps)
        if key not in found or account.bits < found[key].bits:
            found[key] = account
    return sorted(found.values(), key=lambda a: (a.bits, len(a.steps)))


def _search(pair: Pair, operations: tuple[AbstractOperation, ...], steps: tuple[Step, ...]) -> Iterator[Account]:
    if steps and _complete(pair):
        yield Account(tuple(sorted(reversed(steps), key=lambda s: s.place)), pair)
        return
    if len(steps) < DEPTH:
        for operation in operations:
            if operation.name in pair.taken:
                continue
            fitted = operation.explain(pair)
            if fitted is not None:
                yield from _search(fitted.pair, operations, (*steps, fitted.step))


def _complete(pair: Pair) -> bool:
    """Whether every layer is explained, and every tensor that only one of the models has."""
    if pair.open:
        return False
    if any(any(layer.holes) for layer in pair.layers) and "damaged" not in pair.taken:
        return False
    if pair.kept and "units removed" not in pair.taken:
        return False
    if any(layer.grown for layer in pair.layers) and not {
        "reformatted",
        "vocabulary grown",
        "vocabulary trimmed",
    } & set(pair.taken):
        return False
    known = {"layers removed", "replaced", "rescaled"} & set(pair.taken)
    gone = any(n in matrices(pair.parent) for n in pair.removed)
    added = any(n in matrices(pair.child) for n in pair.new)
    return not (gone and not known) and not (added and "replaced" not in pair.taken)


def plain_bits(pair: Pair) -> float:
    """Length of the description that tells every changed entry by itself.

    Args:
        pair: A pair of which nothing is explained yet.

    Returns:
        Bits.
    """
    told = sum(entry_bits(layer, layer.sums.difference) for layer in pair.open if layer.measured is not None)
    whole = sum(entry_bits(layer, layer.sums.norm_b) for layer in pair.open if layer.measured is None)
    return told + whole + 32.0 * sum(matrices(pair.child)[n].size for n in pair.new if n in matrices(pair.child))

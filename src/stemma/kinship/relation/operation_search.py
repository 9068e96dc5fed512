"""Search for the sequences of operations that explain a pair down to rounding, by description length in bits."""

from collections.abc import Iterator
from dataclasses import dataclass

from stemma.errors import PartlyReadError
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, entry_bits
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair

MAX_OPERATIONS = 4
"""Most operations in one explanation."""

STEP_BITS = 16.0
"""Description length of naming one more operation, so that one operation is preferred to two."""


@dataclass(frozen=True, eq=False)
class CandidateExplanation:
    """Operations, in the order of application as far as it is known, that together explain a pair."""

    steps: tuple[Step, ...]
    pair: Pair

    @property
    def bits(self) -> float:
        """Length of the description."""
        return sum(s.bits + STEP_BITS for s in self.steps)


def candidate_explanations(pair: Pair, operations: tuple[AbstractOperation, ...]) -> list[CandidateExplanation]:
    """All explanations that leave only rounding, the simplest first; costs no further reading."""
    found: dict[frozenset[str], CandidateExplanation] = {}
    for account in _search(pair, operations, ()):
        key = frozenset(s.name for s in account.steps)
        if key not in found or account.bits < found[key].bits:
            found[key] = account
    return sorted(found.values(), key=lambda a: (a.bits, len(a.steps)))


def _search(
    pair: Pair, operations: tuple[AbstractOperation, ...], steps: tuple[Step, ...]
) -> Iterator[CandidateExplanation]:
    if steps and _complete(pair):
        yield CandidateExplanation(tuple(sorted(reversed(steps), key=lambda s: s.place)), pair)
        return
    if len(steps) < MAX_OPERATIONS:
        for operation in operations:
            if operation.name in pair.operations:
                continue
            try:
                fitted = operation.fit(pair)
            except PartlyReadError:  # of a model that was read in part, what was not read may show it
                continue
            if fitted is not None:
                yield from _search(fitted.pair, operations, (*steps, fitted.step))


def _complete(pair: Pair) -> bool:
    """Whether every layer is explained, and every tensor that only one of the models has."""
    if pair.unexplained:
        return False
    if any(any(layer.not_finite) for layer in pair.layers) and "damaged" not in pair.operations:
        return False
    if pair.kept and "units removed" not in pair.operations:
        return False
    if any(layer.added_tokens for layer in pair.layers) and not {
        "reformatted",
        "vocabulary grown",
        "vocabulary trimmed",
    } & set(pair.operations):
        return False
    known = {"layers removed", "replaced", "rescaled"} & set(pair.operations)
    gone = any(n in matrices(pair.parent) for n in pair.removed)
    added = any(n in matrices(pair.child) for n in pair.new)
    return not (gone and not known) and not (added and "replaced" not in pair.operations)


def plain_bits(pair: Pair) -> float:
    """Description length in bits if every changed entry is described separately."""
    changed = sum(entry_bits(layer, layer.sums.difference) for layer in pair.unexplained if layer.measured is not None)
    new = sum(entry_bits(layer, layer.sums.norm_b) for layer in pair.unexplained if layer.measured is None)
    return changed + new + 32.0 * sum(matrices(pair.child)[n].size for n in pair.new if n in matrices(pair.child))

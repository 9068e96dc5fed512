"""Weights compared once: the answer is kept."""

import contextlib
from dataclasses import dataclass

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import RegistryError
from stemma.registry import Registry, comparisons, model_records
from stemma.registry.ingest import fingerprinters
from stemma.types import Comparison, Fingerprint


@dataclass(frozen=True)
class Recall:
    """Compares by weights, with what a registry remembers.

    Attributes:
        registry: Holds comparisons and sketches.
    """

    registry: Registry

    def weights(self, a: Model, b: Model, alpha: float) -> Comparison:
        """All evidence of the weights axis, from sketches where weights are gone.

        Returns:
            The comparison.
        """
        if model_records.has_no_weights(a) or model_records.has_no_weights(b):
            missing = next(m.notes[0] for m in (a, b) if model_records.has_no_weights(m))
            return comparisons.compare_sketches(a, b, (self.sketch(a), self.sketch(b)), missing, alpha)
        return compared(a, b, alpha)

    def enrolled(self, c: Candidate, other: Model, alpha: float) -> Comparison:
        """Compare an enrolled model with another one, once.

        Args:
            c: The enrolled model.
            other: The other one.
            alpha: Level of the decision.

        Returns:
            The comparison.
        """
        spec = comparisons.comparison_spec(alpha)
        known = self.registry.get_evidence(c.ref.digest, other.digest, spec)
        if known is not None:
            return comparisons.decode(known.content, c.ref, other.ref)
        candidate = c.load()
        if model_records.has_no_weights(candidate) or model_records.has_no_weights(other):
            return self.weights(candidate, other, alpha)
        found = compared(candidate, other, alpha)
        with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
            self.registry.put_evidence(c.ref.digest, other.digest, spec, comparisons.encode(found))
        return found

    def between(self, a: Candidate, b: Candidate, alpha: float) -> Comparison:
        """Compare two enrolled models, once; neither is read where the answer is known.

        Returns:
            The comparison.
        """
        known = self.registry.get_evidence(a.ref.digest, b.ref.digest, comparisons.comparison_spec(alpha))
        if known is not None:
            return comparisons.decode(known.content, a.ref, b.ref)
        return self.enrolled(a, b.load(), alpha)

    def sketch(self, model: Model) -> Fingerprint | None:
        """The weight sketch of a model, remembered where its weights are gone.

        Returns:
            The sketch, None where there is none.
        """
        method = fingerprinters()[0]
        if model_records.has_no_weights(model):
            return self.registry.fingerprint(model.digest, method.spec)
        return method(model)


def compared(a: Model, b: Model, alpha: float) -> Comparison:
    """All evidence of the weights axis of a pair.

    Returns:
        The comparison.
    """
    from stemma.kinship.compare import compare

    return compare(a, b, alpha=alpha)

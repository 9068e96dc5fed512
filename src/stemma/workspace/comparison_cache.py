"""Comparisons of weights that are computed once and kept in a registry."""

import contextlib
import json
from dataclasses import dataclass, replace

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import RegistryError
from stemma.registry import Registry, comparisons, model_records
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import canonical_json
from stemma.types import WEIGHTS_GONE, Comparison, Fingerprint, KnownFrom


@dataclass(frozen=True)
class ComparisonCache:
    """Compares weights, and keeps the comparisons of enrolled models in a registry."""

    registry: Registry

    def compare(self, a: Model, b: Model, alpha: float) -> Comparison:
        """All evidence of the weights axis, from sketches where weights are gone."""
        if model_records.has_no_weights(a) or model_records.has_no_weights(b):
            missing = next(m.notes[0] for m in (a, b) if model_records.has_no_weights(m))
            if told_by(a) is not None or told_by(b) is not None:
                return self._compare_known(a, b, missing, alpha)
            return comparisons.compare_sketches(a, b, (self.sketch(a), self.sketch(b)), missing, alpha)
        return compare_weights(a, b, alpha)

    def _compare_known(self, a: Model, b: Model, missing: str, alpha: float) -> Comparison:
        """By sketch, with the shapes of the one that was read here; that the other was not is always said."""
        first, second = (b, a) if told_by(a) is not None and told_by(b) is None else (a, b)
        sketches = (self.sketch(first), self.sketch(second))
        found = comparisons.compare_sketches(first, second, sketches, missing, alpha)
        not_tested = found.not_tested or ({"what": WEIGHTS_GONE, "model": "", "why": missing},)
        return replace(found, a=a.ref, b=b.ref, not_tested=not_tested)

    def compare_enrolled(self, enrolled: Candidate, other: Model, alpha: float) -> Comparison:
        """The comparison of an enrolled model with another one, computed once."""
        if other.black_box:
            return compare_weights(enrolled.load(), other, alpha)
        if (kept := self.recall(enrolled, other, alpha)) is not None:
            return kept
        model = enrolled.load()
        if model_records.has_no_weights(model) or model_records.has_no_weights(other):
            return self.compare(model, other, alpha)
        return self.keep(enrolled, other, alpha, compare_weights(model, other, alpha))

    def recall(self, enrolled: Candidate, other: Model, alpha: float) -> Comparison | None:
        """The comparison that is kept of an enrolled model with another one."""
        spec = comparisons.comparison_spec(alpha, enrolled.source, other.source)
        kept = self.registry.get_evidence(enrolled.ref.digest, other.digest, spec)
        return None if kept is None else comparisons.decode(kept.content, enrolled.ref, other.ref)

    def keep(self, enrolled: Candidate, other: Model, alpha: float, comparison: Comparison) -> Comparison:
        """Keep a comparison of an enrolled model with another one, and return it as it is read again."""
        content = comparisons.encode(comparison)
        spec = comparisons.comparison_spec(alpha, enrolled.source, other.source)
        with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
            self.registry.put_evidence(enrolled.ref.digest, other.digest, spec, content)
        as_stored = json.loads(canonical_json(content))  # so that the first answer is the same text as every later one
        return comparisons.decode(as_stored, enrolled.ref, other.ref)

    def compare_two_enrolled(self, a: Candidate, b: Candidate, alpha: float) -> Comparison:
        """The comparison of two enrolled models, computed once; neither is read where it is kept."""
        kept = self.registry.get_evidence(
            a.ref.digest, b.ref.digest, comparisons.comparison_spec(alpha, a.source, b.source)
        )
        if kept is not None:
            return comparisons.decode(kept.content, a.ref, b.ref)
        return self.compare_enrolled(a, b.load(), alpha)

    def sketch(self, model: Model) -> Fingerprint | None:
        """The weight sketch of a model; where its weights are gone the kept one, None if none was kept."""
        method = fingerprinters()[0]
        if "known_sketch" in model.__dict__:  # as another registry tells it
            return model.__dict__["known_sketch"]
        if model_records.has_no_weights(model):
            return self.registry.fingerprint(model.digest, method.spec)
        return method(model)


def told_by(model: Model) -> KnownFrom | None:
    """The other registry that tells of a model; None where it was read here."""
    return model.__dict__.get("known_from")


def compare_weights(a: Model, b: Model, alpha: float) -> Comparison:
    """All evidence of the weights axis of a pair."""
    if a.black_box or b.black_box:
        return comparisons.without_weights(a, b)
    from stemma.kinship.compare import compare

    return compare(a, b, alpha=alpha)

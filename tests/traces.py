"""Trace documents made by hand: what a trace would say, without any weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from documents import check_document
from stemma.application.parts import WeightsPart
from stemma.application.trace import CandidatePart, CopyPart, RelativePart, TraceDocument, TraceRequest
from stemma.types import Digest, ModelRef, RelationKind

EXACT = (RelationKind.REFORMATTED, RelationKind.PERMUTED)
RELATIVES = (RelationKind.SAME_RUN, RelationKind.SAME_INIT, RelationKind.SIBLINGS, RelationKind.RELATED)


def digest(name: str) -> Digest:
    """A digest of no weights, told from others by its name."""
    import hashlib

    return Digest("sha256:" + hashlib.sha256(name.encode()).hexdigest())


def weights(verdict: str) -> WeightsPart:
    """The weights axis with this verdict."""
    p, log = {"related": (5e-324, -1200.5), "independent": (1.0, 0.0)}.get(verdict, (None, None))
    effect = 0.9 if verdict == "related" else 0.0
    return WeightsPart(verdict, p, log, effect, "made by hand", "units-alike", {})  # ty: ignore[invalid-argument-type]


def candidate(name: str, verdict: str, relation: RelationKind | None, licence: str | None = None) -> CandidatePart:
    """A model that was compared."""
    steps = () if relation in (None, RelationKind.UNRELATED) else (str(relation),)
    source = "card" if licence else None
    return CandidatePart(
        name, digest(name), verdict, relation, steps, {}, "made by hand", 0.9 if verdict == "related" else 0.0,  # ty: ignore[invalid-argument-type]
        weights(verdict), None, licence, source, {},
    )  # fmt: skip


def relative(
    name: str, relation: RelationKind, role: str, share: float = 0.9, licence: str | None = None,
    confidence: float | None = None,
) -> RelativePart:  # fmt: skip
    """A parent or another relative."""
    direction = "parent" if role == "parent" else "unknown"
    p, log = (None, None) if relation in EXACT else (5e-324, -1200.5)
    return RelativePart(
        name, digest(name), relation, (str(relation),), p, log, confidence, direction, role, share,  # ty: ignore[invalid-argument-type]
        "made by hand", licence, "card" if licence else None,
    )  # fmt: skip


def trace(
    verdict: str, *, name: str = "model", parents: Sequence[RelativePart] = (), relatives: Sequence[RelativePart] = (),
    copies: Sequence[CopyPart] = (), strangers: Sequence[str] = (), undecided: Sequence[str] = (), **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A trace document that follows its schema."""
    related = [candidate(r.name, "related", r.relation, r.licence) for r in (*parents, *relatives)]
    apart = [candidate(s, "independent", RelationKind.UNRELATED) for s in strangers]
    open_ = [candidate(u, "inconclusive", None) for u in undecided]
    not_tested = tuple({"what": "not-comparable", "model": u, "why": "of another shape"} for u in undecided)
    fields: dict[str, Any] = {
        "alpha": 0.01, "n_searched": len(related) + len(apart) + len(open_) + len(copies), "parent_set": (),
        "cannot_see": ("training data",), "not_tested": not_tested, "coverage": None, "notes": (), "claims": (),
    } | more  # fmt: skip
    document = TraceDocument.of(
        TraceRequest(model=name), model=ModelRef(name, digest(f"{name}'s weights")), verdict=verdict,
        copies=tuple(copies), parents=tuple(parents), relatives=tuple(relatives),
        candidates=(*related, *apart, *open_), **fields,
    ).to_dict()  # fmt: skip
    return check_document(json.dumps(document))


def of_relation(kind: RelationKind, licence: str | None = "llama2") -> dict[str, Any]:
    """The trace of a model that is this to a model called `base`; merged from another one too where it is a merge."""
    if kind is RelationKind.UNRELATED:
        return trace("no-known-parent", strangers=["base"])
    if kind is RelationKind.COPY:
        source: Mapping[str, Any] = {"licence": licence, "licence_source": "card" if licence else None, "claims": {}}
        return trace("copy", copies=[CopyPart("base", digest("base"), "copy", "the digests agree", **source)])
    if kind in EXACT:
        return trace("related", parents=[relative("base", kind, "same", licence=licence)])
    if kind in RELATIVES:
        return trace("related", relatives=[relative("base", kind, "relative", licence=licence)])
    if kind is RelationKind.MERGED:
        parents = [relative("base", kind, "parent", 0.6, licence), relative("second", kind, "parent", 0.4, "mit")]
        return trace("descends", parents=parents)
    if kind is RelationKind.DISTILLED:
        return trace("related", relatives=[relative("base", kind, "unknown", licence=licence)])
    sure = 0.97 if kind is not RelationKind.QUANTIZED else None
    possible = ({"name": "base", "digest": digest("base"), "probability": 0.97, "or": ["twin"]},
                {"name": "an unknown common ancestor", "digest": None, "probability": 0.03, "or": []})  # fmt: skip
    parents = [relative("base", kind, "parent", licence=licence, confidence=sure)]
    return trace("descends", parents=parents, parent_set=possible, coverage=0.95)

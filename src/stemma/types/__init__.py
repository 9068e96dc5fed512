"""The nouns: frozen values that travel between the stages. Methods live in the stage folders."""

from stemma.types.answers import UNREAD, WEIGHTS_GONE, Comparison, Edge, Lineage, NotTested, Trace
from stemma.types.claims import ClaimLine, ClaimVerdict
from stemma.types.edits import Plan, Receipt
from stemma.types.matrix import DistanceMatrix
from stemma.types.nouns import (
    Axis,
    Digest,
    Distance,
    Evidence,
    Fingerprint,
    InputSpec,
    KnownFrom,
    ModelRef,
    Null,
    Relation,
    RelationKind,
    Spec,
    UnitGroup,
    UnitMember,
    Verdict,
    jsonable,
)
from stemma.types.text import plain

__all__ = [
    "UNREAD",
    "WEIGHTS_GONE",
    "Axis",
    "ClaimLine",
    "ClaimVerdict",
    "Comparison",
    "Digest",
    "Distance",
    "DistanceMatrix",
    "Edge",
    "Evidence",
    "Fingerprint",
    "InputSpec",
    "KnownFrom",
    "Lineage",
    "ModelRef",
    "NotTested",
    "Null",
    "Plan",
    "Receipt",
    "Relation",
    "RelationKind",
    "Spec",
    "Trace",
    "UnitGroup",
    "UnitMember",
    "Verdict",
    "jsonable",
    "plain",
]

"""The registry: tables, content-addressed blobs and the search index. Only this package writes records."""

from stemma.registry.records import (
    AddOutcome,
    AddStatus,
    EvidenceRecord,
    Finding,
    FingerprintRecord,
    ModelRecord,
    TensorRecord,
)
from stemma.registry.search import Neighbour, SketchIndex
from stemma.registry.store import Registry

__all__ = [
    "AddOutcome",
    "AddStatus",
    "EvidenceRecord",
    "Finding",
    "FingerprintRecord",
    "ModelRecord",
    "Neighbour",
    "Registry",
    "SketchIndex",
    "TensorRecord",
]

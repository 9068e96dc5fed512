"""Models on their way into a registry: what is written of each, alone or several in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from stemma.errors import RegistryError
from stemma.registry import blobs, records, rows
from stemma.registry.records import AddOutcome, AddStatus, ModelRecord, TensorRecord
from stemma.types import Digest, Fingerprint


@dataclass(frozen=True)
class Addition:
    """A model to be added, checked against its own digests.

    Attributes:
        record: The model.
        tensors: Its tensors; their manifest must have the model's digest.
        fingerprints: Of this model.
        listing: The manifest, as it is stored.
        packed: The fingerprints, as they are stored.

    Raises:
        RegistryError: If record, tensors and fingerprints contradict each other.
    """

    record: ModelRecord
    tensors: Sequence[TensorRecord]
    fingerprints: Sequence[Fingerprint] = ()
    listing: bytes = field(init=False, repr=False)
    packed: tuple[bytes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        record = self.record
        object.__setattr__(self, "listing", records.verified_manifest(record, self.tensors))
        for f in self.fingerprints:
            if f.model != record.digest:
                raise RegistryError(
                    f"a fingerprint of {f.model} was passed with the model '{record.name}' ({record.digest})"
                )
        object.__setattr__(self, "packed", tuple(blobs.pack(f.values) for f in self.fingerprints))

    @property
    def large(self) -> tuple[bytes, ...]:
        """What is stored as files beside the database."""
        return tuple(c for c in (self.listing, *self.packed) if len(c) >= blobs.INLINE_LIMIT)

    def write(
        self, connection: sa.Connection, *, replace: bool = False, kept: tuple[Digest, int] | None = None
    ) -> AddOutcome:
        """Write the rows; `kept` is the stored copy of the weights, and `large` was staged before."""
        record, limit = self.record, blobs.INLINE_LIMIT
        known = rows.live_model(connection, record.name)
        status = rows.add_status(known, record, replace)
        content_id = rows.put_content(connection, record, self.tensors, self.listing, staged=len(self.listing) >= limit)
        for f, content in zip(self.fingerprints, self.packed, strict=True):
            rows.put_fingerprint(connection, content_id, f, content, staged=len(content) >= limit)
        if kept:
            rows.put_blob_row(connection, *kept, None)
        if known is None or status is not AddStatus.KNOWN or (kept and known.weights is None):
            same_weights = known is not None and known.digest == record.digest
            known = rows.with_timestamp(record, kept[0] if kept else known.weights if same_weights else None)
            rows.append_model(connection, known, content_id)
        return AddOutcome(known, status)

"""The registry: models found by name, digest, shared tensors or sketch."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from stemma.checkpoints import digest as digests
from stemma.deprecation import renamed_attribute
from stemma.errors import RegistryError, UnknownNameError, UnusableRegistryError
from stemma.registry import blobs, family_trees, result_rows, rows, schema, sketch_file, storage
from stemma.registry.additions import Addition
from stemma.registry.collection import paused_collection
from stemma.registry.new_models import write_each
from stemma.registry.records import (
    AddOutcome,
    EvidenceRecord,
    Finding,
    FingerprintRecord,
    ModelRecord,
    Progress,
    ScanRecord,
    SketchRecord,
    TensorRecord,
)
from stemma.registry.search import SketchIndex
from stemma.types import Digest, Fingerprint, Spec

if TYPE_CHECKING:
    from stemma.registry.exchange.exchange import Exchange
    from stemma.registry.exchange.known_models import KnownModels

_PREFIX = re.compile(r"(partial:)?(?:sha256:)?([0-9a-f]{8,64})")


class Registry:
    """A registry of models: a SQLite file with a folder of large blobs next to it, or a schema of a PostgreSQL server.

    Several processes may use it at once. Rows are only added: a correction is a new row and a removal a tombstone.
    """

    def __init__(self, url: str | os.PathLike[str] | None = None) -> None:
        """Choose a registry by path or address, else `STEMMA_REGISTRY` or the data folder; opened on use."""
        self.path, self._database, self._large = storage.at(url)
        self._beside = storage.derived_files(self._database, self.path)
        self._swept = False

    @property
    def where(self) -> str:
        """Where it lies, as people are told: a path, or an address without its password."""
        return self._database.where

    url = renamed_attribute("url", "where")

    def exists(self) -> bool:
        """Whether there is a registry already; reading makes none."""
        return self._database.exists()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file or the connections; the registry can be used again."""
        self._database.close()

    def make_writable(self) -> None:
        """Open the registry for writing, creating it if needed; raises if it cannot be written."""
        with self._database.writing() as connection:
            self._sweep(connection)

    # Models

    def add(
        self,
        record: ModelRecord,
        tensors: Sequence[TensorRecord],
        fingerprints: Sequence[Fingerprint] = (),
        *,
        weights: Callable[[Path], None] | None = None,
        replace: bool = False,
    ) -> AddOutcome:
        """Add a model with its tensors and fingerprints, in one transaction.

        A known name with the same digest is not added again; missing fingerprints and stored weights are added to it.

        Args:
            record: The model.
            tensors: Its tensors; their manifest must have the model's digest.
            fingerprints: Of this model.
            weights: Writes a copy of the weights to a path, to be stored in the registry.
            replace: Allow a known name to get a new digest.

        Returns:
            The live record and the outcome.

        Raises:
            RegistryError: If the name belongs to another digest and `replace` is not given, if record and tensors
                contradict each other, or if the registry cannot be written.
        """
        with paused_collection(), contextlib.ExitStack() as stack:
            addition = Addition(record, tensors, fingerprints)
            stage = self._stage(stack) if weights or addition.large else None
            kept = stage.put(weights) if stage and weights else None
            if stage:
                for content in addition.large:
                    stage.put(lambda path, content=content: _write(path, content))
            connection = self._writing(stack, stage)
            outcome = addition.write(connection, replace=replace, kept=kept)
            if stage:
                stage.publish()
        return outcome

    def add_all(self, additions: Sequence[Addition], *, replace: bool = False) -> list[AddOutcome | RegistryError]:
        """Add several models in one transaction: all of them are on disk when this returns, or none.

        Args:
            additions: The models; none may be `large`.
            replace: Allow a known name to get a new digest.

        Returns:
            Per model the outcome, or why it was refused; the others are added all the same.

        Raises:
            UnusableRegistryError: If the registry cannot be written.
        """
        with self._database.writing() as connection:
            return write_each(connection, additions, replace=replace)

    def remove(self, name: str) -> ModelRecord:
        """Remove a name from the registry; its rows stay, followed by a tombstone.

        Args:
            name: A live name.

        Returns:
            The removed record.

        Raises:
            UnknownNameError: If no live model has this name.
        """
        with self._database.writing() as connection:
            known = rows.live_model(connection, name)
            if known is None:
                raise UnknownNameError(rows.unknown_name_message(connection, name))
            rows.append_tombstone(connection, known)
        return known

    def models(self) -> tuple[ModelRecord, ...]:
        """All live models, sorted by name."""
        with self._database.reading() as connection:
            found = connection.execute(rows.select_live().order_by(schema.live.c.name))
            return tuple(rows.model_record(text) for text in found.scalars())

    def count(self) -> int:
        """Number of different live models; names of the same weights count once."""
        with self._database.reading() as connection:
            distinct = sa.select(sa.func.count(sa.distinct(schema.live.c.content_id)))
            return connection.execute(distinct).scalar_one()

    def sampled(self) -> frozenset[Digest]:
        """Digests of the live models of which only a sample was read."""
        with self._database.reading() as connection:
            return rows.sampled_models(connection)

    def get(self, name_or_digest: str) -> ModelRecord:
        """Find a live model.

        Args:
            name_or_digest: A name, else the first 8 or more hexadecimal digits of a digest (with or without `sha256:`).
                If several names have the digest, the first by name is returned, unless it is that of a sample.

        Returns:
            Its record.

        Raises:
            UnknownNameError: If there is none; the message names similar ones.
            RegistryError: If several digests have this prefix.
        """
        with self._database.reading() as connection:
            found = rows.live_model(connection, name_or_digest)
            if found:
                return found
            match = _PREFIX.fullmatch(name_or_digest)
            if not match:
                raise UnknownNameError(rows.unknown_name_message(connection, name_or_digest))
            low = f"{match[1] or ''}{digests.ALGORITHM}:{match[2]}"
            query = rows.select_live().where(schema.model.c.digest >= low, schema.model.c.digest < low + "g")
            matches = [
                rows.model_record(text) for text in connection.execute(query.order_by(schema.live.c.name)).scalars()
            ]
            if not matches:
                raise UnknownNameError(rows.unknown_name_message(connection, name_or_digest))
        several = {
            m.digest if not digests.is_partial(m.digest) else m.name for m in matches
        }  # equal samples may differ
        if len(several) > 1:
            names = ", ".join(f"'{m.name}' ({m.digest})" for m in matches[:4])
            raise RegistryError(
                f"'{name_or_digest}' matches {len(matches)} models: {names}. Use more digits, or a name"
            )
        return matches[0]

    def by_digest(self, digest: Digest) -> tuple[ModelRecord, ...]:
        """Live models with these weights and tensor names, sorted by name."""
        return self._live_where(schema.model.c.digest == digest)

    def by_names_free_digest(self, digest: Digest) -> tuple[ModelRecord, ...]:
        """Live models with these weights under any tensor names, sorted by name."""
        return self._live_where(schema.content.c.names_free_digest == digest)

    def by_tensor_digests(self, wanted: Iterable[Digest], limit: int | None = None) -> dict[Digest, frozenset[Digest]]:
        """Shared tensors by digest of the live models that have some of them; most shared first, at most `limit`."""
        with self._database.reading() as connection:
            return rows.models_sharing_tensors(connection, self._large, frozenset(wanted), limit)

    def by_unit_keys(self, keys: Sequence[int], limit: int) -> list[Digest]:
        """Live models that have some of these keys of hidden units (`unit-keys`), most of them first."""
        with self._database.reading() as connection:
            return rows.models_sharing_units(connection, keys, limit)

    def tensors(self, model: Digest) -> tuple[TensorRecord, ...]:
        """Name, dtype, shape and digest of the tensors of a model, sorted by name."""
        with self._database.reading() as connection:
            found = rows.tensors(connection, self._large, model)
        if found is None:
            raise UnknownNameError(f"there is no model {model} in the registry")
        return found

    def weights(self, record: ModelRecord) -> Path | None:
        """The stored copy of a model's weights (safetensors), or None; raises if it is missing."""
        if record.weights is None:
            return None
        with self._database.reading() as connection:
            path = self._large.file(connection, record.weights)
        if path is None:
            where = self._large.where(record.weights)
            raise RegistryError(f"the stored weights of '{record.name}' are missing at {where}. Restore a backup")
        return path

    # Fingerprints, evidence

    def fingerprints(self, spec: Spec) -> Iterator[Fingerprint]:
        """Fingerprints of the live models by one method, in the order of model digests."""
        f = schema.fingerprint.c
        enrolled = sa.select(schema.model.c.digest).join(schema.live, schema.live.c.model_id == schema.model.c.id)
        newest = (
            sa.select(sa.func.max(f.id)).where(f.spec_digest == spec.digest, f.model_digest.in_(enrolled))
        ).group_by(f.model_digest)
        with self._database.reading() as connection:
            found = connection.execute(sa.select(f.record).where(f.id.in_(newest)).order_by(f.model_digest))
            for text in found.scalars().all():
                yield self._fingerprint(connection, rows.fingerprint_record(text))

    def fingerprint(self, model: Digest, spec: Spec) -> Fingerprint | None:
        """The newest fingerprint of a model by one method, or None."""
        with self._database.reading() as connection:
            record = rows.newest_fingerprint(connection, model, spec.digest)
            return self._fingerprint(connection, record) if record else None

    def sketch_index(self, spec: Spec) -> SketchIndex:
        """The search index over the bit sketches of the live models, 256 bytes each; see `sketch_file`."""
        return sketch_file.open_index(self._database, self._beside, spec)

    def sketches(self, spec: Spec) -> dict[str, np.ndarray]:
        """The bit sketches of the live models by digest."""
        with self._database.reading() as connection:
            return {r.digest: np.frombuffer(r.bits, np.uint8) for r in rows.live_sketches(connection, spec)}

    def put_evidence(self, a: Digest, b: Digest, spec: Spec, content: Mapping[str, Any]) -> None:
        """Store the result of a method for an ordered pair, as plain JSON values."""
        with self._database.writing() as connection:
            result_rows.put_evidence(connection, a, b, spec, content)

    def get_evidence(self, a: Digest, b: Digest, spec: Spec) -> EvidenceRecord | None:
        """The newest stored result of a method for an ordered pair, or None."""
        with self._database.reading() as connection:
            return result_rows.newest_evidence(connection, a, b, spec)

    def put_functional(self, model: Digest, sketch: Fingerprint) -> None:
        """Store a functional sketch under the digests of its network and probes; black boxes are not stored."""
        if not str(sketch.model).startswith("sha256:"):
            return
        packed = blobs.pack(sketch.values)
        with contextlib.ExitStack() as stack:
            stage = self._stage(stack) if len(packed) >= blobs.INLINE_LIMIT else None
            if stage:
                stage.put(lambda path: _write(path, packed))
            connection = self._writing(stack, stage)
            result_rows.put_sketch(connection, model, sketch, packed, staged=bool(stage))
            if stage:
                stage.publish()

    def functional(self, model: Digest, probes: Digest, spec: Spec) -> Fingerprint | None:
        """The newest functional sketch of a model (digest of weights or network) for these probes, or None."""
        with self._database.reading() as connection:
            found = result_rows.newest_sketch(connection, model, probes, spec)
            return self._fingerprint(connection, found) if found else None

    def put_tree(self, kind: str, content: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Store the family tree of the live models (`lineage`), or where its models are drawn (`drawing`)."""
        packed = family_trees.pack(content)
        with contextlib.ExitStack() as stack:
            stage = self._stage(stack) if len(packed) >= blobs.INLINE_LIMIT else None
            if stage:
                stage.put(lambda path: _write(path, packed))
            connection = self._writing(stack, stage)
            family_trees.put(connection, kind, packed, facts, staged=bool(stage))
            if stage:
                stage.publish()

    def tree(self, kind: str) -> family_trees.StoredTree | None:
        """The family tree, or its drawing, as it was stored last; None if there is none."""
        with self._database.reading() as connection:
            return family_trees.read(connection, self._large, kind)

    def state(self) -> tuple[int, ...]:
        """Numbers that grow whenever a model is added or removed, or the family tree is drawn anew."""
        with self._database.reading() as connection:
            newest = connection.execute(sa.select(sa.func.max(schema.model.c.id))).scalar() or 0
            return newest, family_trees.newest_id(connection, family_trees.LINEAGE)

    def put_scan(self, scan: ScanRecord) -> None:
        """Store what a store of models held, unless the newest record of it says the same."""
        with self._database.writing() as connection:
            result_rows.put_scan(connection, scan)

    def last_scan(self, place: str) -> ScanRecord | None:
        """What a store of models held when it was last scanned, or None."""
        with self._database.reading() as connection:
            return result_rows.newest_scan(connection, place)

    # Other registries

    @property
    def exchange(self) -> "Exchange":
        """Exports, imports and subscriptions."""
        from stemma.registry.exchange.exchange import Exchange

        return Exchange(self._database, self._large)

    @property
    def known(self) -> "KnownModels":
        """The models that are known from other registries."""
        from stemma.registry.exchange.known_models import KnownModels

        return KnownModels(self._database)

    def check(self, progress: Progress | None = None) -> list[Finding]:
        """Recompute every digest from the files, including the sources.

        Unfinished files of killed writers are removed first; nothing else is changed. Cost: reads the whole registry,
        every stored copy and every source once.

        Args:
            progress: Called with the current item, the number done and the total.

        Returns:
            The problems; empty if there are none.
        """
        from stemma.registry import integrity_check

        if self.exists():
            with contextlib.suppress(UnusableRegistryError):  # the problems are found below
                self.make_writable()
        return integrity_check.run(self._database, self._large, self._beside, progress)

    def _stage(self, stack: contextlib.ExitStack) -> blobs.AbstractStage:
        self.make_writable()  # a read-only registry is refused before anything is written
        stack.enter_context(self._database.readable_errors())
        return stack.enter_context(self._large.staging())

    def _writing(self, stack: contextlib.ExitStack, stage: blobs.AbstractStage | None) -> sa.Connection:
        return stack.enter_context(self._database.writing(None if stage is None else stage.upload))

    def _sweep(self, connection: sa.Connection) -> None:
        if not self._swept:
            self._large.sweep(lambda digest: rows.blob_row(connection, digest) is not None)
            self._swept = True

    def _live_where(self, condition: sa.ColumnElement[bool]) -> tuple[ModelRecord, ...]:
        with self._database.reading() as connection:
            found = connection.execute(rows.select_live().where(condition).order_by(schema.live.c.name))
            return tuple(rows.model_record(text) for text in found.scalars())

    def _fingerprint(self, connection: sa.Connection, record: FingerprintRecord | SketchRecord) -> Fingerprint:
        values = blobs.unpack(rows.read_blob(connection, self._large, record.blob))
        of = record.network if isinstance(record, SketchRecord) else record.model
        return Fingerprint(of, record.probes, record.spec, values)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)

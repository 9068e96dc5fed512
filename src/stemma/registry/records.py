"""Records of the registry as frozen values; every stored row has the digest of its content."""

import enum
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma.checkpoints import cards
from stemma.checkpoints import digest as digests
from stemma.errors import RegistryError
from stemma.types import Digest, ModelRef, Spec

Progress = Callable[[str, int, int], None]
"""Called with the current item, the number done and the total."""


class AddStatus(enum.StrEnum):
    """The outcome of `Registry.add` for a model."""

    ADDED = "added"
    KNOWN = "known"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of a registered model.

    Attributes:
        name: Its name in the model.
        dtype: Dtype code as in `stemma.checkpoints.model.ITEMSIZE`.
        shape: Axis lengths.
        digest: Its content.
        counted: Whether it is part of the model's identity; a second name of a tied tensor is not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest
    counted: bool = True


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered model: its identity and source; its weights stay where they are.

    Attributes:
        name: Its name; unique among live models.
        digest: Identity of the weights with their names.
        names_free_digest: Identity of the multiset of tensors.
        source: Absolute path of the checkpoint, `python:NAME`, or the address of a model on a server, with its commit.
        format: File extension of the source, `folder`, or `hub`.
        tensors: Number of tensors.
        parameters: Number of elements.
        dtypes: Number of tensors of each dtype code.
        config: Architecture configuration as claimed, None without one.
        claims: Other metadata as claimed.
        license: The licence as stated by the person who added it, None if not stated.
        weights: Digest of the stored copy of the weights (a safetensors blob), None without one.
        added_at: When it was added, UTC, ISO 8601; set by the registry.
        stemma_version: The version that added it; set by the registry.
    """

    name: str
    digest: Digest
    names_free_digest: Digest
    source: str
    format: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    config: Mapping[str, Any] | None = None
    claims: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    weights: Digest | None = None
    added_at: str = ""
    stemma_version: str = ""

    @property
    def ref(self) -> ModelRef:
        """Name and digest, for results."""
        return ModelRef(self.name, self.digest)

    @property
    def licence(self) -> str | None:
        """The licence as it was stated, else as the files claim it, else None."""
        return self.license or cards.licence(self.claims)

    def renamed(self, name: str) -> "ModelRecord":
        """The same record under another name."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True)
class FingerprintRecord:
    """A stored fingerprint of a model.

    Attributes:
        model: Digest of the model.
        probes: Digest of the probes, None for weights only.
        spec: The method.
        blob: Digest of the stored values.
        added_at: When it was stored, UTC, ISO 8601.
    """

    model: Digest
    probes: Digest | None
    spec: Spec
    blob: Digest
    added_at: str = ""


@dataclass(frozen=True, slots=True)
class SketchRecord:
    """A stored functional sketch of a model.

    Attributes:
        model: Digest of the weights.
        network: Digest of the network: weights, code and input specification.
        probes: Digest of the probes.
        spec: The method.
        blob: Digest of the stored values.
        added_at: When it was stored, UTC, ISO 8601.
    """

    model: Digest
    network: Digest
    probes: Digest
    spec: Spec
    blob: Digest
    added_at: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """The result of a method for an ordered pair of models.

    Attributes:
        a: Digest of the first model.
        b: Digest of the second model.
        spec: The method.
        content: The result, as plain JSON values.
        added_at: When it was stored, UTC, ISO 8601.

    """

    a: Digest
    b: Digest
    spec: Spec
    content: Mapping[str, Any]
    added_at: str = ""


@dataclass(frozen=True, slots=True)
class ScannedCheckpoint:
    """A checkpoint in a store of models, as it was when it was last read.

    Attributes:
        names: Its names.
        path: The file or folder.
        files: Path, size, two times and number of each file that was read: what shows that it was not changed.
        models: Name and digest of each model in it.
        passed: Digests of the policies that let it pass.
    """

    names: tuple[str, ...]
    path: str
    files: tuple[tuple[str, int, int, int, int], ...]
    models: tuple[tuple[str, Digest], ...]
    passed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScanRecord:
    """What a store of models held.

    Attributes:
        place: Kind and folder of the store.
        checkpoints: What was read, and not refused.
        scanned_at: When, UTC, ISO 8601; set by the registry.
    """

    place: str
    checkpoints: tuple[ScannedCheckpoint, ...]
    scanned_at: str = ""


@dataclass(frozen=True, slots=True)
class AddOutcome:
    """The result of `Registry.add`.

    Attributes:
        record: The live record under that name.
        status: Whether it was added, already known, or replaced another.

    """

    record: ModelRecord
    status: AddStatus


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem found by `check`.

    Attributes:
        kind: `missing`, `database`, `record`, `blob`, `index`, `leftover`, `source-gone` or `source-changed`.
        subject: The model's name, or the digest or file concerned.
        message: The problem and its solution, in one sentence.

    """

    kind: str
    subject: str
    message: str


def canonical_json(value: Any) -> str:
    """The JSON text over which rows are digested (sorted keys, no spaces); this form is part of the file format."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as e:
        raise RegistryError(
            f"{e.object[max(0, e.start - 20) : e.end]!r} is not valid Unicode. Rename the file or tensor"
        ) from e
    except (TypeError, ValueError) as e:
        raise RegistryError(f"a record cannot be stored as JSON: {e}") from e
    return text


def bytes_digest(content: bytes) -> Digest:
    """Digest of a blob."""
    return Digest(f"{digests.ALGORITHM}:{hashlib.sha256(content).hexdigest()}")


def manifest(tensors: Iterable[TensorRecord]) -> bytes:
    """The list of a model's tensors as it is stored: canonical JSON, sorted by name."""
    rows = sorted([t.name, t.dtype, list(t.shape), t.digest, t.counted] for t in tensors)
    return canonical_json(rows).encode()


def parse_manifest(content: bytes) -> tuple[TensorRecord, ...]:
    """The tensors in a stored manifest, sorted by name."""
    try:
        rows = json.loads(content)
        return tuple(TensorRecord(name, dtype, tuple(shape), d, counted) for name, dtype, shape, d, counted in rows)
    except (TypeError, ValueError) as e:
        raise RegistryError("a stored list of tensors is damaged. Run `stemma check` to find it") from e


def model_digests(tensors: Iterable[TensorRecord]) -> tuple[Digest, Digest]:
    """Digest and names-free digest of a model, computed from its tensor records."""
    counted = [t for t in tensors if t.counted]
    by_name = {t.name: t.digest for t in counted}
    return digests.of_model(counted, by_name), digests.of_contents(t.digest for t in counted)


def verified_manifest(record: ModelRecord, tensors: Sequence[TensorRecord]) -> bytes:
    """The manifest of a model; raises if record and tensors have different digests or the name is not printable."""
    name = record.name
    if not name or not name.isprintable() or name != name.strip():
        raise RegistryError(
            f"{name!r} is not a valid model name. Use printable characters without leading or trailing spaces"
        )
    listing = manifest(tensors)
    if model_digests(tensors) != (record.digest, record.names_free_digest):
        raise RegistryError(f"the tensors of '{name}' do not match its digest {record.digest}")
    return listing

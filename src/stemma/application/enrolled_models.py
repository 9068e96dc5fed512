"""What the registry holds: list, show and remove models, and verify its integrity."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.registry.records import Finding, ModelRecord
from stemma.types import ModelRef, jsonable


@dataclass(frozen=True, kw_only=True)
class RegistryRequest:
    """What `stemma list` and `stemma check` are asked.

    Attributes:
        registry: Registry; the default one if null.
    """

    registry: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What `stemma show` and `stemma remove` are asked.

    Attributes:
        name: Registry name or digest prefix.
        registry: Registry; the default one if null.
    """

    name: str
    registry: str | None = None


@dataclass(frozen=True, kw_only=True)
class ListDocument(Document):
    """The enrolled models.

    Attributes:
        registry: File of the registry.
        models: All models, sorted by name.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.list", 1)

    asked: RegistryRequest
    registry: str
    models: tuple[ModelRecord, ...]


@dataclass(frozen=True, kw_only=True)
class ShowDocument(Document):
    """What the registry knows about one model.

    Attributes:
        name: Name of the model; unique in the registry.
        digest: Digest of the weights with their names.
        names_free_digest: Digest of the weights without their names.
        source: Absolute path of the checkpoint.
        format: File ending of the source, or `folder`.
        tensors: Number of tensors.
        parameters: Number of parameters.
        dtypes: Number of tensors of each number format.
        config: Configuration as claimed; null without one.
        claims: What its files say; no evidence.
        license: Licence as stated when the model was enrolled; null if not stated.
        weights: Digest of the stored copy of the weights; null where none is stored.
        added_at: When it was enrolled: UTC, ISO 8601.
        added_with: Version of Stemma that enrolled it.
        licence: Licence as stated, else as its card says; null where neither does.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.show", 1)

    asked: ModelRequest
    name: str
    digest: str
    names_free_digest: str
    source: str
    format: str
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    config: Mapping[str, Any] | None
    claims: Mapping[str, str]
    license: str | None
    weights: str | None
    added_at: str
    added_with: str
    licence: str | None


@dataclass(frozen=True, kw_only=True)
class RemoveDocument(Document):
    """A model that was taken out of the registry.

    Attributes:
        removed: The model.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.remove", 1)

    asked: ModelRequest
    removed: ModelRef


@dataclass(frozen=True, slots=True)
class FindingPart:
    """Something that is wrong with the registry.

    Attributes:
        kind: Kind of the finding.
        subject: Name of the model, or the digest or file concerned.
        message: What is wrong and what to do, in one sentence.
    """

    kind: Literal["missing", "database", "record", "blob", "index", "leftover", "source-gone", "source-changed"]
    subject: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CheckDocument(Document):
    """Whether the registry and the sources of its models are intact.

    Attributes:
        registry: File of the registry.
        models: Number of models.
        findings: What is wrong.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.check", 1)

    asked: RegistryRequest
    registry: str
    models: int
    findings: tuple[FindingPart, ...]


@dataclass(frozen=True, kw_only=True)
class ListAnswer:
    """The enrolled models.

    Attributes:
        request: What was asked.
        registry: File of the registry.
        result: All models, sorted by name.
    """

    request: RegistryRequest
    registry: Path
    result: tuple[ModelRecord, ...]

    def document(self) -> dict[str, Any]:
        """The document that `stemma list --json` prints."""
        return ListDocument.of(self.request, registry=str(self.registry), models=self.result).to_dict()


@dataclass(frozen=True, kw_only=True)
class ShowAnswer:
    """What the registry knows about one model.

    Attributes:
        request: What was asked.
        result: The record of the model.
    """

    request: ModelRequest
    result: ModelRecord

    def document(self) -> dict[str, Any]:
        """The document that `stemma show --json` prints."""
        fields = jsonable(self.result)
        added_with = fields.pop("stemma_version")
        return ShowDocument.of(self.request, **fields, added_with=added_with, licence=self.result.licence).to_dict()


@dataclass(frozen=True, kw_only=True)
class RemoveAnswer:
    """A model that was taken out of the registry.

    Attributes:
        request: What was asked.
        result: The model.
    """

    request: ModelRequest
    result: ModelRef

    def document(self) -> dict[str, Any]:
        """The document that `stemma remove --json` prints."""
        return RemoveDocument.of(self.request, removed=self.result).to_dict()


@dataclass(frozen=True, kw_only=True)
class CheckAnswer:
    """Whether the registry and the sources of its models are intact.

    Attributes:
        request: What was asked.
        registry: File of the registry.
        models: Number of models.
        result: What is wrong.
    """

    request: RegistryRequest
    registry: Path
    models: int
    result: tuple[Finding, ...]

    def document(self) -> dict[str, Any]:
        """The document that `stemma check --json` prints."""
        findings = tuple(FindingPart(**jsonable(finding)) for finding in self.result)
        return CheckDocument.of(
            self.request, registry=str(self.registry), models=self.models, findings=findings
        ).to_dict()


def list_models(request: RegistryRequest) -> ListAnswer:
    """List the enrolled models."""
    from stemma.application.opening import open_workspace

    workspace = open_workspace(request.registry)
    return ListAnswer(request=request, registry=workspace.registry.path, result=tuple(workspace.list()))


def show_model(request: ModelRequest) -> ShowAnswer:
    """Look up one enrolled model."""
    from stemma.application.opening import open_workspace

    return ShowAnswer(request=request, result=open_workspace(request.registry).show(request.name))


def remove_model(request: ModelRequest) -> RemoveAnswer:
    """Take a model out of lists and searches; its record stays, marked as removed."""
    from stemma.application.opening import open_workspace

    workspace = open_workspace(request.registry)
    record = workspace.show(request.name)
    workspace.remove(record.name)
    return RemoveAnswer(request=request, result=record.ref)


def check_registry(request: RegistryRequest, progress: Progress | None = None) -> CheckAnswer:
    """Derive every digest again, and look whether the sources are still there and unchanged."""
    from stemma.application.opening import open_workspace

    workspace = open_workspace(request.registry, progress=progress)
    result, models = tuple(workspace.check()), len(workspace.list())
    return CheckAnswer(request=request, registry=workspace.registry.path, models=models, result=result)

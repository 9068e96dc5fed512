"""What the registry holds: list and remove models, and verify its integrity."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stemma.application.document import Document, Progress, Schema
from stemma.errors import MisuseError
from stemma.registry.records import Finding, ModelRecord
from stemma.types import KnownFrom, ModelRef, jsonable

if TYPE_CHECKING:
    from stemma.registry import Registry
    from stemma.workspace.catalogue import Catalogue

Order = Literal["name", "added", "parameters", "licence", "family"]


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """What `stemma list` is asked.

    Attributes:
        search: Words that the name or the digest of a model must hold.
        license: Part of the licence; `none` for models without one.
        family: Model to whose family they must belong.
        sort: What they are sorted by.
        reverse: From the last to the first.
        limit: Most models that are listed; all if null.
        offset: Models that are skipped.
        known: Whether the models that other registries tell of are listed, instead of those that are enrolled here.
        registry: Registry; the default one if null.
    """

    search: str = ""
    license: str | None = None
    family: str | None = None
    sort: Order = "name"
    reverse: bool = False
    limit: int | None = None
    offset: int = 0
    known: bool = False
    registry: str | None = None


@dataclass(frozen=True, kw_only=True)
class RegistryRequest:
    """What `stemma check` is asked.

    Attributes:
        registry: Registry; the default one if null.
    """

    registry: str | None = None


@dataclass(frozen=True, kw_only=True)
class RemoveRequest:
    """What `stemma remove` is asked.

    Attributes:
        name: Registry name or digest prefix.
        registry: Registry; the default one if null.
    """

    name: str
    registry: str | None = None


@dataclass(frozen=True, slots=True)
class KnownModelPart:
    """A model that another registry tells of; nothing of it was read here.

    Attributes:
        name: Its name here.
        digest: Digest of its weights, as told.
        parameters: Number of parameters, as told.
        tensors: Number of tensors, as told.
        licence: Licence, as told; null where none is.
        added_at: When it was enrolled there: UTC, ISO 8601.
        known_from: The registry.
    """

    name: str
    digest: str
    parameters: int
    tensors: int
    licence: str | None
    added_at: str
    known_from: KnownFrom


@dataclass(frozen=True, kw_only=True)
class ListDocument(Document):
    """The enrolled models.

    Attributes:
        registry: Where the registry lies: its file, or its address without the password.
        total: Number of models that fit, listed or not.
        models: Models that fit, in the order asked.
        known: Models that other registries tell of, by registry and name; only where they were asked for.
        known_in_all: Number of all models that other registries tell of.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.list", 1)

    asked: ListRequest
    registry: str
    total: int
    models: tuple[ModelRecord, ...]
    known: tuple[KnownModelPart, ...] = ()
    known_in_all: int = 0


@dataclass(frozen=True, kw_only=True)
class RemoveDocument(Document):
    """A model that was taken out of the registry.

    Attributes:
        removed: The model.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.remove", 1)

    asked: RemoveRequest
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
        registry: Where the registry lies: its file, or its address without the password.
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
        exists: Whether there is a registry.
        registry: Where the registry lies: its file, or its address without the password.
        enrolled: Number of all models in it.
        total: Number of models that fit.
        result: Models that fit, in the order asked, as many as asked.
        known: Models that other registries tell of, where they were asked for.
        known_in_all: Number of all models that other registries tell of.
    """

    request: ListRequest
    exists: bool
    registry: str
    enrolled: int
    total: int
    result: tuple[ModelRecord, ...]
    known: tuple[KnownModelPart, ...] = ()
    known_in_all: int = 0

    def document(self) -> dict[str, Any]:
        """The document that `stemma list --json` prints."""
        return ListDocument.of(
            self.request, registry=self.registry, total=self.total, models=self.result, known=self.known,
            known_in_all=self.known_in_all,
        ).to_dict()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RemoveAnswer:
    """A model that was taken out of the registry.

    Attributes:
        request: What was asked.
        result: The model.
    """

    request: RemoveRequest
    result: ModelRef

    def document(self) -> dict[str, Any]:
        """The document that `stemma remove --json` prints."""
        return RemoveDocument.of(self.request, removed=self.result).to_dict()


@dataclass(frozen=True, kw_only=True)
class CheckAnswer:
    """Whether the registry and the sources of its models are intact.

    Attributes:
        request: What was asked.
        registry: Where the registry lies: its file, or its address without the password.
        models: Number of models.
        result: What is wrong.
    """

    request: RegistryRequest
    registry: str
    models: int
    result: tuple[Finding, ...]

    def document(self) -> dict[str, Any]:
        """The document that `stemma check --json` prints."""
        findings = tuple(FindingPart(**jsonable(finding)) for finding in self.result)
        return CheckDocument.of(self.request, registry=self.registry, models=self.models, findings=findings).to_dict()


def list_models(request: ListRequest, catalogue: "Catalogue | None" = None) -> ListAnswer:
    """List the enrolled models that fit.

    Args:
        request: Which models, and in what order.
        catalogue: The models of the registry where they are at hand; read otherwise.

    Returns:
        The models.

    Raises:
        MisuseError: If a number is negative or the order is unknown.
    """
    from stemma.application.opening import open_workspace
    from stemma.workspace.catalogue import Catalogue

    if request.offset < 0 or (request.limit is not None and request.limit < 1):
        raise MisuseError(
            f"limit {request.limit} and offset {request.offset}: list at least one model, and skip no less than none"
        )
    registry = catalogue.registry if catalogue is not None else open_workspace(request.registry).registry
    if request.known:
        return _list_known(request, registry)
    known = catalogue or Catalogue(registry)
    fitting = known.select(request.search, request.license, request.family, request.sort, reverse=request.reverse)
    end = None if request.limit is None else request.offset + request.limit
    shown = fitting[request.offset : end]
    if len(shown) == len(known.entries):
        by_name = {record.name: record for record in registry.models()}
        records = tuple(by_name[entry.name] for entry in shown if entry.name in by_name)
    else:
        records = tuple(registry.get(entry.name) for entry in shown)
    return ListAnswer(
        request=request, exists=registry.exists(), registry=registry.where, enrolled=len(known.entries),
        total=len(fitting), result=records, known_in_all=registry.known.count(),
    )  # fmt: skip


def _list_known(request: ListRequest, registry: "Registry") -> ListAnswer:
    """The models that other registries tell of, as asked."""
    if request.family is not None or request.sort != "name":
        raise MisuseError("--known lists models by registry and name: --family and --sort are for enrolled ones")
    words, licence = request.search.casefold().split(), request.license and request.license.casefold()
    found = [
        KnownModelPart(r.name, r.digest, r.parameters, r.tensors, r.licence, r.added_at, told)
        for r, told in registry.known.records()
        if all(word in r.name.casefold() or word in r.digest for word in words)
        and (licence is None or licence in (r.licence or "none").casefold())
    ]
    found = found[::-1] if request.reverse else found
    end = None if request.limit is None else request.offset + request.limit
    return ListAnswer(
        request=request, exists=registry.exists(), registry=registry.where, enrolled=0, total=len(found), result=(),
        known=tuple(found[request.offset : end]), known_in_all=registry.known.count(),
    )  # fmt: skip


def remove_model(request: RemoveRequest) -> RemoveAnswer:
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
    return CheckAnswer(request=request, registry=workspace.registry.where, models=models, result=result)

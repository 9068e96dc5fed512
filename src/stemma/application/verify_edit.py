"""Was a model edited as its plan and receipt say? Request, answer and JSON document of `stemma verify edit`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.errors import StemmaError

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.verification.edit import Finding
    from stemma.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class VerifyEditRequest:
    """What `stemma verify edit` is asked.

    Attributes:
        folder: Folder that prune or unlearn wrote.
        parent: The original model; the recorded one if null.
        probes: Probe (or forget) inputs of the edit.
        retain: Other inputs that unlearn was given.
        public_key: File of the public key of whoever signed the folder; null where that is not asked.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        strict: Whether a check that could not be made closes the gate.
    """

    folder: str
    parent: str | None = None
    probes: str | None = None
    retain: str | None = None
    public_key: str | None = None
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class CheckPart:
    """What one check says.

    Attributes:
        check: What was checked.
        good: Whether it is as recorded; null where it could not be checked.
        reason: Finding in one sentence.
    """

    check: str
    good: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class VerifyEditDocument(Document):
    """Whether a model was edited as recorded.

    Attributes:
        folder: Folder that was checked.
        good: Whether everything is as recorded; null where something could not be checked.
        checks: Every check.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.verify-edit", 1)

    asked: VerifyEditRequest
    folder: str
    good: bool | None
    checks: tuple[CheckPart, ...]


@dataclass(frozen=True, kw_only=True)
class VerifyEditAnswer:
    """The checks of an edit.

    Attributes:
        request: What was asked.
        parent: The model before; None where it was not found.
        result: Every check.
    """

    request: VerifyEditRequest
    parent: "Model | None"
    result: "tuple[Finding, ...]"

    @property
    def good(self) -> bool | None:
        """Whether everything is as recorded; None where something could not be checked."""
        outcomes = {finding.good for finding in self.result}
        return False if False in outcomes else None if None in outcomes else True

    @property
    def failed(self) -> bool:
        """Whether something is not as recorded, or the model before was not there to compare with."""
        return self.good is False or self.parent is None

    @property
    def untested(self) -> tuple[str, ...]:
        """What closes the gate of a strict request: each check that could not be made, in a sentence."""
        return tuple(f"{f.check}: {f.reason}" for f in self.result if f.good is None) if self.request.strict else ()

    def document(self) -> dict[str, Any]:
        """The document that `stemma verify edit --json` prints."""
        checks = tuple(CheckPart(f.check, f.good, f.reason) for f in self.result)
        return VerifyEditDocument.of(self.request, folder=self.request.folder, good=self.good, checks=checks).to_dict()


def verify_edit(request: VerifyEditRequest, progress: Progress | None = None) -> VerifyEditAnswer:
    """Check an edited model against its plan and receipt, and repeat the edit.

    Args:
        request: The folder, and the model and inputs that the edit rests on.
        progress: Told what is being done.

    Returns:
        Every check.
    """
    from stemma.application.opening import open_workspace
    from stemma.verification.edit import EditReplay, read

    networks, folder = request.networks, Path(request.folder)
    _, receipt = read(folder)
    workspace = open_workspace(request.registry, progress=progress)
    parent = _parent(request, workspace, receipt.parent_source, str(receipt.parent))
    probes, retain = (
        None if given is None or parent is None else networks.read_probes(given, parent)
        for given in (request.probes, request.retain)
    )
    result = EditReplay()(folder, parent, probes, retain, progress)
    return VerifyEditAnswer(request=request, parent=parent, result=(*result, *_signatures(folder, request.public_key)))


def _signatures(folder: Path, public_key: str | None) -> "Iterator[Finding]":
    """Whether the folder is signed: where a key is given, and where a signature lies in it."""
    from stemma.verification.edit import Finding
    from stemma.verification.signatures.signed_files import check_signatures, signatures_of

    if public_key is not None:
        for found in check_signatures(folder, Path(public_key)):
            yield Finding("signature", bool(found.good), found.reason)
    elif found := signatures_of(folder):
        names = ", ".join(f.name for f in found)
        yield Finding("signature", None, f"{names} was not checked: give the signer's key with --public-key")


def _parent(request: VerifyEditRequest, workspace: "Workspace", source: str, digest: str) -> "Model | None":
    """The model before: as given, else where it was read from, seen from the folder, else by digest in the registry."""
    if request.parent is not None:
        return request.networks.open_model(workspace, request.parent)
    near = Path(request.folder) / source if source else None
    beside = str(near) if near is not None and near.exists() else source
    for text in (beside, digest.partition(":")[2]):
        try:
            found = request.networks.open_model(workspace, text)
        except (StemmaError, OSError):
            continue
        if found.digest == digest:
            return found
    return None

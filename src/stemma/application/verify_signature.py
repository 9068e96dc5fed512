"""Are these the files that somebody signed? Request, answer and JSON document of `stemma verify signature`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Schema
from stemma.application.verify_edit import CheckPart

if TYPE_CHECKING:
    from stemma.verification.signatures.signed_files import SignatureFinding


@dataclass(frozen=True, kw_only=True)
class VerifySignatureRequest:
    """What `stemma verify signature` is asked.

    Attributes:
        path: Checkpoint file or folder.
        public_key: File of the public key that is trusted.
        signatures: Signatures that are checked; those that lie with the checkpoint if null.
    """

    path: str
    public_key: str
    signatures: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class VerifySignatureDocument(Document):
    """Whether files are those that were signed.

    Attributes:
        path: Checkpoint file or folder.
        good: Whether every signature was made with the key and every file is as signed; null where something is not
            signed. Only true is a pass.
        checks: Every check.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.verify-signature", 1)

    asked: VerifySignatureRequest
    path: str
    good: bool | None
    checks: tuple[CheckPart, ...]


@dataclass(frozen=True, kw_only=True)
class VerifySignatureAnswer:
    """The checks of signatures.

    Attributes:
        request: What was asked.
        result: Every check.
    """

    request: VerifySignatureRequest
    result: "tuple[SignatureFinding, ...]"

    @property
    def good(self) -> bool | None:
        """Whether everything is signed and unchanged; None where something is not signed."""
        outcomes = {finding.good for finding in self.result}
        return False if False in outcomes else None if None in outcomes else True

    def document(self) -> dict[str, Any]:
        """The document that `stemma verify signature --json` prints."""
        checks = tuple(CheckPart(f.check, f.good, f.reason) for f in self.result)
        return VerifySignatureDocument.of(
            self.request, path=self.request.path, good=self.good, checks=checks
        ).to_dict()  # fmt: skip


def verify_signature(request: VerifySignatureRequest) -> VerifySignatureAnswer:
    """Check the signatures of a checkpoint, and that its files have the bytes that were signed.

    Args:
        request: The checkpoint, the key and the signatures.

    Returns:
        Every check.
    """
    from stemma.verification.signatures.signed_files import check_signatures

    given = tuple(map(Path, request.signatures or ()))
    found = check_signatures(Path(request.path), Path(request.public_key), given)
    return VerifySignatureAnswer(request=request, result=found)

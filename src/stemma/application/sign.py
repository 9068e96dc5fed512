"""Signs the weights of a model. Request, answer and JSON document of `stemma sign`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stemma.application.document import Document, Schema
from stemma.errors import MisuseError, NotAModelError


@dataclass(frozen=True, kw_only=True)
class SignRequest:
    """What `stemma sign` is asked.

    Attributes:
        path: Checkpoint file or folder.
        key: File of the private key.
        out: File that is written; `model.sig` in a folder, or the name of a file with `.sig`, if null.
    """

    path: str
    key: str
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class SignDocument(Document):
    """What was signed.

    Attributes:
        path: Checkpoint file or folder.
        signature: File that was written.
        files: Names of the files that are signed; `.` for a single file.
        signed_by: SHA-256 of the public key that verifies the signature.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.sign", 1)

    asked: SignRequest
    path: str
    signature: str
    files: tuple[str, ...]
    signed_by: str


@dataclass(frozen=True, kw_only=True)
class SignAnswer:
    """What was signed.

    Attributes:
        request: What was asked.
        signature: File that was written.
        files: Names of the files that are signed.
        signed_by: Identity of the public key.
    """

    request: SignRequest
    signature: Path
    files: tuple[str, ...]
    signed_by: str

    def document(self) -> dict[str, Any]:
        """The document that `stemma sign --json` prints."""
        return SignDocument.of(
            self.request, path=self.request.path, signature=str(self.signature), files=self.files,
            signed_by=self.signed_by,
        ).to_dict()  # fmt: skip


def sign(request: SignRequest) -> SignAnswer:
    """Sign a checkpoint in the format of OpenSSF Model Signing.

    Args:
        request: The checkpoint, the key and where the signature goes.

    Returns:
        What was signed.

    Raises:
        NotAModelError: If there is no such checkpoint.
        MisuseError: If the signature would overwrite what is signed.
    """
    from stemma.verification.signatures import oms
    from stemma.verification.signatures.keys import read_private_key

    path, key = Path(request.path), Path(request.key)
    if not path.exists():
        raise NotAModelError(f"{path} does not exist: give a checkpoint file or folder to sign")
    out = Path(request.out) if request.out else path / "model.sig" if path.is_dir() else Path(f"{path}.sig")
    if not out.name.endswith(".sig"):
        raise MisuseError(f"--out {out}: the name of a signature ends in .sig, so that nobody takes it for weights")
    signer = read_private_key(key).public.identity
    oms.sign_weights(path, key, out)
    return SignAnswer(request=request, signature=out, files=tuple(sorted(oms.signed_names(out))), signed_by=signer)

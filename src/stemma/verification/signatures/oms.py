"""Signatures of weights in the format of OpenSSF Model Signing, written and read by the package `model-signing`.

A signature lists every file of a model with its digest (a Sigstore bundle around an in-toto statement), so that any
tool that knows the format can check it: `model_signing verify key PATH --signature model.sig --public_key KEY.pem`.
"""

import contextlib
import json
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from stemma.checkpoints.file_hashes import SKIPPED
from stemma.errors import MissingExtraError, SigningError
from stemma.verification.signatures.dsse import canonical
from stemma.verification.signatures.keys import read_private_key, read_public_key

PREDICATES = ("https://model_signing/signature/v1.0", "https://model_signing/Digests/v0.1")
"""Types of what such a signature states."""


_DIGESTS = re.compile(r": Expected 'Digest\(.*?\)', Actual 'Digest\(.*?\)'(?=[\"',\]])")
"""Digests as the package prints them, which nobody can read."""


def sign_weights(path: Path, key: Path, out: Path) -> None:
    """Sign a checkpoint file, or every file of a checkpoint folder.

    Args:
        path: The file or folder; links are refused, because a link can be turned elsewhere.
        key: Private key in PEM: ECDSA on P-256, P-384 or P-521.
        out: Where the signature is written; in the folder itself it is left out of what is signed.

    Raises:
        SigningError: If the key is of another kind, or the folder holds links.
    """
    if read_private_key(key).public.is_ed25519:
        raise SigningError(f"model signatures take ECDSA keys and no Ed25519 one ({key}): use a key on P-256")
    with _told(path):
        from model_signing import hashing, signing

        ignored = [Path(name) for name in sorted(SKIPPED)]
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            ignored.append(out.resolve().relative_to(path.resolve()))
        config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
        signer = signing.Config().set_hashing_config(config).use_elliptic_key_signer(private_key=key)
        signer.sign(path, out)


def check_weights(path: Path, bundle: Path, key: Path) -> tuple[str, ...]:
    """Check a signature and that every file has the bytes that were signed.

    Args:
        path: The file or folder that was signed.
        bundle: The signature.
        key: Public key in PEM.

    Returns:
        What is wrong, one sentence each; empty where everything is as signed.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    if read_public_key(key).is_ed25519:
        return (f"{bundle.name} is not signed with this key: model signatures take ECDSA keys",)
    try:
        content = json.loads(bundle.read_bytes())
        if "publicKey" not in content["verificationMaterial"]:
            return ("it is signed with a certificate and not with a key: check it with the program model_signing",)
        for text in _signed_parts(content):
            canonical(text)
        with contextlib.redirect_stdout(sys.stderr):
            _verify(path, bundle, key)
    except SigningError as e:
        return (str(e),)
    except MissingExtraError:
        raise
    except ImportError as e:
        raise MissingExtraError("checking this signature", _package(e), "standards") from e
    except Exception as e:  # whatever it is that the package cannot read: it is no good signature
        return (_why(e),)
    return ()


def _verify(path: Path, bundle: Path, key: Path) -> None:
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=key).verify(path, bundle)


def signed_names(bundle: Path) -> frozenset[str]:
    """Names of the files that a signature is about, relative to the model.

    Args:
        bundle: A signature that was checked.

    Returns:
        The names; `.` for a model that is one file.
    """
    from base64 import b64decode

    statement = json.loads(b64decode(json.loads(bundle.read_bytes())["dsseEnvelope"]["payload"]))
    listed = statement["predicate"].get("resources") or statement["subject"]
    return frozenset(str(entry["name"]) for entry in listed)


def _signed_parts(content: Any) -> Iterator[Any]:
    envelope = content["dsseEnvelope"]
    yield envelope["payload"]
    yield from (entry["sig"] for entry in envelope["signatures"])


def _why(error: Exception) -> str:
    text = _DIGESTS.sub("", " ".join(str(error).split()))
    if type(error).__name__ == "InvalidSignature" or "Key mismatch" in text:
        return "the signature was not made with this key, or was changed"
    return text[:500] or f"the signature cannot be read ({type(error).__name__})"


@contextlib.contextmanager
def _told(path: Path) -> Generator[None]:
    """What the package raises, as errors of Stemma's."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ImportError as e:
        raise MissingExtraError("signing weights", _package(e), "standards") from e
    except ValueError as e:
        raise SigningError(f"{path} cannot be signed: {' '.join(str(e).split())[:500]}") from e


def _package(error: ImportError) -> str:
    return "pyopenssl" if (error.name or "").startswith("OpenSSL") else "model-signing"

"""Keys as PEM files: Ed25519, and ECDSA on P-256, P-384 and P-521. Sources: RFC 8032, FIPS 186-5, RFC 6979."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stemma.errors import SigningError

MAX_BYTES = 100_000
"""No key is longer."""

CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""By curve: the hash that goes with it."""

KINDS = "Ed25519, or ECDSA on P-256, P-384 or P-521"


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes:
        material: The key of the package `cryptography`.
    """

    material: Any

    @property
    def is_ed25519(self) -> bool:
        """Whether it is one of Ed25519, and else of ECDSA."""
        return not hasattr(self.material, "curve")

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the key (SubjectPublicKeyInfo in DER), hexadecimal."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return hashlib.sha256(self.material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Whether a signature of a message was made with the private part of this key."""
        from cryptography.exceptions import InvalidSignature

        try:
            if self.is_ed25519:
                self.material.verify(signature, message)
            else:
                self.material.verify(signature, message, _ecdsa(self.material))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A private key.

    Attributes:
        material: The key of the package `cryptography`.
    """

    material: Any

    @cached_property
    def public(self) -> PublicKey:
        """Its public part."""
        return PublicKey(self.material.public_key())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message; the same one every time, where OpenSSL can do that for ECDSA."""
        from cryptography.exceptions import UnsupportedAlgorithm

        if self.public.is_ed25519:
            return self.material.sign(message)
        try:
            return self.material.sign(message, _ecdsa(self.material, deterministic_signing=True))
        except UnsupportedAlgorithm:
            return self.material.sign(message, _ecdsa(self.material))


def read_private_key(path: str | Path) -> PrivateKey:
    """The private key in a PEM file.

    Args:
        path: The file.

    Returns:
        The key.

    Raises:
        SigningError: If it holds no such key, or an encrypted one.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = PrivateKey(load_pem_private_key(_content(path), None))
    except TypeError:
        raise SigningError(f"the key in {path} is encrypted: give one without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningError(f"{path} is not a private key in PEM: give {KINDS}") from None
    _check_kind(key.material, path)
    return key


def read_public_key(path: str | Path) -> PublicKey:
    """The public key in a PEM file.

    Args:
        path: The file.

    Returns:
        The key.

    Raises:
        SigningError: If it holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _content(path)
    if b"PRIVATE KEY" in content:
        raise SigningError(f"{path} is a private key: to verify, give the public key, and keep this one to yourself")
    try:
        key = PublicKey(load_pem_public_key(content))
    except (ValueError, UnsupportedAlgorithm):
        raise SigningError(f"{path} is not a public key in PEM: give {KINDS}") from None
    _check_kind(key.material, path)
    return key


def _content(path: str | Path) -> bytes:
    file = Path(path)
    if not file.is_file():
        raise SigningError(f"there is no key file {path}")
    if file.stat().st_size > MAX_BYTES:
        raise SigningError(f"{path} is too large to be a key")
    return file.read_bytes()


def _check_kind(material: Any, path: str | Path) -> None:
    if not is_known_kind(material):
        raise SigningError(f"the key in {path} is of another kind: give {KINDS}")


def is_known_kind(material: Any) -> bool:
    """Whether a key of the package `cryptography` is of a kind that signs here."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    curve = getattr(getattr(material, "curve", None), "name", "")
    return isinstance(material, (Ed25519PrivateKey, Ed25519PublicKey)) or curve in CURVES


def _ecdsa(material: Any, **options: bool) -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return ECDSA(getattr(hashes, CURVES[material.curve.name])(), **options)
